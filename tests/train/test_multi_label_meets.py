"""Several classes a picture together with the rest of training: report, signs, modes, teachers, recipes, starts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.made import MARKS, bundle, marks, photo, told_to_nobody
from tests.train.test_plan import facts
from tests.train.test_report import told
from tests.weights.stand_in_hub import Hub
from vitrine.config.options import Config
from vitrine.config.recipes import RECIPES
from vitrine.errors import BadConfig, UsageError
from vitrine.evaluate.multi_label import average_precision
from vitrine.predict.classifier import load
from vitrine.train import features, follow, modes, plan, report
from vitrine.train.distill import Teacher, matched
from vitrine.train.observer import setting
from vitrine.train.signs import RULES, signs
from vitrine.weights.bundle import open_bundle
from vitrine.weights.bundle import save as save_bundle
from vitrine.weights.exporting import export
from vitrine.weights.starts import ON_CPU

TUNED: dict[str, Any] = {**{name: value for name, value in MARKS.items() if name != "model"}, "epochs": 3}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(marks(tmp_path_factory.mktemp("data"), 120))


def test_the_report_has_the_figures_of_several_classes(marked: Path) -> None:
    best, words = open_bundle(marked), told(marked)
    found = best.metrics["test"]["map"]
    assert f"{100 * found.value:.1f} % mean average precision on {found.n} test pictures".replace(" ", "") in (
        words.replace("\u00a0", "").replace(" ", "")
    )
    assert f"95 % interval {100 * found.low:.1f} to" in words and "a guess that looks at nothing would reach" in words
    assert f"called from the probability {best.threshold:.3g} on" in words
    assert "in 2 classes, several a picture or none" in words
    assert "average precision F1 precision recall" in words and "disc" in words and "square" in words
    for absent in ("accuracy", "named rightly", "taken for what", "Largest confusions"):
        assert absent not in words
    lines = [json.loads(line) for line in (marked / "metrics.jsonl").read_text().splitlines()]
    charts = report.charts(lines, report.SEVERAL)
    assert charts["mean average precision"][0].points == tuple((one["epoch"], one["val_map"]) for one in lines)
    assert all(curve.points for curves in charts.values() for curve in curves)
    assert (marked / "report.html").read_text().count("<svg") == 5


def test_the_mistakes_name_all_classes_and_the_one_that_is_surest_wrong(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[report.Report] = []
    monkeypatch.setattr(report, "page", lambda made: kept.append(made) or "page")
    made = told_to_nobody(data, tmp_path / "r", **{**MARKS, "epochs": 1})
    (page,), threshold = kept, made.bundle.threshold
    labels = dict(line.split(",") for line in Path(data).read_text().splitlines()[1:])
    assert len(page.mistakes) > 3 and "validation pictures with a class wrong" in page.mistakes_of
    off, classifier = [], load(tmp_path / "r")
    for one in page.mistakes:
        has = set(filter(None, labels[one.id].split("|")))
        given = {answer.label: answer.probability for answer in classifier.predict(one.picture, top=2)}
        called = {name for name, probability in given.items() if probability >= threshold}
        assert (set(one.true.split(", ")), set(one.said.split(", "))) == (has or {""}, called or {""})
        wrong = {name: abs(given[name] - (name in has)) for name in has ^ called}
        assert wrong[one.of] == max(wrong.values()) and one.probability == pytest.approx(given[one.of], abs=1e-4)
        off.append(wrong[one.of])
    assert off == sorted(off, reverse=True)


def records(value: float, epochs: int = 20, **more: Any) -> list[dict[str, Any]]:
    return [
        {"epoch": epoch, "epochs": epochs, "train_loss": 0.7 * 0.9**epoch, "train_exact_match": 0.5, "val_loss": 0.3,
         "val_map": value, "val_exact_match": 0.2, "val_n": 400, **more}
        for epoch in range(1, epochs + 1)
    ]  # fmt: skip


def test_signs_measure_by_mean_average_precision_and_the_share_of_a_class() -> None:
    labels = np.zeros((400, 3), np.uint8)
    labels[:40, 0], labels[:120, 1] = 1, 1
    config = Config(multi_label=True, loss="bce", label_smoothing=0.0)
    known = setting(config, labels, 10)
    assert known.several and known.majority == pytest.approx(0.2)  # the class without a picture does not count
    said = signs(records(0.22), known)
    assert set(said) == {"stuck"} and "best mean average precision of a validation is 22.0%" in said["stuck"]
    assert "a guess that looks at nothing gives 20.0%" in said["stuck"]
    assert signs(records(0.3), known) == {}
    few = setting(config, labels[:50], 10)
    assert "the share with all classes right is known to" in signs(records(0.9), few)["validation part"]
    assert RULES["never predicted"](records(0.9), known) == ""
    assert setting(config, np.zeros((9, 3), np.uint8), 10).majority == 0


def test_over_fitting_is_seen_by_mean_average_precision() -> None:
    known = setting(Config(multi_label=True, loss="bce"), np.eye(400, 4, dtype=np.uint8), 10)
    run = records(0.8, 30)
    for one in run:
        one["val_loss"] = 0.3 if one["epoch"] < 6 else 0.3 + 0.03 * (one["epoch"] - 5)
    assert "over-fitting" in signs(run, known)
    for one in run:
        one["val_map"] = min(0.99, 0.5 + 0.02 * one["epoch"])
    assert "over-fitting" not in signs(run, known)


def test_a_guess_that_looks_at_nothing_reaches_the_share() -> None:
    labels = np.array([1, 0, 0, 1, 0, 0, 0, 0], np.uint8)
    assert average_precision(labels, np.zeros(8)) == pytest.approx(0.25)


def test_teachers_are_followed_where_a_picture_has_one_class(data: str, marked: Path, tmp_path: Path) -> None:
    options = {**MARKS, "distill": {"kind": "soft", "teacher": str(marked)}}
    with pytest.raises(UsageError, match=r"picture of the data may have several classes.*Leave --distill\.kind"):
        told_to_nobody(data, tmp_path / "r", **options)
    assert not (tmp_path / "r").exists()
    several = Teacher(path="T", bundle=open_bundle(marked), hash="", order=(0, 1))
    with pytest.raises(UsageError, match="T: it answers with several classes a picture, and the data has one"):
        matched(several, ("disc", "square"))


def test_hidden_patches_are_learnt_whatever_the_labels(data: str, tmp_path: Path) -> None:
    made = told_to_nobody(data, tmp_path / "masked", **{**MARKS, "epochs": 1}, task="masked_patches")
    assert not made.bundle.multi_label and made.bundle.class_names == () and made.test is None
    tuned = told_to_nobody(data, tmp_path / "tuned", **{**TUNED, "epochs": 1}, init=str(tmp_path / "masked"))
    assert tuned.bundle.multi_label and "map" in tuned.bundle.metrics["validation"]
    with pytest.raises(UsageError, match="--multi-label True: no labels are learnt here"):
        plan.decide(facts(class_names=()), {"task": "masked_patches", "multi_label": True})


def test_a_head_learns_from_features_what_it_learns_from_pictures(
    data: str, marked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = tmp_path / "start.safetensors"
    save_bundle(replace(open_bundle(marked), class_names=("a", "b")), start)  # so that the head begins anew
    options = {**TUNED, "mode": "head", "init": str(start), "class_weights": "balanced"}
    once = told_to_nobody(data, tmp_path / "once", **options)
    monkeypatch.setattr(modes, "looks_once", lambda config: False)
    every = told_to_nobody(data, tmp_path / "every", **options)
    assert once.bundle.multi_label and once.bundle.metrics["validation"]["map"].value > 0.8
    for name, tensor in open_bundle(tmp_path / "every" / "last.safetensors").tensors.items():
        found = open_bundle(tmp_path / "once" / "last.safetensors").tensors[name]
        torch.testing.assert_close(found, tensor, atol=1e-4, rtol=1e-3)
    assert every.bundle.multi_label


def test_an_adapter_knows_that_a_picture_may_have_several_classes(data: str, marked: Path, tmp_path: Path) -> None:
    made = told_to_nobody(data, tmp_path / "r", **TUNED, mode="lora", init=str(marked))
    whole, adapter = load(tmp_path / "r"), load(tmp_path / "r" / "adapter")
    assert whole.multi_label and adapter.multi_label and adapter.threshold == whole.threshold == made.bundle.threshold
    assert adapter.threshold != 0.5
    picture = Path(data).parent / "0.png"
    for found, wanted in zip(adapter.predict(picture), whole.predict(picture), strict=True):
        assert found.label == wanted.label and found.probability == pytest.approx(wanted.probability, abs=1e-4)


def test_every_recipe_takes_sigmoids_and_says_what_it_changes() -> None:
    for name, recipe in RECIPES.items():
        if recipe.stage != "pre-train" or {"task", "distill"} & recipe.options.keys():
            continue
        config, said = follow.decide(facts(mean_share=0.1, photographs=True), {"recipe": name})
        alone, _ = follow.decide(facts(photographs=True), {"recipe": name})
        assert config.multi_label and config.label_smoothing == 0
        assert config.loss == ("bce" if alone.loss == "cross_entropy" else alone.loss)
        changed = "loss: cross_entropy \N{RIGHTWARDS ARROW} bce: a picture may have several classes"
        assert (changed in said) == (alone.loss == "cross_entropy")
        assert any("label_smoothing: " in line for line in said) == (alone.label_smoothing > 0)
        assert config.model.head_bias == (alone.model.head_bias or -2.2)
        assert replace(config.model, head_bias=0.0) == replace(alone.model, head_bias=0.0)
        assert config.optim == alone.optim and config.augment == alone.augment


def test_what_is_given_stands_above_what_a_recipe_becomes() -> None:
    given = {"recipe": "deit", "loss": "sigmoid", "label_smoothing": 0.1}
    config, said = follow.decide(facts(mean_share=0.1, photographs=True), given)
    assert (config.loss, config.label_smoothing) == ("sigmoid", 0.1)
    assert not any(line.startswith(("loss: ", "label_smoothing: ")) for line in said)
    with pytest.raises(BadConfig, match="loss = 'cross_entropy': must be bce or sigmoid"):
        follow.decide(facts(mean_share=0.1, photographs=True), {**given, "loss": "cross_entropy"})


def test_photographs_of_several_classes_begin_from_the_model_that_the_hub_has(there: Hub, tmp_path: Path) -> None:
    export(bundle(), "timm", tmp_path / "timm")
    there.add(ON_CPU[0].removeprefix("hf://"), {p.name: p.read_bytes() for p in (tmp_path / "timm").iterdir()})
    lines = ["path,labels"]
    for i in range(40):
        photo(tmp_path / "data" / f"{i}.png", i, (60, 60))
        lines.append(f"{i}.png,{('cat', 'dog', 'cat|dog', '')[i % 4]}")
    (tmp_path / "data" / "set.csv").write_text("\n".join(lines) + "\n")
    made = told_to_nobody(str(tmp_path / "data" / "set.csv"), tmp_path / "r", **{**TUNED, "epochs": 1})
    assert made.bundle.provenance.init.startswith(ON_CPU[0]) and made.bundle.multi_label
    assert made.bundle.class_names == ("cat", "dog")


def test_an_example_of_features_has_rows_of_labels_where_the_data_has() -> None:
    config = Config(multi_label=True, loss="bce", label_smoothing=0.0, model=bundle().model, batch_size=4)
    assert features.example(config).labels.shape == (4, 3)
    assert features.example(replace(config, multi_label=False)).labels.shape == (4,)
