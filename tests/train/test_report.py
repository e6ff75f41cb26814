"""The report that a run leaves: its figures, its mistakes, its options; and what a stopped run leaves."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.made import photos, trained
from vitrine.config.options import Config
from vitrine.config.text import from_dict, read_toml
from vitrine.errors import Stopped
from vitrine.predict.classifier import load
from vitrine.train import report
from vitrine.train.keep import Judged, Keeper
from vitrine.weights.bundle import open_bundle


def text(out: Path) -> str:
    return (out / "report.html").read_text(encoding="utf-8")


def told(out: Path) -> str:
    """The words of the page, without the elements and the style."""
    bare = re.sub(r"<style>.*?</style>|<[^>]+>", " ", text(out), flags=re.DOTALL)
    return " ".join(unescape(bare).split())


def test_the_headline_is_the_test_figure_and_the_run_can_be_run_again(run: Path) -> None:
    best, words = open_bundle(run), told(run)
    top1 = best.metrics["test"]["top1"]
    assert f"{top1.value:.1%}".replace("%", " %") + " of 360 test pictures named rightly" in words
    assert f"95 % interval {100 * top1.low:.1f} to {100 * top1.high:.1f} %" in words
    assert "Vision Transformer on digits" in words and "trained from scratch on 1,077 pictures in 10 classes" in words
    for fact in (best.provenance.data_fingerprint, best.provenance.device, best.provenance.versions["torch"]):
        assert fact in words
    assert f"Dotted: epoch {best.provenance.epoch}" in words


def test_the_curves_are_the_records(run: Path) -> None:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    found = report.charts(lines)
    assert list(found) == ["loss", "accuracy", "learning rate", "gradient norm"]
    assert found["loss"][1].points == tuple((line["epoch"], line["val_loss"]) for line in lines)
    assert text(run).count("<svg") == 4
    assert [curve.points for curve in report.charts([{"epoch": 1, "train_loss": 2.0}])["loss"]] == [((1.0, 2.0),), ()]


def test_every_option_stands_there_and_those_that_differ_come_first(run: Path) -> None:
    config = from_dict(Config, read_toml(run / "config.toml"))
    found = report.options(config)
    assert {one.name for one in found} >= {"optim.lr", "model.resnet.layers", "data.source", "tensorboard"}
    differing = {one.name: (one.value, one.default) for one in found if one.value != one.default}
    assert differing["optim.lr"] == ("0.003", "0.001") and differing["data.source"] == ("digits", "")
    names = re.findall(r"<tr><td><code>([\w.]+)</code>", text(run))
    assert names[: len(differing)] == list(differing) and set(names) == {one.name for one in found}


def test_the_mistakes_are_wrong_and_the_surest_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[report.Report] = []
    monkeypatch.setattr(report, "page", lambda made: kept.append(made) or "page")
    trained(tmp_path / "r", epochs=3)
    (made,) = kept
    assert len(made.mistakes) == report.WORST
    probabilities = [one.probability for one in made.mistakes]
    assert probabilities == sorted(probabilities, reverse=True)
    classifier = load(tmp_path / "r")
    for one in made.mistakes:
        answer = classifier.predict(one.picture)[0]
        assert answer.label == one.said != one.true
        assert answer.probability == pytest.approx(one.probability, abs=1e-4)
    from sklearn.datasets import load_digits

    labels = load_digits(return_X_y=True)[1]
    assert [one.true for one in made.mistakes] == [str(labels[int(one.id.split("/")[1])]) for one in made.mistakes]
    assert made.answers is not None and made.answers.part == "test" and "validation" in made.mistakes_of
    assert int(made.answers.confusion.sum()) == 360
    for i, row in enumerate(made.answers.classes):
        named = int(made.answers.confusion[:, i].sum())
        assert row.precision is None or (row.precision.n == named and row.precision.low <= row.precision.value)


def test_hostile_names_are_text_and_the_same_run_has_the_same_page(tmp_path: Path) -> None:
    names = ["a<script>alert('1')<", 'b"onload="x&amp;']
    data = photos(tmp_path / "data", dict.fromkeys(names, 30), size=(16, 16))
    pages = []
    for out in ("r", "s"):
        trained(tmp_path / out, str(data), epochs=2, batch_size=8)
        # What time and place tell differs.
        pages.append(re.sub(r"<dl>.*?</dl>|<p class=\"eyebrow\">.*?</p>", "", text(tmp_path / out)))
    assert pages[0] == pages[1]
    assert "<script" not in pages[0] and 'onload="' not in pages[0]
    assert all(name in told(tmp_path / "r") for name in names)


def test_a_stopped_run_has_its_curves_and_a_finished_one_is_written_anew(
    tmp_path: Path, signal_at: Callable[..., None]
) -> None:
    signal_at(10)
    with pytest.raises(Stopped):
        trained(tmp_path / "r", epochs=3)
    words = told(tmp_path / "r")
    assert "stopped; the same command goes on" in words and "named rightly" not in words and "Curves" in words
    trained(tmp_path / "r", epochs=3)
    assert "Run of Vitrine, finished" in told(tmp_path / "r") and "named rightly" in told(tmp_path / "r")


def test_a_run_without_a_part_to_judge_by_has_a_page(tmp_path: Path) -> None:
    data = photos(tmp_path / "data", {"a": 4, "b": 4}, size=(16, 16))
    trained(tmp_path / "r", str(data), epochs=1, batch_size=8)
    words = told(tmp_path / "r")
    assert "there was no validation part to choose by" in words.lower() and "Worst mistakes" not in words


def test_damaged_pictures_do_not_shift_the_mistakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture that proves damaged when it is judged has no answer: those behind it keep their own."""
    data = photos(tmp_path / "data", {"a": 80, "b": 80}, size=(16, 16))
    kept: list[Any] = []
    plain = Keeper.judge

    def judge(self: Keeper, model: Any, part: np.ndarray, threshold: float | None = None) -> Judged:
        assert self.pictures.source.paths is not None
        self.pictures.source.paths[int(part[1])].write_bytes(b"no picture")
        self.bad[self.pictures.source.ids[int(part[2])]] = "was damaged before, and is sound again"
        found = plain(self, model, part, threshold)
        kept.append((found, part, self.pictures.source.labels))
        return found

    monkeypatch.setattr(Keeper, "judge", judge)
    trained(tmp_path / "r", str(data), epochs=1, batch_size=8)
    assert kept
    for found, part, labels in kept:
        assert np.array_equal(found.index, np.delete(part, 1))
        assert np.array_equal(found.outputs.label, labels[found.index])


def test_a_picture_that_has_gone_since_is_not_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = photos(tmp_path / "data", {"a": 80, "b": 80}, size=(16, 16))
    plain = report.mistakes

    def gone(keeper: Keeper, judged: Judged) -> list[Any]:
        before = plain(keeper, judged)
        (data / before[0].id).unlink()
        after = plain(keeper, judged)
        assert [one.id for one in after] == [one.id for one in before[1:]]
        return after

    monkeypatch.setattr(report, "mistakes", gone)
    trained(tmp_path / "r", str(data), epochs=1, batch_size=8)
