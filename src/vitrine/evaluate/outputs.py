"""What is kept of a model's answers: a few numbers a picture, whatever the number of classes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from jaxtyping import Float, Float64, Int, Int64
from torch import Tensor

from vitrine.errors import BadData


@dataclass(frozen=True, kw_only=True, eq=False)
class Outputs:
    """The answers to n pictures, told apart in `num_classes` classes, in the order in which they came.

    `label` is the right class and `predicted` the answer. `rank` is how many classes come before the right
    one: 0 where it is the answer. `log_probability` is the right class's, `confidence` the probability of the
    answer; both are nan where the model's output was not finite. Equal scores count in favour of the class
    that comes first.
    """

    num_classes: int
    label: Int64[np.ndarray, " n"]
    predicted: Int64[np.ndarray, " n"]
    rank: Int64[np.ndarray, " n"]
    log_probability: Float64[np.ndarray, " n"]
    confidence: Float64[np.ndarray, " n"]

    def __len__(self) -> int:
        return len(self.label)

    @property
    def correct(self) -> np.ndarray:
        """Whether each answer is right."""
        return self.predicted == self.label


def collect(logits: Callable[[Tensor], Tensor], batches: Iterable[tuple[Tensor, Tensor]]) -> Outputs:
    """The answers to every picture, once each and in the order they came; each batch is reduced as it comes.

    `batches` gives pictures (B, C, H, W) and labels (B,). Runs without gradients; puts no model into
    evaluation mode and moves nothing to a device: `logits` does, where that is wanted. Raises `BadData`
    when no picture came, when `logits` does not give one row a picture, and for a label that is none of its
    classes.
    """
    reduced: list[Outputs] = []
    with torch.inference_mode():
        for images, labels in batches:
            rows = logits(images)
            if rows.ndim != 2 or len(rows) != len(labels):
                raise BadData(
                    f"outputs of shape {tuple(rows.shape)} for {len(labels)} labels: "
                    "there must be one row of class scores a picture."
                )
            if len(rows):
                reduced.append(reduce(rows.float().cpu().numpy(), labels.long().cpu().numpy()))
    if not reduced:
        raise BadData("the data holds no picture: there is nothing to evaluate. Name data that has some.")
    return _joined(reduced)


def reduce(logits: Float[np.ndarray, "n K"], labels: Int[np.ndarray, " n"]) -> Outputs:
    """What is kept of these class scores; the softmax is computed in 64 bits.

    Raises `BadData` for a label that is none of the K classes.
    """
    n, K = logits.shape
    wrong = labels[(labels < 0) | (labels >= K)]
    if len(wrong):
        raise BadData(f"label {wrong[0]} is none of the model's {K} classes: labels go from 0 to {K - 1}.")
    finite = np.isfinite(logits).all(axis=1)
    log_probabilities = log_softmax(np.where(finite[:, None], logits, 0).astype(np.float64))
    return Outputs(
        num_classes=K,
        label=labels.astype(np.int64),
        predicted=logits.argmax(axis=1).astype(np.int64),
        rank=rank_of_label(logits, labels),
        log_probability=np.where(finite, log_probabilities[np.arange(n), labels], np.nan),
        confidence=np.where(finite, np.exp(log_probabilities.max(axis=1)), np.nan),
    )


def rank_of_label(logits: Float[np.ndarray, "n K"], labels: Int[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
    """How many classes come before the right one: 0 where it is the answer. Ties go to the lower index."""
    own = logits[np.arange(len(labels)), labels][:, None]
    earlier = np.arange(logits.shape[1]) < labels[:, None]
    return ((logits > own) | ((logits == own) & earlier)).sum(axis=1).astype(np.int64)


def log_softmax(logits: Float[np.ndarray, "n K"]) -> Float[np.ndarray, "n K"]:
    """Log probabilities, row by row."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def _joined(parts: Sequence[Outputs]) -> Outputs:
    """The answers of several batches as one."""
    names = [f.name for f in fields(Outputs) if f.name != "num_classes"]
    columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
    return Outputs(num_classes=parts[0].num_classes, **columns)
