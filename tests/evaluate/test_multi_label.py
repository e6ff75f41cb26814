"""Figures of several classes a picture against scikit-learn, their definition written out, and cases by hand."""

from __future__ import annotations

import json
import math
import time

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, f1_score, precision_score, recall_score

from vitrine.errors import BadData
from vitrine.evaluate import multi_label
from vitrine.evaluate.multi_label import Scores, best_threshold, gather, mean_ap, measure, weighted_precisions


def toy(n: int = 120, K: int = 4, seed: int = 0) -> Scores:
    rng = np.random.default_rng(seed)
    labels = (rng.random((n, K)) < np.linspace(0.5, 0.1, K)).astype(np.uint8)
    logits = (rng.normal(size=(n, K)) + 1.5 * labels - 1).astype(np.float32).round(1)  # rounded: some are equal
    return Scores(logits=logits, labels=labels)


def by_hand() -> Scores:
    """Four pictures, two classes; probabilities 0.9, 0.8, 0.4, 0.1 of the one and 0.7, 0.2, 0.6, 0.3 of the other."""
    chances = np.array([[0.9, 0.7], [0.8, 0.2], [0.4, 0.6], [0.1, 0.3]])
    labels = np.array([[1, 1], [0, 0], [1, 0], [0, 0]], np.uint8)
    return Scores(logits=np.log(chances / (1 - chances)).astype(np.float32), labels=labels)


def test_figures_by_hand() -> None:
    found = measure(by_hand(), ["a", "b"], 0.35)
    values = {name: figure.value for name, figure in found.figures.items()}
    # a: ranked right, wrong, right: (1 + 2 / 3) / 2; b: right first.
    assert values["map"] == pytest.approx((5 / 6 + 1) / 2)
    # In one list: .9 right, .8 wrong, .7 right, .6 wrong, .4 right.
    assert values["micro_ap"] == pytest.approx((1 + 2 / 3 + 3 / 5) / 3)
    # At 0.5: a calls 0 and 1 (TP 1, FP 1, FN 1), b calls 0 and 2 (TP 1, FP 1).
    assert values["macro_f1"] == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert values["micro_f1"] == pytest.approx(4 / 7)
    assert values["exact_match"] == 0.5
    # At 0.35: a calls 0, 1 and 2 as well (TP 2, FP 1).
    assert values["macro_f1_at"] == pytest.approx((4 / 5 + 2 / 3) / 2)
    assert values["micro_f1_at"] == pytest.approx(6 / 8)
    assert values["exact_match_at"] == 0.5
    right = np.array([0.9, 0.7, 0.2, 0.8, 0.4, 0.4, 0.9, 0.7])
    assert values["loss"] == pytest.approx(-np.log(right).mean(), abs=1e-6)
    assert found.threshold == 0.35 and found.confusion == () and found.multi_label
    assert found.majority == 0.5 and found.chance_map == pytest.approx((2 / 4 + 1 / 4) / 2)
    first = found.classes[0]
    assert (first.name, first.n, first.recall.value, first.recall.n) == ("a", 2, 1.0, 2)
    assert first.precision == pytest.approx(2 / 3) and first.f1 == pytest.approx(4 / 5)
    assert first.average_precision is not None and first.average_precision.value == pytest.approx(5 / 6)
    assert all(figure.n == 4 for figure in found.figures.values())
    assert json.loads(json.dumps(found.as_json(), allow_nan=False))["classes"][1]["f1"] == pytest.approx(2 / 3)


@pytest.mark.parametrize("threshold", [0.2, 0.5])
def test_figures_are_those_of_scikit_learn(threshold: float) -> None:
    scores = toy()
    y, p = scores.labels, scores.probabilities()
    found = measure(scores, list("abcd"), threshold)
    called = p >= threshold
    assert found.figures["map"].value == pytest.approx(average_precision_score(y, p, average="macro"))
    assert found.figures["map"].value == pytest.approx(mean_ap(scores))
    assert found.figures["micro_ap"].value == pytest.approx(average_precision_score(y, p, average="micro"))
    for kind in ("macro", "micro"):
        assert found.figures[f"{kind}_f1"].value == pytest.approx(f1_score(y, p >= 0.5, average=kind))
        assert found.figures[f"{kind}_f1_at"].value == pytest.approx(f1_score(y, called, average=kind))
    assert found.figures["exact_match_at"].value == pytest.approx((called == y).all(axis=1).mean())
    np.testing.assert_allclose([row.f1 for row in found.classes], f1_score(y, called, average=None))
    np.testing.assert_allclose([row.recall.value for row in found.classes], recall_score(y, called, average=None))
    np.testing.assert_allclose([row.precision for row in found.classes], precision_score(y, called, average=None))
    for k, row in enumerate(found.classes):
        assert row.average_precision is not None and row.n == row.average_precision.n == y[:, k].sum()
        assert row.average_precision.value == pytest.approx(average_precision_score(y[:, k], p[:, k]))


def test_the_loss_is_torchs() -> None:
    scores = toy()
    wanted = torch.nn.functional.binary_cross_entropy_with_logits(
        torch.from_numpy(scores.logits).double(), torch.from_numpy(scores.labels).double()
    )
    assert measure(scores, list("abcd")).figures["loss"].value == pytest.approx(float(wanted))
    extreme = Scores(logits=np.array([[900.0, -900.0]], np.float32), labels=np.array([[0, 0]], np.uint8))
    assert extreme.losses().tolist() == [450.0] and extreme.probabilities().tolist() == [[1.0, 0.0]]


