"""Figures where a picture may have several classes, or none: average precision, F1, exact match, with intervals."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Float64, Int, UInt8
from torch import Tensor

from vitrine.errors import BadData
from vitrine.evaluate.metrics import mean_loss, share
from vitrine.results import ClassFigures, Figure, Metrics

RESAMPLES, LEAST_RESAMPLES = 1000, 200
EFFORT = 40_000_000
"""Numbers that a bootstrap may go through: with more pictures times classes it has fewer resamples."""

PORTION = 4_000_000
"""Numbers at hand at a time, which bounds the memory it takes."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Scores:
    """The answers to n pictures: their `logits`, a sigmoid's for each of K classes, and which classes each is of."""

    logits: Float32[np.ndarray, "n K"]
    labels: UInt8[np.ndarray, "n K"]

    def __len__(self) -> int:
        return len(self.logits)

    def probabilities(self) -> Float64[np.ndarray, "n K"]:
        """The sigmoid of the logits, in 64 bits."""
        return np.exp(-np.logaddexp(0, -self.logits.astype(np.float64)))

    def called(self, threshold: float) -> Bool[np.ndarray, "n K"]:
        """Whether each class is called: its probability is `threshold` or more."""
        return self.probabilities() >= threshold

    def all_right(self, threshold: float) -> Bool[np.ndarray, " n"]:
        """Whether all classes of each picture are right, those that are not there too."""
        return (self.called(threshold) == self.labels).all(axis=1)

    def losses(self) -> Float64[np.ndarray, " n"]:
        """The loss of each picture in nats: the mean over the classes of -log of the probability of what is."""
        signed = np.where(self.labels > 0, -self.logits, self.logits).astype(np.float64)
        return np.logaddexp(0, signed).mean(axis=1)


def gather(logits: Callable[[Tensor], Tensor], batches: Iterable[tuple[Tensor, Tensor]]) -> Scores:
    """The answers to every picture, once each and in the order they came, without gradients.

    `batches` gives pictures (B, C, H, W) and rows of labels (B, K). Keeps 5 bytes a picture and class. Raises `BadData`
    when no picture came, and for outputs of another shape or that are not finite.
    """
    found: list[tuple[np.ndarray, np.ndarray]] = []
    with torch.inference_mode():
        for images, labels in batches:
            rows = logits(images)
            if rows.shape != labels.shape:
                raise BadData(f"outputs of shape {tuple(rows.shape)} for labels of shape {tuple(labels.shape)}.")
            found.append((rows.float().cpu().numpy(), labels.cpu().numpy()))
    if not found:
        raise BadData("the data holds no picture: there is nothing to evaluate. Name data that has some.")
    scores = Scores(
        logits=np.concatenate([rows for rows, _ in found]), labels=np.concatenate([rows for _, rows in found])
    )
    broken = int((~np.isfinite(scores.logits)).any(axis=1).sum())
    if broken:
        raise BadData(
            f"the outputs for {broken} of {len(scores)} pictures are not finite: the model's weights are damaged, "
            "or the precision is too low. Try fp32, or another model file."
        )
    return scores


