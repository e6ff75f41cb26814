from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.made import bundle, photo
from tests.models.toys import pictures
from vitrine.config.options import DataConfig, PreprocessConfig
from vitrine.data import loader
from vitrine.data.sources import open_source
from vitrine.errors import BadConfig, BadData, NotFound, UsageError
from vitrine.explain.look import look
from vitrine.figures import panel
from vitrine.images.decode import decode
from vitrine.images.preprocess import preprocess
from vitrine.predict.classifier import Classifier, create, load
from vitrine.results import Prediction
from vitrine.weights.bundle import open_bundle, save


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run folder's model, random, which sees the middle of a picture."""
    save(bundle(), tmp_path / "model" / "model.safetensors")
    return tmp_path / "model"


@pytest.fixture
def model(folder: Path) -> Classifier:
    return load(folder, "cpu")


def rows(found: list[Prediction]) -> list[tuple[str, int, float]]:
    return [(one.label, one.index, one.probability) for one in found]


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_path_bytes_an_image_and_an_array_give_the_same_answer(tmp_path: Path, model: Classifier, mode: str) -> None:
    path = photo(tmp_path / "p.png", mode=mode)
    with Image.open(path) as opened:
        array = np.asarray(opened)
    ways: list[Any] = [path, str(path), path.read_bytes(), Image.open(path), array]
    if mode == "L":
        ways.append(array[..., None])
    tensors = [model.tensor(way) for way in ways]
    assert all(torch.equal(tensor, tensors[0]) for tensor in tensors)
    answers = [rows(model.predict(way)) for way in ways]
    assert all(answer == answers[0] for answer in answers)


def awkward(folder: Path, kind: str) -> Path:
    """A picture that Pillow alone would give otherwise: turned by EXIF, see-through, or of another mode."""
    picture = Image.open(photo(folder / "plain.png", size=(40, 24)))
    if kind == "turned":
        exif = Image.Exif()
        exif[0x0112] = 6
        picture.save(folder / "a.jpg", exif=exif)
        return folder / "a.jpg"
    if kind == "see-through":
        picture.putalpha(Image.linear_gradient("L").resize(picture.size))
    elif kind == "sixteen bits":
        picture = Image.fromarray((np.asarray(picture.convert("L")).astype(np.uint16) << 8) + 255)
    else:
        picture = picture.convert(kind)
    picture.save(folder / "a.png")
    return folder / "a.png"


@pytest.mark.parametrize("kind", ["turned", "see-through", "sixteen bits", "P", "1", "LA"])
def test_an_opened_image_is_read_as_its_file_is(tmp_path: Path, model: Classifier, kind: str) -> None:
    path = awkward(tmp_path, kind)
    assert torch.equal(model.tensor(Image.open(path)), model.tensor(path))


def test_the_answers_are_the_softmax_of_the_model(tmp_path: Path, model: Classifier) -> None:
    path = photo(tmp_path / "p.png")
    with torch.no_grad():
        expected = model.model(model.tensor(path)).softmax(1)[0]
    found = model.predict(path)
    assert [one.probability for one in found] == pytest.approx(sorted(expected.tolist(), reverse=True))
    assert sum(one.probability for one in found) == pytest.approx(1)
    for one in found:
        assert one.label == model.class_names[one.index]
        assert one.probability == pytest.approx(float(expected[one.index]))
    assert model.predict(path, top=1) == found[:1]
    assert list(model.predict_all([path, path], top=2)) == [found[:2]] * 2


def test_what_cannot_be_answered_is_refused(tmp_path: Path, model: Classifier) -> None:
    path = photo(tmp_path / "p.png")
    with pytest.raises(UsageError, match="top = 0: must be at least 1"):
        model.predict(path, top=0)
    with pytest.raises(NotFound, match=r"none\.jpg"):
        model.predict(tmp_path / "none.jpg")
    with pytest.raises(BadData, match="picture"):
        model.predict(b"not a picture")
    (tmp_path / "cut.png").write_bytes(path.read_bytes()[:300])
    with pytest.raises(BadData, match=r"cut\.png"):
        model.predict(tmp_path / "cut.png")
    with Image.open(tmp_path / "cut.png") as opened, pytest.raises(BadData, match="the picture"):
        model.predict(opened)


