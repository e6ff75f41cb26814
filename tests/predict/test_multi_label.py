"""Several classes a picture, answered: what is named, shown, judged, and refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.made import bundle, photo, photos
from vitrine.__main__ import main
from vitrine.config.architecture import ResNetConfig
from vitrine.errors import NotFound, UsageError
from vitrine.predict.classifier import Classifier, load
from vitrine.predict.judge import judge
from vitrine.weights import bundle as bundles

Told = pytest.CaptureFixture[str]


@pytest.fixture
def model(marked: Path) -> Classifier:
    return load(marked, "cpu")


@pytest.fixture
def data(marked: Path) -> Path:
    return marked.parent / "data"


def listed(data: Path) -> dict[str, set[str]]:
    rows = [line.split(",") for line in (data / "marks.csv").read_text().splitlines()[1:]]
    return {name: set(filter(None, names.split("|"))) for name, names in rows}


def first_with(data: Path, wanted: set[str]) -> Path:
    return data / next(name for name, names in listed(data).items() if names == wanted)


@pytest.mark.parametrize("wanted", [{"square", "disc"}, {"square"}, {"disc"}, set()])
def test_each_class_is_answered_by_itself(model: Classifier, data: Path, wanted: set[str]) -> None:
    picture = first_with(data, wanted)
    found = model.predict(picture)
    logits = model.logits(model.tensor(picture))[0].double()
    assert [one.probability for one in found] == pytest.approx(sorted(logits.sigmoid().tolist(), reverse=True))
    assert [model.class_names[one.index] for one in found] == [one.label for one in found]
    assert {one.label for one in model.called(found)} == wanted


def test_all_that_reach_the_threshold_are_given(model: Classifier, data: Path) -> None:
    both = first_with(data, {"square", "disc"})
    assert len(model.predict(both, top=1)) == 2
    strict = replace(model, threshold=1 - 1e-9)
    assert len(strict.predict(both, top=1)) == 1 and strict.called(strict.predict(both)) == []
    single = replace(model, multi_label=False)
    found = single.predict(both)
    assert sum(one.probability for one in found) == pytest.approx(1) and single.called(found) == found[:1]


def test_predict_in_words(marked: Path, model: Classifier, data: Path, capsys: Told) -> None:
    pictures = [str(first_with(data, wanted)) for wanted in ({"square", "disc"}, {"square"}, set())]
    assert main(["predict", str(marked), *pictures, "--device", "cpu"]) == 0
    both, one, none = capsys.readouterr().out.splitlines()
    limit = f"{100 * model.threshold:.1f} %"
    assert "square" in both and "disc" in both and "below" not in both
    assert one.split(": ")[1].startswith("square ") and f"; below {limit}: disc " in one
    assert f": none of the classes, which begin at {limit}; below {limit}: " in none


def test_predict_as_json(marked: Path, model: Classifier, data: Path, capsys: Told) -> None:
    pictures = [str(first_with(data, wanted)) for wanted in ({"square"}, set())]
    assert main(["predict", str(marked), *pictures, "--json", "--device", "cpu"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["threshold"] == model.threshold
    one, none = found["results"]
    assert [label["label"] for label in one["labels"]] == ["square"] and none["labels"] == []
    assert set(one["labels"][0]) == {"label", "index", "probability"}
    assert len(one["predictions"]) == len(none["predictions"]) == 2


def test_the_figures_of_the_test_part_are_those_of_the_run(model: Classifier, data: Path) -> None:
    found = judge(model, str(data / "marks.csv"))
    assert found.part == "test" and found.metrics.threshold == model.threshold
    stored = model.metrics["test"]
    assert found.metrics.figures.keys() == stored.keys()
    for name, figure in found.metrics.figures.items():
        assert figure.value == pytest.approx(stored[name].value, abs=1e-5) and figure.n == stored[name].n
    whole = model.evaluate(data / "marks.csv", "all")
    names = listed(data)
    right = [{one.label for one in model.called(model.predict(data / name))} == names[name] for name in names]
    assert whole.figures["exact_match_at"].value == pytest.approx(np.mean(right))


def test_evaluate_in_words_and_as_json(marked: Path, data: Path, capsys: Told) -> None:
    words = ["evaluate", str(marked), str(data / "marks.csv"), "--device", "cpu"]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert said.startswith("mean average precision ") and "all classes right, from 0.5 on" in said
    assert "average precision, %" in said and "confusion" not in said and "top-1" not in said
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {"map", "micro_ap", "macro_f1", "micro_f1_at", "exact_match", "loss", "threshold"} <= found.keys()
    assert "confusion" not in found and found["classes"][0]["average_precision"]["n"] == found["classes"][0]["n"]
    assert main([*words, "--confusion", "c.png"]) == 2
    assert "none is taken for another" in capsys.readouterr().err
    assert main(["info", str(marked)]) == 0
    said = capsys.readouterr().out
    assert "a picture may have several classes" in said and "test: mean average precision" in said


def test_data_of_the_other_kind_is_refused(model: Classifier, run: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="a picture has one class, and the model may name several"):
        judge(model, str(photos(tmp_path / "one", {"disc": 2, "square": 2})))
    single = replace(load(run, "cpu"), class_names=("disc", "square", *"23456789"))
    with pytest.raises(UsageError, match="the model names one"):
        judge(single, str(data / "marks.csv"))


def test_any_class_is_explained(model: Classifier, marked: Path, data: Path, tmp_path: Path, capsys: Told) -> None:
    picture = first_with(data, {"square"})
    found = model.explain(picture, target="disc")
    assert [one.label for one in found.predictions] == ["disc", "square"]
    assert [one.label for one in model.explain(picture).predictions] == ["square", "disc"]
    with pytest.raises(NotFound, match=r"'disk': the model has no such class\. Did you mean 'disc'"):
        model.explain(picture, target="disk")
    png = str(tmp_path / "look.png")
    assert main(["explain", str(marked), str(picture), "--target", "disc", "--out", png, "--device", "cpu"]) == 0
    told = capsys.readouterr()
    assert f"{picture}: disc " in told.out and "the same for every class" in told.err
    with Image.open(png) as drawn:
        assert drawn.format == "PNG"


def test_the_map_of_a_resnet_is_that_of_the_class_asked_for(tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "family": "resnet", "resnet": ResNetConfig(layers=(1, 1, 1, 1)), "img_size": 64, "class_token": False,
        "global_pool": "norm_then_avg",
    }  # fmt: skip
    bundles.save(replace(bundle(**options), multi_label=True), tmp_path / "model.safetensors")
    model = load(tmp_path / "model.safetensors", "cpu")
    picture = photo(tmp_path / "a.png")
    maps = {name: model.explain(picture, target=name).rollout for name in "abc"}
    logits = model.logits(model.tensor(picture))[0].tolist()
    assert [float(maps[name].sum()) for name in "abc"] == pytest.approx(logits, abs=1e-3)
    assert not np.allclose(maps["a"], maps["b"])
