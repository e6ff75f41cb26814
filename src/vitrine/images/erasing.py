"""Random erasing: a rectangle of a picture becomes noise (arXiv:1708.04896)."""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float32, Float64
from torch import Tensor

TRIES = 10
PER_PICTURE = 2 + 4 * TRIES
"""Random numbers: whether, the seed of the noise, and four a try."""

_AREA = (0.02, 1 / 3)
_ASPECT = 0.3


def erase(
    x: Float32[Tensor, "B C H W"], probability: float, numbers: Float64[np.ndarray, "B 42"]
) -> Float32[Tensor, "B C H W"]:
    """The normalised pictures, each with that probability with a box of standard normal noise, a number a pixel and
    channel: timm's `RandomErasing` in its mode `pixel`.

    Row i of `numbers`, uniform in [0, 1), decides picture i; the noise is that of torch's generator on the device,
    so another kind of device gives other noise in the same boxes.
    """
    erased = x.clone()
    noise = torch.Generator(device=x.device)
    for i in np.flatnonzero(numbers[:, 0] < probability):
        box = erased_box((x.shape[2], x.shape[3]), numbers[i, 2:].reshape(TRIES, 4))
        if box is not None:
            left, top, w, h = box
            noise.manual_seed(int(numbers[i, 1] * 2**53))
            erased[i, :, top : top + h, left : left + w].normal_(generator=noise)
    return erased


def erased_box(size: tuple[int, int], numbers: Float64[np.ndarray, "10 4"]) -> tuple[int, int, int, int] | None:
    """The box (left, top, width, height), smaller than the picture both ways; None where no try gave one.

    Its area is uniform in [0.02, 1/3] of the picture's, height over width log-uniform in [0.3, 1 / 0.3].
    """
    height, width = size
    for area, ratio, across, down in numbers:
        pixels = (_AREA[0] + area * (_AREA[1] - _AREA[0])) * height * width
        aspect = math.exp(math.log(_ASPECT) * (1 - 2 * ratio))
        h, w = round(math.sqrt(pixels * aspect)), round(math.sqrt(pixels / aspect))
        if w < width and h < height:
            return int(across * (width - w + 1)), int(down * (height - h + 1)), w, h
    return None
