"""What is made small: targets from labels, the loss of each picture, and its mean over those that count."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

Loss = Literal["cross_entropy", "bce", "sigmoid"]


def soft_targets(labels: Int[Tensor, B], num_classes: int, smoothing: float) -> Float[Tensor, "B K"]:
    """One-hot rows with `smoothing` spread evenly over all classes (arXiv:1512.00567, section 7); empty for none."""
    if num_classes == 0:
        return torch.zeros(len(labels), 0, device=labels.device)
    return F.one_hot(labels, num_classes).float() * (1 - smoothing) + smoothing / num_classes


def losses(
    logits: Float[Tensor, "B K"],
    targets: Float[Tensor, "B K"],
    kind: Loss = "cross_entropy",
    *,
    threshold: float | None = None,
    class_weights: Float[Tensor, K] | None = None,
    positive_weights: Float[Tensor, K] | None = None,
) -> Float[Tensor, B]:
    """The loss of each picture, in nats, from targets that may be mixed and smoothed.

    cross_entropy: -sum_k w_k t_k log softmax(z)_k. bce: the mean over the classes of
    -w_k (t_k log s(z_k) + (1 - t_k) log(1 - s(z_k))), s being the sigmoid (arXiv:2110.00476 and DeiT-III's); sigmoid:
    their sum (big_vision's `sigmoid_xent`). With `threshold` the targets of the latter two become 1 above it and 0
    elsewhere (0 in DeiT-III's `engine.py`). w is `class_weights`, or 1. `positive_weights` of the latter two multiply
    t_k log s(z_k) alone.
    """
    if kind == "cross_entropy":
        terms = targets * logits.log_softmax(dim=1)
        return -(terms if class_weights is None else terms * class_weights).sum(dim=1)
    if threshold is not None:
        targets = (targets > threshold).to(targets.dtype)
    each = F.binary_cross_entropy_with_logits(
        logits, targets, class_weights, reduction="none", pos_weight=positive_weights
    )
    return each.mean(dim=1) if kind == "bce" else each.sum(dim=1)


def weighted_mean(
    each: Float[Tensor, B], weights: Float[Tensor, B], total: Float[Tensor, ""] | None = None
) -> Float[Tensor, ""]:
    """Mean of `each` over the pictures that count, 0 where none does. `total`: their number, if `each` is a part."""
    return (each * weights).sum() / (weights.sum() if total is None else total).clamp(min=1)


def balanced(labels: Int[np.ndarray, " n"], num_classes: int) -> Float[Tensor, K]:
    """A weight for each class, inverse to its number of pictures, of mean 1 over the pictures.

    n / (k n_c), k being the number of classes that have pictures; a class without any has 1.
    """
    counts = np.bincount(labels, minlength=num_classes)
    present = counts > 0
    weights = np.where(present, len(labels) / (present.sum() * np.maximum(counts, 1)), 1.0)
    return torch.from_numpy(weights.astype(np.float32))