@pytest.mark.parametrize(
    "array", [np.zeros((4, 4, 3), np.float32), np.zeros((4, 4, 4), np.uint8), np.zeros(4, np.uint8)]
)
def test_an_array_that_is_no_picture_is_refused(model: Classifier, array: np.ndarray) -> None:
    with pytest.raises(BadData, match=r"give uint8 of shape \(H, W\), grey, or \(H, W, 3\), RGB"):
        model.predict(array)


def test_a_model_without_a_head_gives_features_and_no_names(tmp_path: Path) -> None:
    save(bundle(num_classes=0, class_names=()), tmp_path / "m")
    model = load(tmp_path / "m", "cpu")
    assert model.logits(pictures(2, 3, 16, 16)).shape == (2, 16)
    with pytest.raises(UsageError, match=r"m: the model has no head.*--init .*m --out FOLDER` gives it one"):
        model.predict(photo(tmp_path / "p.png"))


def test_prediction_evaluation_and_explanation_see_the_same_tensor(
    tmp_path: Path, model: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, seed in (("a", 1), ("b", 2)):
        photo(tmp_path / "data" / name / "x.jpg", seed, size=(57, 41))
    path = tmp_path / "data" / "a" / "x.jpg"
    seen: list[torch.Tensor] = []
    model.model.register_forward_pre_hook(lambda module, given: seen.append(given[0].clone()))
    model.predict(path)
    model.explain(path)
    source = open_source(DataConfig(source=str(tmp_path / "data")))
    batches = loader.evaluation(
        source, np.array([0]), model.preprocess, source.limits, batch_size=4, on_bad=lambda name, why: None
    )
    seen.append(next(iter(batches))[0])
    direct = torch.from_numpy(preprocess(decode(path), model.preprocess))[None]
    assert len(seen) == 3
    assert all(torch.equal(one, direct) for one in seen)


def test_an_explanation_is_of_what_the_model_saw(tmp_path: Path, model: Classifier) -> None:
    path = photo(tmp_path / "p.png", size=(60, 30))
    found = model.explain(path)
    assert found.picture.shape == (30, 60, 3)
    assert found.rollout.shape == (4, 4) and found.heads.shape == (2, 4, 4)
    assert found.rollout.sum() == pytest.approx(1, abs=1e-5)
    assert rows(list(found.predictions)) == rows(model.predict(path))
    np.testing.assert_array_equal(found.rollout, look(model.model, model.tensor(path)).rollout[0])
    # The shorter side is resized to 17 of which 16 are kept, so the box is nearly 30 x 16 / 17 pixels a side.
    left, top, right, bottom = found.box
    assert right - left == pytest.approx(16 * 60 / 34, abs=0.01) and bottom - top == pytest.approx(16 * 30 / 17)
    assert (left + right) / 2 == pytest.approx(30, abs=1) and (top + bottom) / 2 == pytest.approx(15, abs=1)


def test_an_explanation_can_be_seen_and_saved(tmp_path: Path, model: Classifier) -> None:
    found = model.explain(photo(tmp_path / "p.png"))
    shown = np.asarray(found.overlay())
    assert shown.shape == found.picture.shape and (shown != found.picture).any()
    assert found.save(tmp_path / "out.png") == tmp_path / "out.png"
    with Image.open(tmp_path / "out.png") as figure:
        assert figure.format == "PNG" and min(figure.size) > 100


def test_an_explanation_is_shrunk_before_it_is_drawn(
    tmp_path: Path, model: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = model.explain(photo(tmp_path / "p.png", size=(3000, 1500)))
    assert found.picture.shape == (1500, 3000, 3)
    assert found.overlay().size == (3000, 1500) and found.overlay(500).size == (500, 250)
    drawn: list[tuple[Any, Any]] = []
    monkeypatch.setattr(
        panel, "attention_panel", lambda picture, rollout, heads, box, **_: drawn.append((picture, box))
    )
    found.save(tmp_path / "out.png")
    ((picture, box),) = drawn
    assert picture.shape == (1000, 2000, 3)
    assert box == pytest.approx([edge * 2 / 3 for edge in found.box])


def test_the_limits_are_those_of_the_training_unless_others_are_asked_for(tmp_path: Path) -> None:
    run = {"data": {"source": "x", "max_pixels": 1199, "max_bytes": 10**6}}
    save(replace(bundle(), run=run), tmp_path / "m")
    path = photo(tmp_path / "p.png", size=(40, 30))
    for way in (path, path.read_bytes()):
        with pytest.raises(BadData, match="40 x 30 pixels are more than the limit of 1,199"):
            load(tmp_path / "m", "cpu").predict(way)
        assert load(tmp_path / "m", "cpu", max_pixels=1200).predict(way)
        with pytest.raises(BadData, match="more than the limit of 99"):
            load(tmp_path / "m", "cpu", max_pixels=1200, max_bytes=99).predict(way)
    assert load(tmp_path / "m", "cpu").predict(np.zeros((50, 50), np.uint8))
    with pytest.raises(BadConfig, match="max_bytes = 0"):
        load(tmp_path / "m", "cpu", max_bytes=0)


def test_a_grey_model_explains_a_colour_picture(tmp_path: Path) -> None:
    save(bundle(in_chans=1), tmp_path / "m")
    model = load(tmp_path / "m", "cpu")
    found = model.explain(photo(tmp_path / "p.png"))
    assert model.tensor(photo(tmp_path / "p.png")).shape == (1, 1, 16, 16)
    assert found.picture.shape == (30, 40, 3) and np.ptp(found.picture, axis=2).any()


def test_a_folder_and_its_file_are_the_same_model(folder: Path, tmp_path: Path) -> None:
    path = photo(tmp_path / "p.png")
    by_folder, by_file = load(folder, "cpu"), load(str(folder / "model.safetensors"), "cpu")
    assert rows(by_folder.predict(path)) == rows(by_file.predict(path))
    assert by_folder.class_names == ("a", "b", "c") and by_folder.device == torch.device("cpu")
    assert not by_folder.model.training


def test_a_model_whose_tensors_do_not_fit_is_refused_by_the_name_of_its_file(tmp_path: Path) -> None:
    made = bundle()
    save(replace(made, tensors={n: t for n, t in made.tensors.items() if n != "norm.bias"}), tmp_path / "m")
    with pytest.raises(BadData, match=r"m: the tensors do not fit the model: missing: norm\.bias"):
        load(tmp_path / "m", "cpu")


def test_pictures_are_read_as_the_file_says(tmp_path: Path) -> None:
    path = photo(tmp_path / "p.png")
    settings = PreprocessConfig(size=(16, 16), resize="squash", mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    save(replace(bundle(), preprocess=settings), tmp_path / "m")
    expected = preprocess(Image.open(path), settings)
    np.testing.assert_array_equal(load(tmp_path / "m", "cpu").tensor(path)[0].numpy(), expected)


def test_a_trained_run_answers(run: Path, tmp_path: Path) -> None:
    model = load(run, "cpu")
    assert rows(model.predict(photo(tmp_path / "p.png")))[0][0] in "0123456789"
    assert model.metrics == open_bundle(run).metrics and model.provenance.data == "digits"


def test_a_seed_makes_the_same_network_and_leaves_torchs_random_state() -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    first = create("vit_micro_patch2_8", seed=3, num_classes=10, in_chans=1)
    assert torch.equal(torch.rand(3), expected)
    again, other = (create("vit-micro/2", seed=seed, num_classes=10, in_chans=1) for seed in (3, 4))
    name = "blocks.0.attn.qkv.weight"
    assert torch.equal(first.get_parameter(name), again.get_parameter(name))
    assert not torch.equal(first.get_parameter(name), other.get_parameter(name))
    assert first(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


def test_without_a_seed_torchs_random_state_makes_it() -> None:
    torch.manual_seed(3)
    first, second = create("vit-micro/2"), create("vit-micro/2")
    torch.manual_seed(3)
    again = create("vit-micro/2")
    assert torch.equal(first.patch_embed.proj.weight, again.patch_embed.proj.weight)
    assert not torch.equal(first.patch_embed.proj.weight, second.patch_embed.proj.weight)


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(NotFound, match="Did you mean 'vit_base_patch16_224'"):
        create("vit_bse_patch16_224")
    with pytest.raises(NotFound, match="Did you mean 'num_classes'"):
        create("vit_base_patch16_224", num_clases=3)
