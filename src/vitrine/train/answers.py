"""A model's answers to a part of the data, one class a picture or several: gathered, summed up, measured."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
from torch import Tensor

from vitrine.config.options import Config
from vitrine.evaluate import metrics, multi_label
from vitrine.evaluate.multi_label import Scores
from vitrine.evaluate.outputs import Outputs, collect
from vitrine.results import Metrics
from vitrine.train.fit import Validation

Found = Outputs | Scores
"""The answers where a picture has one class, or where it may have several."""

ENOUGH, MOST_NAMED = 5, 100
"""Pictures of a class from which it is strange that it is never the answer; how many such classes are named."""


def gathered(config: Config, logits: Callable[[Tensor], Tensor], batches: Iterable[tuple[Tensor, Tensor]]) -> Found:
    """The answers to every picture of `batches`, once each and in their order, of the kind that `config` learns."""
    return multi_label.gather(logits, batches) if config.multi_label else collect(logits, batches)


def validation(found: Found, class_names: tuple[str, ...]) -> Validation:
    """Top-1, loss, and the classes of five pictures or more that no answer named; with several classes a picture the
    share with all of them right at a probability of a half, and mean average precision."""
    if isinstance(found, Scores):
        right, loss = float(found.all_right(0.5).mean()), float(found.losses().mean())
        return Validation(top1=right, loss=loss, n=len(found), mean_ap=multi_label.mean_ap(found))
    there, named = (np.bincount(of, minlength=found.num_classes) for of in (found.label, found.predicted))
    never = np.flatnonzero((there >= ENOUGH) & (named == 0))
    return Validation(
        top1=float(found.correct.mean()), loss=-float(found.log_probability.mean()), n=len(found),
        never=tuple(class_names[k] for k in never[:MOST_NAMED]),
    )  # fmt: skip


def measured(found: Found, class_names: tuple[str, ...], threshold: float | None = None) -> Metrics:
    """The full figures; with several classes a picture at `threshold`, or at the one that does best on these."""
    if isinstance(found, Scores):
        return multi_label.measure(found, class_names, threshold)
    return metrics.measure(found, class_names)
