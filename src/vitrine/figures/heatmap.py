"""A heat map laid over the picture it belongs to."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from vitrine.errors import BadData, UsageError

# Perceptually uniform and dark at its foot, so that little attention does not hide the picture in colour.
COLOUR_MAP = "inferno"
STRENGTH = 0.8
# The share of `strength` that the colours keep where the heat is least.
LEAST = 0.35
DIMMED = 0.35
GREY = (0.299, 0.587, 0.114)  # ITU-R BT.601 luma

Box = tuple[float, float, float, float]


def overlay(
    picture: UInt8[np.ndarray, "H W 3"],
    heat: Float[np.ndarray, "h w"],
    box: Box | None = None,
    *,
    strength: float = STRENGTH,
) -> UInt8[np.ndarray, "H W 3"]:
    """The picture at its own size under the colours of `heat`, from its least to its most.

    `box` (left, top, right, bottom in pixels of the picture) is where the model looked, by default
    everywhere; outside it the picture is dimmed and without colour. `strength` in [0, 1] is how much of the
    colour shows. The heat is enlarged by bicubic interpolation; one that is the same everywhere is drawn as
    zero. Raises `UsageError` for a box outside the picture, `BadData` for heat that is not finite.
    """
    if not 0 <= strength <= 1:
        raise UsageError(f"strength = {strength}: must be in [0, 1].")
    left, top, right, bottom = inside(box, picture)
    level = enlarge(normalise(heat), bottom - top, right - left)
    grey = picture.astype(np.float64) @ np.array(GREY)
    canvas = np.repeat((DIMMED * grey)[..., None], 3, axis=2)
    share = strength * (LEAST + (1 - LEAST) * level)[..., None]
    seen = grey[top:bottom, left:right, None]
    canvas[top:bottom, left:right] = (1 - share) * seen + share * colours(level)
    return np.rint(canvas).clip(0, 255).astype(np.uint8)


def shrink(picture: UInt8[np.ndarray, "H W 3"], box: Box, longest: int) -> tuple[UInt8[np.ndarray, "h w 3"], Box]:
    """The picture with its longer side brought down to `longest` pixels, and `box` on it; both unchanged below."""
    H, W = picture.shape[:2]
    scale = longest / max(H, W)
    if scale >= 1:
        return picture, box
    w, h = max(1, round(W * scale)), max(1, round(H * scale))
    small = Image.fromarray(picture).resize((w, h), Image.Resampling.LANCZOS, reducing_gap=3.0)
    left, top, right, bottom = box
    return np.asarray(small), (left * w / W, top * h / H, right * w / W, bottom * h / H)


def normalise(heat: Float[np.ndarray, "h w"]) -> Float[np.ndarray, "h w"]:
    """`heat` shifted and scaled to [0, 1]; zeros where it is the same everywhere but for rounding."""
    if not np.isfinite(heat).all():
        raise BadData("the heat map holds values that are not finite: the model's weights may be damaged.")
    heat = heat.astype(np.float64)
    low, high = heat.min(), heat.max()
    if high - low <= 1e-6 * max(abs(low), abs(high)):
        return np.zeros_like(heat)
    return (heat - low) / (high - low)


def enlarge(level: Float[np.ndarray, "h w"], height: int, width: int) -> Float[np.ndarray, "H W"]:
    """`level` at another size by bicubic interpolation, kept within [0, 1]."""
    small = Image.fromarray(level.astype(np.float32))
    return np.asarray(small.resize((width, height), Image.Resampling.BICUBIC), np.float64).clip(0, 1)


def colours(level: Float[np.ndarray, "H W"]) -> Float[np.ndarray, "H W 3"]:
    """The colour of each level in [0, 1], from 0 to 255 a channel."""
    from matplotlib import colormaps

    return 255 * colormaps[COLOUR_MAP](level)[..., :3]


def inside(box: Box | None, picture: UInt8[np.ndarray, "H W 3"]) -> tuple[int, int, int, int]:
    """`box` in whole pixels, at least one wide and high; the whole picture for None.

    Raises `UsageError` for a box that is empty or reaches outside the picture by more than half a pixel.
    """
    H, W = picture.shape[:2]
    if box is None:
        return 0, 0, W, H
    left, top, right, bottom = (math.floor(edge + 0.5) for edge in box)
    if not (0 <= left <= right <= W and 0 <= top <= bottom <= H and box[0] < box[2] and box[1] < box[3]):
        raise UsageError(f"box {box} (left, top, right, bottom): must lie inside the picture of {W}x{H} pixels.")
    left, top = min(left, W - 1), min(top, H - 1)
    return left, top, max(right, left + 1), max(bottom, top + 1)