def test_weights_are_as_so_many_pictures() -> None:
    scores = toy(40, 1)
    y, z = scores.labels[:, 0], scores.logits[:, 0]
    counts = np.random.default_rng(1).multinomial(40, np.full(40, 1 / 40), size=20).astype(float)
    found = weighted_precisions(y, z, counts)
    for row, value in zip(counts.astype(int), found, strict=True):
        assert value == pytest.approx(average_precision_score(np.repeat(y, row), np.repeat(z, row)))
    assert np.isnan(weighted_precisions(y, z, (y == 0)[None].astype(float))).all()


def test_intervals_are_those_of_a_bootstrap_of_the_pictures() -> None:
    scores = toy(150, 3)
    found = measure(scores, list("abc"), 0.4)
    assert found == measure(scores, list("abc"), 0.4)
    rng = np.random.default_rng(7)
    drawn: dict[str, list[float]] = {"map": [], "micro_ap": [], "macro_f1_at": [], "micro_f1_at": []}
    for _ in range(250):
        rows = rng.integers(0, 150, 150)
        y, p = scores.labels[rows], scores.probabilities()[rows]
        drawn["map"].append(average_precision_score(y, p, average="macro"))
        drawn["micro_ap"].append(average_precision_score(y, p, average="micro"))
        drawn["macro_f1_at"].append(f1_score(y, p >= 0.4, average="macro"))
        drawn["micro_f1_at"].append(f1_score(y, p >= 0.4, average="micro"))
    for name, values in drawn.items():
        low, high = np.quantile(values, (0.025, 0.975))
        assert found.figures[name].low == pytest.approx(low, abs=0.035), name
        assert found.figures[name].high == pytest.approx(high, abs=0.035), name
    assert all(figure.low <= figure.value <= figure.high for figure in found.figures.values())


def test_the_portions_of_a_bootstrap_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = measure(toy(50, 2), ["a", "b"], 0.5)
    monkeypatch.setattr(multi_label, "PORTION", 50 * 2 * 7)
    small = measure(toy(50, 2), ["a", "b"], 0.5)
    for name, figure in whole.figures.items():
        assert small.figures[name].as_json() == pytest.approx(figure.as_json())


def test_the_threshold_is_the_best_there_is() -> None:
    for seed in range(5):
        scores = toy(60, 3, seed)
        p, y = scores.probabilities(), scores.labels
        found = best_threshold(scores)
        best = max(f1_score(y, p >= value, average="micro") for value in np.unique(p))
        assert f1_score(y, p >= found, average="micro") == pytest.approx(best)
        assert found not in p
        assert measure(scores, list("abc")).threshold == found
    # Right from 0.7 on and from 0.4 on: midway between the last that is called and the first that is not.
    chances = np.array([[0.9], [0.8], [0.3], [0.1]])
    apart = Scores(
        logits=np.log(chances / (1 - chances)).astype(np.float32), labels=np.array([[1], [1], [0], [0]], np.uint8)
    )
    assert best_threshold(apart) == pytest.approx(0.55)
    every = Scores(logits=np.zeros((3, 1), np.float32), labels=np.ones((3, 1), np.uint8))
    assert 0 < best_threshold(every) < 0.5


def test_a_class_without_pictures_counts_for_nothing() -> None:
    scores = toy(80, 3)
    scores.labels[:, 1] = 0
    found = measure(scores, list("abc"), 0.5)
    row = found.classes[1]
    assert row.average_precision is None and row.n == 0 and row.f1 == 0.0
    there = measure(Scores(logits=scores.logits[:, [0, 2]], labels=scores.labels[:, [0, 2]]), ["a", "c"], 0.5)
    assert found.figures["map"].as_json() == pytest.approx(there.figures["map"].as_json())
    assert found.figures["macro_f1"].value == pytest.approx(there.figures["macro_f1"].value)
    assert found.chance_map == there.chance_map
    quiet = Scores(logits=np.full((2, 1), -9, np.float32), labels=np.array([[1], [0]], np.uint8))
    never = measure(quiet, ["a"], 0.5)
    assert never.classes[0].precision is None and never.figures["micro_f1"].value == 0.0


def test_what_cannot_be_measured() -> None:
    none = Scores(logits=np.zeros((3, 2), np.float32), labels=np.zeros((3, 2), np.uint8))
    with pytest.raises(BadData, match="none of the 3 pictures has a class"):
        measure(none, ["a", "b"])
    assert mean_ap(none) == 0.0
    with pytest.raises(BadData, match="1 class names for 4 outputs"):
        measure(toy(), ["a"])


def test_gathering_keeps_the_order_and_refuses_what_does_not_fit() -> None:
    images, labels = torch.arange(6.0).reshape(6, 1, 1, 1), torch.eye(6, dtype=torch.uint8)[:, :2]

    def answer(pictures: torch.Tensor) -> torch.Tensor:
        assert torch.is_inference_mode_enabled()
        return pictures.flatten(1).expand(-1, 2).to(torch.bfloat16)

    found = gather(answer, zip(images.split(4), labels.split(4), strict=True))
    assert found.logits[:, 0].tolist() == [0, 1, 2, 3, 4, 5] and np.array_equal(found.labels, labels.numpy())
    with pytest.raises(BadData, match="holds no picture"):
        gather(answer, [])
    with pytest.raises(BadData, match=r"\(6, 2\) for labels of shape \(6, 3\)"):
        gather(answer, [(images, torch.zeros(6, 3))])
    with pytest.raises(BadData, match="1 of 6 pictures are not finite"):
        gather(lambda pictures: answer(torch.where(pictures == 3, math.nan, pictures)), [(images, labels)])


def test_many_pictures_and_classes_are_measured_in_seconds() -> None:
    began = time.process_time()
    measure(toy(2000, 40), [str(k) for k in range(40)])
    assert time.process_time() - began < 30
