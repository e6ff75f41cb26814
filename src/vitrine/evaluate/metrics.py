"""From a model's answers to figures with 95 % intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from vitrine.errors import BadData
from vitrine.evaluate.outputs import Outputs
from vitrine.results import ClassFigures, Figure, Metrics

CALIBRATION_BINS = 15
RESAMPLES = 1000
# The resamples are drawn in portions of about this many indices, which bounds the memory they take.
PORTION = 2_000_000


def measure(outputs: Outputs, class_names: Sequence[str]) -> Metrics:
    """top1, top5 (above five classes), loss and ece with 95 % intervals; every class; the confusion matrix.

    top1, top5 and the recalls have Wilson intervals, loss (mean cross-entropy, in nats) the normal
    approximation of a mean, ece the bootstrap of `expected_calibration_error`. A class without a picture
    has recall 0 in [0, 1] with n = 0: nothing is known. Precision is None for a class never predicted.

    Raises `BadData` for no picture, for names that do not fit the outputs, and for outputs that are not finite.
    """
    _check(outputs, class_names)
    n, K = len(outputs), outputs.num_classes
    confusion = count_confusions(outputs.label, outputs.predicted, K)
    figures = {"top1": share(int(outputs.correct.sum()), n)}
    if K > 5:
        figures["top5"] = share(int((outputs.rank < 5).sum()), n)
    figures["loss"] = mean_loss(outputs.log_probability)
    figures["ece"] = calibration(outputs.confidence, outputs.correct)
    return Metrics(
        figures=figures,
        classes=_class_rows(confusion, class_names),
        confusion=tuple(tuple(row) for row in confusion.tolist()),
        majority=float(confusion.sum(axis=1).max() / n),
    )


def _check(outputs: Outputs, class_names: Sequence[str]) -> None:
    n, K = len(outputs), outputs.num_classes
    if n == 0:
        raise BadData("there are 0 pictures: nothing can be measured. Name data that has some.")
    if len(class_names) != K:
        raise BadData(f"{len(class_names)} class names for {K} outputs of the model: the numbers must be equal.")
    broken = int((~np.isfinite(outputs.log_probability)).sum())
    if broken:
        raise BadData(
            f"the outputs for {broken} of {n} pictures are not finite: the model's weights are damaged, "
            "or the precision is too low. Try fp32, or another model file."
        )


def share(hits: int, n: int) -> Figure:
    """`hits` of `n` pictures as a figure with its Wilson score interval; 0 in [0, 1] where `n` is 0.

    Source: Wilson, "Probable Inference, the Law of Succession, and Statistical Inference", JASA 1927.
    """
    from scipy.stats import binomtest

    if n == 0:
        return Figure(value=0.0, low=0.0, high=1.0, n=0)
    interval = binomtest(hits, n).proportion_ci(confidence_level=0.95, method="wilson")
    return Figure(value=hits / n, low=float(interval.low), high=float(interval.high), n=n)


def count_confusions(labels: Int[np.ndarray, " n"], predicted: Int[np.ndarray, " n"], K: int) -> Int[np.ndarray, "K K"]:
    """How many pictures of class i were called class j, at [i, j].

    scikit-learn's function is not used: it warns of one class alone and of nearly as many classes as pictures.
    """
    return np.bincount(labels.astype(np.int64) * K + predicted, minlength=K * K).reshape(K, K)


def mean_loss(log_probability: Float[np.ndarray, " n"]) -> Figure:
    """Mean cross-entropy in nats, from the log probability of each right class.

    The interval is the mean ± 1.96 standard errors, not below 0. A single picture tells nothing of the
    spread: its interval is the value alone.
    """
    losses, n = -log_probability, len(log_probability)
    mean = float(losses.mean())
    margin = 1.959964 * float(losses.std(ddof=1)) / math.sqrt(n) if n > 1 else 0.0
    # + 0.0 turns the negative zero of a perfect answer into zero
    return Figure(value=mean + 0.0, low=max(0.0, mean - margin), high=mean + margin + 0.0, n=n)


def expected_calibration_error(confidence: Float[np.ndarray, " n"], correct: Float[np.ndarray, " n"]) -> float:
    """ECE = Σ_m |B_m| / n · |acc(B_m) − conf(B_m)| over M = 15 bins of equal width, B_m = ((m−1)/M, m/M].

    `confidence` is the probability of the answer, `correct` 1 or 0. Source: Guo et al., "On Calibration of
    Modern Neural Networks", arXiv:1706.04599, equation 3. The bin's weight cancels its mean's divisor, so
    the sum of (correct − confidence) over each bin is enough.
    """
    gaps = np.bincount(bin_of(confidence), weights=correct - confidence, minlength=CALIBRATION_BINS)
    return float(np.abs(gaps).sum() / len(confidence))


def bin_of(confidence: Float[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """The number of each confidence's bin, from 0; a confidence on an edge belongs to the bin below it."""
    return np.clip(np.ceil(confidence * CALIBRATION_BINS).astype(np.int64) - 1, 0, CALIBRATION_BINS - 1)


def calibration(confidence: Float[np.ndarray, " n"], correct: np.ndarray, seed: int = 0) -> Figure:
    """The expected calibration error with the 2.5 % and 97.5 % quantiles of 1000 resamples of the pictures.

    Resampling adds noise, which the absolute value counts as error, so a well calibrated model's resamples
    lie above the value: the interval is widened where it would not hold it.
    """
    n, hits = len(confidence), correct.astype(np.float64)
    value = expected_calibration_error(confidence, hits)
    bins, gaps = bin_of(confidence), hits - confidence
    rng = np.random.default_rng(seed)
    found: list[np.ndarray] = []
    for rows in _portions(n):
        drawn = rng.integers(0, n, size=(rows, n))
        slots = bins[drawn] + CALIBRATION_BINS * np.arange(rows)[:, None]
        sums = np.bincount(slots.ravel(), weights=gaps[drawn].ravel(), minlength=rows * CALIBRATION_BINS)
        found.append(np.abs(sums.reshape(rows, CALIBRATION_BINS)).sum(axis=1) / n)
    low, high = np.quantile(np.concatenate(found), (0.025, 0.975))
    return Figure(value=value, low=min(float(low), value), high=max(float(high), value), n=n)


def _portions(n: int) -> list[int]:
    """Numbers of resamples to draw at a time; they add up to `RESAMPLES`."""
    size = max(1, min(RESAMPLES, PORTION // n))
    whole, rest = divmod(RESAMPLES, size)
    return [size] * whole + ([rest] if rest else [])


def _class_rows(confusion: Int[np.ndarray, "K K"], class_names: Sequence[str]) -> tuple[ClassFigures, ...]:
    hits, totals, named = (values.tolist() for values in (confusion.diagonal(), confusion.sum(1), confusion.sum(0)))
    return tuple(
        ClassFigures(
            name=name,
            n=totals[i],
            recall=share(hits[i], totals[i]),
            precision=hits[i] / named[i] if named[i] else None,
        )
        for i, name in enumerate(class_names)
    )