def measure(scores: Scores, class_names: Sequence[str], threshold: float | None = None) -> Metrics:
    """The figures of these answers with 95 % intervals, and every class; `threshold` None takes `best_threshold`.

    `map`: mean over the classes that have pictures of their average precision; `micro_ap`: average precision of all
    pictures and classes in one list. `micro_f1`, `macro_f1` and `exact_match` (the share of the pictures with all
    classes right) call a class from the probability 0.5 on, `micro_f1_at`, `macro_f1_at`, `exact_match_at` from the
    threshold on, and so do the recall, precision and F1 of a class. macro is the mean over the classes that have
    pictures, micro is of the sums. `loss`: mean cross-entropy of a class, in nats.

    Exact matches and recalls have Wilson intervals, the loss the normal approximation of a mean, all others 2.5 % and
    97.5 % quantiles of up to 1000 resamples of the pictures. Raises `BadData` where no picture has a class, and for
    names that do not fit.
    """
    n, K = scores.labels.shape
    if len(class_names) != K:
        raise BadData(f"{len(class_names)} class names for {K} outputs of the model: the numbers must be equal.")
    if not scores.labels.any():
        raise BadData(f"none of the {n} pictures has a class: nothing can be measured. Name data that has some.")
    at = best_threshold(scores) if threshold is None else threshold
    ap, macro, micro = _precisions(scores)
    figures = {"map": macro, "micro_ap": micro}
    for suffix, value in (("", 0.5), ("_at", at)):
        figures |= {f"{name}{suffix}": figure for name, figure in _f1_figures(scores, value).items()}
        figures[f"exact_match{suffix}"] = share(int(scores.all_right(value).sum()), n)
    figures["loss"] = mean_loss(-scores.losses())
    counts = scores.labels.sum(axis=0, dtype=np.int64)
    _, sets = np.unique(np.packbits(scores.labels, axis=1), axis=0, return_counts=True)
    return Metrics(
        figures=figures,
        classes=_class_rows(scores, class_names, ap, at),
        confusion=(),
        majority=float(sets.max() / n),
        threshold=at,
        chance_map=float(counts[counts > 0].mean() / n),
    )


def mean_ap(scores: Scores) -> float:
    """Mean over the classes that have pictures of scikit-learn's average precision; 0 where none has."""
    there = np.flatnonzero(scores.labels.any(axis=0))
    return float(np.mean([average_precision(scores.labels[:, k], scores.logits[:, k]) for k in there] or [0.0]))


def average_precision(labels: UInt8[np.ndarray, " n"], values: Float[np.ndarray, " n"]) -> float:
    """AP = sum over the distinct values, falling, of (R_i - R_i-1) P_i, without interpolation: scikit-learn's."""
    from sklearn.metrics import average_precision_score

    return float(average_precision_score(labels, values))


def best_threshold(scores: Scores) -> float:
    """The probability from which on calling classes gives the highest micro F1: midway between what is still called and
    what is no more, and of equals the nearest to 0.5.

    One for all classes: one each would fit the few pictures that rare classes have.
    """
    chances = scores.probabilities().ravel()
    order = np.argsort(-chances, kind="stable")
    ranked, hits = chances[order], np.cumsum(scores.labels.ravel()[order], dtype=np.int64)
    last = np.append(ranked[1:] < ranked[:-1], True)
    reached = f1(hits[last], np.flatnonzero(last) + 1 + hits[-1])
    values = ranked[last]
    # Below the lowest value, calling everything is as good from any threshold on: halfway to 0.
    between = np.clip((values + np.append(values[1:], 0.0)) / 2, 1e-6, 1 - 1e-6)
    best = np.flatnonzero(reached >= reached.max() - 1e-12)
    return float(between[best[np.abs(between[best] - 0.5).argmin()]])


def weighted_precisions(
    labels: UInt8[np.ndarray, " m"],
    values: Float[np.ndarray, " m"],
    weights: Float[np.ndarray, "R n"],
    place: Int[np.ndarray, " m"] | None = None,
) -> Float64[np.ndarray, " R"]:
    """Average precision where each entry counts as often as a row of `weights` says; nan where no positive counts.

    With integer weights that of a resample in which an entry stands so often. `place` is the weight that belongs to an
    entry, where that is not the one in its own place.
    """
    order = np.argsort(-values, kind="stable")
    last = np.append(values[order][1:] < values[order][:-1], True)
    places = np.arange(len(values)) if place is None else place
    ranked = weights[:, places[order]]
    hits = np.cumsum(ranked * labels[order].astype(weights.dtype), axis=1)[:, last]
    called = np.cumsum(ranked, axis=1)[:, last]
    gained = np.diff(hits, axis=1, prepend=0)
    gained *= hits
    gained /= np.maximum(called, 1)
    with np.errstate(invalid="ignore"):
        found: Float64[np.ndarray, " R"] = gained.sum(axis=1, dtype=np.float64) / hits[:, -1]
    return found


