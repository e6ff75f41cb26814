"""Every figure against its definition written out slowly, and the corners: no picture, one class, ties."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping

import numpy as np
import pytest

from vitrine.errors import BadData
from vitrine.evaluate import metrics
from vitrine.evaluate.metrics import bin_of, calibration, expected_calibration_error, measure, share
from vitrine.evaluate.outputs import rank_of_label, reduce
from vitrine.results import Figure

RNG = np.random.default_rng(0)


def toy(n: int = 200, K: int = 7) -> tuple[np.ndarray, np.ndarray, list[str]]:
    labels = RNG.integers(0, K, n)
    logits = RNG.normal(size=(n, K)).astype(np.float32)
    logits[np.arange(n), labels] += 1.5
    return logits, labels, [f"class {i}" for i in range(K)]


def figures(logits: np.ndarray, labels: np.ndarray, names: list[str]) -> Mapping[str, Figure]:
    return measure(reduce(logits, labels), names).figures


def test_top1_top5_and_loss_by_hand() -> None:
    logits, labels, names = toy()
    found = measure(reduce(logits, labels), names).figures
    top1, top5, losses = 0, 0, []
    for row, label in zip(logits.astype(float).tolist(), labels.tolist(), strict=True):
        order = sorted(range(7), key=lambda i: -row[i])
        top1 += order[0] == label
        top5 += label in order[:5]
        losses.append(math.log(sum(math.exp(x) for x in row)) - row[label])
    assert found["top1"].value == top1 / 200
    assert found["top5"].value == top5 / 200
    mean = sum(losses) / 200
    assert found["loss"].value == pytest.approx(mean, abs=1e-12)
    error = math.sqrt(sum((x - mean) ** 2 for x in losses) / 199 / 200)
    assert found["loss"].high == pytest.approx(mean + 1.959964 * error, abs=1e-9)
    assert found["loss"].low == pytest.approx(mean - 1.959964 * error, abs=1e-9)
    assert all(figure.n == 200 for figure in found.values())
    assert all(figure.low <= figure.value <= figure.high for figure in found.values())


@pytest.mark.parametrize(("hits", "n"), [(0, 5), (5, 5), (3, 10), (354, 360)])
def test_wilson_interval_by_its_formula(hits: int, n: int) -> None:
    figure, p, z = share(hits, n), hits / n, 1.9599639845400545
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    margin = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    assert (figure.value, figure.n) == (p, n)
    assert figure.low == pytest.approx(middle - margin, abs=1e-12)
    assert figure.high == pytest.approx(middle + margin, abs=1e-12)


def test_top5_only_above_five_classes() -> None:
    assert "top5" not in figures(*toy(K=5))
    assert "top5" in figures(*toy(K=6))


def slow_ece(confidence: np.ndarray, correct: np.ndarray) -> float:
    """Equation 3 of arXiv:1706.04599, bin by bin."""
    total = 0.0
    for m in range(1, 16):
        inside = [i for i, c in enumerate(confidence) if (m - 1) / 15 < c <= m / 15]
        if inside:
            accuracy = sum(correct[i] for i in inside) / len(inside)
            mean = sum(confidence[i] for i in inside) / len(inside)
            total += len(inside) / len(confidence) * abs(accuracy - mean)
    return total


def test_ece_by_its_equation_with_edges_in_the_lower_bin() -> None:
    confidence = np.concatenate([RNG.random(300), np.array([1.0, 0.2, 0.6, 3 / 15, 1 / 15])])
    correct = (RNG.random(305) < confidence**2).astype(float)
    assert expected_calibration_error(confidence, correct) == pytest.approx(slow_ece(confidence, correct), abs=1e-12)
    assert bin_of(np.array([0.0, 0.1, 0.2, 0.21, 0.6, 1.0])).tolist() == [0, 1, 2, 3, 8, 14]
    assert expected_calibration_error(np.ones(4), np.ones(4)) == 0
    assert expected_calibration_error(np.ones(4), np.zeros(4)) == 1


def test_ece_of_measure_is_that_of_the_softmax() -> None:
    logits, labels, names = toy()
    exponents = np.exp(logits.astype(np.float64))
    confidence = (exponents / exponents.sum(1, keepdims=True)).max(1)
    correct = (logits.argmax(1) == labels).astype(float)
    assert measure(reduce(logits, labels), names).figures["ece"].value == pytest.approx(
        slow_ece(confidence, correct), abs=1e-12
    )


def test_the_bootstrap_is_seeded_and_resamples_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    confidence = RNG.random(150)
    correct = RNG.random(150) < confidence**3
    found = calibration(confidence, correct)
    assert found == calibration(confidence, correct)
    rng, values = np.random.default_rng(99), []
    for _ in range(1000):
        drawn = rng.integers(0, 150, 150)
        values.append(slow_ece(confidence[drawn], correct[drawn]))
    assert found.low == pytest.approx(np.quantile(values, 0.025), abs=0.012)
    assert found.high == pytest.approx(np.quantile(values, 0.975), abs=0.012)
    monkeypatch.setattr(metrics, "PORTION", 150 * 7)
    assert calibration(confidence, correct).high == pytest.approx(found.high, abs=1e-12)


def test_the_interval_of_ece_holds_the_value_of_a_well_calibrated_model() -> None:
    confidence = RNG.random(2000)
    found = calibration(confidence, RNG.random(2000) < confidence)
    assert found.low <= found.value <= found.high < 0.08


def test_classes_confusion_and_majority_by_hand() -> None:
    labels = np.array([0, 0, 0, 1, 1, 3])
    answers = np.array([0, 0, 1, 1, 0, 1])
    found = measure(reduce(np.eye(4, dtype=np.float32)[answers], labels), ["a", "b", "c", "d"])
    assert found.confusion == ((2, 1, 0, 0), (1, 1, 0, 0), (0, 0, 0, 0), (0, 1, 0, 0))
    assert found.majority == 0.5
    assert [row.name for row in found.classes] == ["a", "b", "c", "d"]
    assert [row.n for row in found.classes] == [3, 2, 0, 1]
    assert [row.recall.value for row in found.classes] == [2 / 3, 1 / 2, 0.0, 0.0]
    assert [row.precision for row in found.classes] == [pytest.approx(2 / 3), pytest.approx(1 / 3), None, None]
    empty = found.classes[2].recall
    assert (empty.low, empty.high, empty.n) == (0.0, 1.0, 0)
    json.dumps(found.as_json(), allow_nan=False)


def test_classes_agree_with_scikit_learn() -> None:
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    logits, labels, names = toy()
    found, predicted = measure(reduce(logits, labels), names), logits.argmax(1)
    precision, recall, _, n = precision_recall_fscore_support(labels, predicted, labels=range(7))
    assert np.array_equal(found.confusion, confusion_matrix(labels, predicted, labels=range(7)))
    assert [row.n for row in found.classes] == n.tolist()
    np.testing.assert_allclose([row.recall.value for row in found.classes], recall)
    np.testing.assert_allclose([row.precision for row in found.classes], precision)


def test_as_many_classes_as_pictures_and_narrow_labels_give_no_warning() -> None:
    outputs = reduce(np.eye(300, dtype=np.float32)[:250], np.arange(250, dtype=np.int16))
    found = measure(outputs, [str(i) for i in range(300)])
    assert found.top1.value == 1
    assert np.trace(np.array(found.confusion)) == 250


def test_one_picture_and_one_class() -> None:
    found = measure(reduce(np.zeros((1, 1), np.float32), np.array([0])), ["only"])
    assert found.top1.value == 1
    assert found.figures["loss"].as_json() == {"value": 0.0, "low": 0.0, "high": 0.0, "n": 1}
    assert math.copysign(1, found.figures["loss"].value) == 1


def test_equal_logits_count_for_the_first_class() -> None:
    assert rank_of_label(np.zeros((7, 7)), np.arange(7)).tolist() == list(range(7))
    found = figures(np.zeros((7, 7)), np.arange(7), list("abcdefg"))
    assert found["top1"].value == pytest.approx(1 / 7)
    assert found["top5"].value == pytest.approx(5 / 7)


def test_very_large_logits_do_not_overflow() -> None:
    found = figures(np.array([[1e4, -1e4], [1e4, -1e4]], np.float32), np.array([0, 1]), ["a", "b"])
    assert found["loss"].value == pytest.approx(1e4)
    assert found["ece"].value == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("logits", "labels", "names", "message"),
    [
        (np.zeros((0, 2)), np.zeros(0, int), ["a", "b"], "0 pictures"),
        (np.zeros((2, 2)), np.zeros(2, int), ["a"], "1 class names for 2 outputs"),
        (np.zeros((2, 2)), np.array([0, 2]), ["a", "b"], "label 2 .* 0 to 1"),
        (np.zeros((2, 2)), np.array([0, -1]), ["a", "b"], "label -1"),
        (np.array([[0, np.nan], [0, 1]]), np.array([0, 1]), ["a", "b"], "1 of 2 pictures are not finite"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    logits: np.ndarray, labels: np.ndarray, names: list[str], message: str
) -> None:
    with pytest.raises(BadData, match=message):
        measure(reduce(logits, labels), names)


def test_ten_thousand_pictures_of_a_hundred_classes_take_seconds_only() -> None:
    start = time.process_time()
    figures(*toy(10_000, 100))
    assert time.process_time() - start < 5
