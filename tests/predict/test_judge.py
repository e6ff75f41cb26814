from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from tests.made import photos, trained
from vitrine.errors import BadData, NotFound, UsageError
from vitrine.predict.classifier import Classifier, load
from vitrine.predict.judge import OTHER_SET, judge
from vitrine.weights.bundle import open_bundle


@pytest.fixture
def model(run: Path) -> Classifier:
    return load(run, "cpu")


def digits(folder: Path, count: int = 40, names: str = "0123456789") -> Path:
    """The first digits as a class folder: the same pictures from another place."""
    images, labels = load_digits(return_X_y=True)
    for i in range(count):
        if str(labels[i]) in names:
            path = folder / str(labels[i]) / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.round(images[i].reshape(8, 8) * 255 / 16).astype(np.uint8)).save(path)
    return folder


def test_on_its_own_data_the_test_part_alone_counts(model: Classifier) -> None:
    found = judge(model, "digits")
    assert (found.part, found.why) == ("test", "the model was trained on the rest of this data")
    assert found.bad == {}
    stored = model.metrics["test"]
    assert found.metrics.figures.keys() == stored.keys()
    for name, figure in found.metrics.figures.items():
        assert figure.n == stored[name].n == 360
        assert (figure.value, figure.low, figure.high) == pytest.approx(
            (stored[name].value, stored[name].low, stored[name].high), abs=1e-5
        )


def test_the_parts_are_those_of_the_training(model: Classifier) -> None:
    sizes = {part: judge(model, "digits", part).metrics.top1.n for part in ("train", "validation", "test", "all")}
    assert sizes == {"train": 1077, "validation": 360, "test": 360, "all": 1797}
    asked = judge(model, "digits", "validation")
    assert asked.why == "as asked"
    assert asked.metrics.top1.value == pytest.approx(model.metrics["validation"]["top1"].value)


def test_on_other_data_everything_counts(model: Classifier, tmp_path: Path) -> None:
    data = digits(tmp_path / "data")
    found = judge(model, str(data))
    assert (found.part, found.why) == ("all", OTHER_SET)
    assert found.metrics.top1.n == 40 == sum(map(sum, found.metrics.confusion))
    answers = [model.predict(path, top=1)[0].label == path.parent.name for path in data.rglob("*.png")]
    assert found.metrics.top1.value == pytest.approx(sum(answers) / 40)


def test_classes_are_matched_by_name(model: Classifier, tmp_path: Path) -> None:
    found = judge(model, str(digits(tmp_path / "data", names="37")))
    assert [row.name for row in found.metrics.classes if row.n] == ["3", "7"]
    shutil.copytree(tmp_path / "data" / "3", tmp_path / "data" / "three")
    with pytest.raises(BadData, match="three"):
        judge(model, str(tmp_path / "data"))


def test_damaged_pictures_are_left_out_and_named(model: Classifier, tmp_path: Path) -> None:
    data = digits(tmp_path / "data")
    broken = sorted((data / "3").iterdir())[0]
    broken.write_bytes(broken.read_bytes()[:80])
    found = judge(model, str(data))
    assert found.metrics.top1.n == 39
    assert list(found.bad) == [f"3/{broken.name}"]


def test_progress_counts_to_the_end(model: Classifier) -> None:
    told: list[tuple[str, int, int]] = []
    judge(
        model,
        "digits",
        scanning=lambda done, total: told.append(("scan", done, total)),
        measuring=lambda done, total: told.append(("test", done, total)),
    )
    assert told[1796] == ("scan", 1797, 1797) and told[-1] == ("test", 360, 360)
    assert told == sorted(told)


def test_a_picture_less_is_another_set_which_is_not_called_unseen(tmp_path: Path) -> None:
    data = photos(tmp_path / "data", {"a": 30, "b": 30}, size=(16, 16))
    trained(tmp_path / "r", str(data), epochs=1, batch_size=8)
    model = load(tmp_path / "r", "cpu")
    assert judge(model, str(data)).part == "test"
    (data / "a" / "0.png").unlink()
    found = judge(model, str(data))
    assert found.part == "all"
    assert "pictures of the training may be among these" in found.why and "not trained" not in found.why


def test_the_limits_of_the_model_hold(run: Path, tmp_path: Path) -> None:
    data = digits(tmp_path / "data")
    Image.new("L", (100, 100)).save(data / "3" / "large.png")
    assert judge(load(run, "cpu"), str(data)).bad == {}
    found = judge(load(run, "cpu", max_pixels=9_999), str(data))
    assert list(found.bad) == ["3/large.png"] and "limit of 9,999" in found.bad["3/large.png"]


def test_a_model_that_saw_every_picture_is_told_of(tmp_path: Path) -> None:
    data = photos(tmp_path / "data", {"a": 4, "b": 4}, size=(16, 16))
    trained(tmp_path / "r", str(data), epochs=1, batch_size=8)
    model = load(tmp_path / "r", "cpu")
    found = judge(model, str(data))
    assert found.part == "all" and "include those it was trained on" in found.why
    with pytest.raises(BadData, match=r"its test part has no pictures\. Choose another --part"):
        judge(model, str(data), "test")


def test_what_cannot_be_judged_is_refused(model: Classifier, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--part best: must be one of auto, all, train, validation, test"):
        judge(model, "digits", "best")
    with pytest.raises(NotFound, match="nowhere"):
        judge(model, str(tmp_path / "nowhere"))


def test_evaluate_is_judge(model: Classifier) -> None:
    assert model.evaluate("digits").figures == judge(model, "digits").metrics.figures
    assert open_bundle(model.path).class_names == model.class_names
    assert torch.is_grad_enabled()