def _resamples(n: int, width: int) -> Iterator[Float[np.ndarray, "R n"]]:
    """How often each of n pictures stands in each resample, in portions; the same each time.

    In 32 bits where sums over `width` entries are exact in them, which is twice as fast.
    """
    dtype = np.float32 if width < 1 << 23 else np.float64
    rng, left = np.random.default_rng(0), min(RESAMPLES, max(LEAST_RESAMPLES, EFFORT // max(1, width)))
    while left:
        rows = min(left, max(1, PORTION // width))
        yield rng.multinomial(n, np.full(n, 1 / n), size=rows).astype(dtype)
        left -= rows


def _precisions(scores: Scores) -> tuple[list[Figure | None], Figure, Figure]:
    """Average precision class by class (None without a picture), its mean, and that of all in one list."""
    n, K = scores.labels.shape
    there = np.flatnonzero(scores.labels.any(axis=0))
    classes: list[np.ndarray] = []
    together: list[np.ndarray] = []
    for weights in _resamples(n, n * K):
        each = [weighted_precisions(scores.labels[:, k], scores.logits[:, k], weights) for k in there]
        classes.append(np.stack(each))
        picture = np.arange(n * K) // K
        together.append(weighted_precisions(scores.labels.ravel(), scores.logits.ravel(), weights, picture))
    drawn, micro = np.concatenate(classes, axis=1), np.concatenate(together)
    values = [average_precision(scores.labels[:, k], scores.logits[:, k]) for k in there]
    counts = scores.labels.sum(axis=0, dtype=np.int64)
    figures: list[Figure | None] = [None] * K
    for place, k in enumerate(there):
        figures[k] = _figure(values[place], drawn[place], int(counts[k]))
    seen = ~np.isnan(drawn)
    means = np.where(seen, drawn, 0).sum(axis=0) / np.maximum(seen.sum(axis=0), 1)
    of_all = average_precision(scores.labels.ravel(), scores.logits.ravel())
    return figures, _figure(float(np.mean(values)), means[seen.any(axis=0)], n), _figure(of_all, micro, n)


def _f1_figures(scores: Scores, threshold: float) -> dict[str, Figure]:
    """micro_f1 and macro_f1 where classes are called from `threshold` on."""
    n, K = scores.labels.shape
    called, labels = scores.called(threshold), scores.labels > 0
    there = labels.any(axis=0)
    hits, sums = (called & labels).astype(np.float64), called.astype(np.float64) + labels

    def both(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        weights = weights.astype(np.float64)
        h, s = weights @ hits, weights @ sums
        return f1(h.sum(axis=1), s.sum(axis=1)), f1(h, s)[:, there].mean(axis=1)

    drawn = [both(weights) for weights in _resamples(n, n * K)]
    micro, macro = both(np.ones((1, n)))
    return {
        "micro_f1": _figure(float(micro[0]), np.concatenate([one for one, _ in drawn]), n),
        "macro_f1": _figure(float(macro[0]), np.concatenate([one for _, one in drawn]), n),
    }


def f1(hits: np.ndarray, sums: np.ndarray) -> np.ndarray:
    """2 TP / (2 TP + FP + FN), the divisor being positives and calls together; 0 where there is neither."""
    return 2 * hits / np.maximum(sums, 1)


def _figure(value: float, drawn: np.ndarray, n: int) -> Figure:
    """`value` with the quantiles of what was drawn, widened where they would not hold it."""
    known = drawn[~np.isnan(drawn)]
    low, high = np.quantile(known, (0.025, 0.975)) if len(known) else (0.0, 1.0)
    return Figure(value=value, low=min(float(low), value), high=max(float(high), value), n=n)


def _class_rows(
    scores: Scores, class_names: Sequence[str], ap: Sequence[Figure | None], threshold: float
) -> tuple[ClassFigures, ...]:
    called, labels = scores.called(threshold), scores.labels > 0
    rows = ((called & labels).sum(axis=0).tolist(), labels.sum(axis=0).tolist(), called.sum(axis=0).tolist())
    return tuple(
        ClassFigures(
            name=name, n=total, recall=share(hits, total), precision=hits / named if named else None,
            average_precision=ap[k], f1=2 * hits / max(total + named, 1),
        )
        for k, (name, hits, total, named) in enumerate(zip(class_names, *rows, strict=True))
    )  # fmt: skip
