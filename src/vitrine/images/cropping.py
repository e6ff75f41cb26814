"""Random resized crops as other libraries draw them: try after try until one fits.

`augment.crop_box` is our own, which needs one draw. Both here are given the limits of the area, as a share of the
picture's, and of the aspect ratio, width over height, of the crop itself.
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float64

TORCH_TRIES = 10
GOOGLE_TRIES = 100

Box = tuple[int, int, int, int]


def torch_box(size: tuple[int, int], min_area: float, max_ratio: float, numbers: Float64[np.ndarray, "10 4"]) -> Box:
    """The crop (left, top, width, height) that torchvision and timm draw (`RandomResizedCrop`).

    Area uniform in [min_area, 1], aspect ratio log-uniform in [1 / max_ratio, max_ratio]; ten tries, then the
    largest centred crop of an allowed aspect ratio. Row i of the uniform `numbers` is try i.
    """
    height, width = size
    spread = math.log(max_ratio)
    for area, ratio, across, down in numbers:
        pixels = (min_area + area * (1 - min_area)) * height * width
        aspect = math.exp(spread * (2 * ratio - 1))
        w, h = round(math.sqrt(pixels * aspect)), round(math.sqrt(pixels / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(across * (width - w + 1)), int(down * (height - h + 1)), w, h
    w = min(width, round(height * max_ratio))
    h = min(height, round(width * max_ratio))
    return (width - w) // 2, (height - h) // 2, w, h


def google_box(size: tuple[int, int], min_area: float, max_ratio: float, numbers: Float64[np.ndarray, "100 4"]) -> Box:
    """The crop (left, top, width, height) of TensorFlow's `sample_distorted_bounding_box`, with no object to cover.

    Aspect ratio uniform in [1 / max_ratio, max_ratio], height uniform among those that the limits of the area
    and the picture leave; a hundred tries, then the whole picture.
    """
    height, width = size
    for ratio, tall, across, down in numbers:
        aspect = 1 / max_ratio + ratio * (max_ratio - 1 / max_ratio)
        box = _sized(height, width, min_area, aspect, tall)
        if box is not None:
            h, w = box
            # The last place is never drawn: TensorFlow's is uniform below the room that is left.
            return int(across * (width - w)), int(down * (height - h)), w, h
    return 0, 0, width, height


def _sized(height: int, width: int, min_area: float, aspect: float, tall: float) -> tuple[int, int] | None:
    """Height and width of that aspect ratio, or None where none fits."""
    least, most = min_area * height * width, height * width
    h, highest = round(math.sqrt(least / aspect)), round(math.sqrt(most / aspect))
    if round(highest * aspect) > width:
        highest = int((width + 0.5 - 1e-7) / aspect)
        highest -= round(highest * aspect) > width
    highest = min(highest, height)
    h = min(h, highest)
    h += int(tall * (highest - h + 1))
    w = round(h * aspect)
    if w * h < least:
        h += 1
        w = round(h * aspect)
    if w * h > most:
        h -= 1
        w = round(h * aspect)
    fits = least <= w * h <= most and 0 < w <= width and 0 < h <= height
    return (h, w) if fits else None
