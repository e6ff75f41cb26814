"""From a function that gives logits and batches of pictures to two arrays."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from vitrine.errors import BadData


def collect(
    logits: Callable[[Tensor], Tensor], batches: Iterable[tuple[Tensor, Tensor]]
) -> tuple[Float32[np.ndarray, "n K"], Int64[np.ndarray, " n"]]:
    """The logits and the labels of every picture, once each and in the order they came.

    `batches` gives pictures (B, C, H, W) and labels (B,). Runs without gradients; puts no model into
    evaluation mode and moves nothing to a device: `logits` does, where that is wanted. Raises `BadData`
    when no picture came, and when `logits` does not give one row a picture.
    """
    outputs: list[Tensor] = []
    targets: list[Tensor] = []
    with torch.inference_mode():
        for images, labels in batches:
            rows = logits(images)
            if rows.ndim != 2 or len(rows) != len(labels):
                raise BadData(
                    f"outputs of shape {tuple(rows.shape)} for {len(labels)} labels: "
                    "there must be one row of class scores a picture."
                )
            outputs.append(rows.float().cpu())
            targets.append(labels.long().cpu())
    if sum(map(len, targets)) == 0:
        raise BadData("the data holds no picture: there is nothing to evaluate. Name data that has some.")
    return torch.cat(outputs).numpy(), torch.cat(targets).numpy()
