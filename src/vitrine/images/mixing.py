"""Mixup and CutMix: a batch mixed with itself in reverse, pictures and targets alike."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float
from torch import Tensor

from vitrine.config.options import AugmentConfig
from vitrine.images.augment import Stream, generator


def mix(
    images: Float[Tensor, "B C H W"],
    targets: Float[Tensor, "B K"],
    settings: AugmentConfig,
    seed: int,
    step: int,
) -> tuple[Float[Tensor, "B C H W"], Float[Tensor, "B K"]]:
    """The batch mixed by mixup, or by CutMix, or as it came where both are off; nothing is changed in place.

    With both on, one of the two by a fair draw. One share lambda a batch, from Beta(alpha, alpha); picture i
    is mixed with picture B - 1 - i. Rows of the targets sum to what they did, where all sum to the same. The
    draws depend on (seed, step) alone.
    """
    if not settings.mixup and not settings.cutmix:
        return images, targets
    random = generator(seed, step, Stream.MIXING)
    toss, place_x, place_y = random.random(3)
    if settings.cutmix and (not settings.mixup or toss < 0.5):
        share = float(random.beta(settings.cutmix, settings.cutmix))
        size = (images.shape[2], images.shape[3])
        return cutmix(images, targets, cut_box(size, share, (place_x, place_y)))
    return mixup(images, targets, float(random.beta(settings.mixup, settings.mixup)))


def mixup(
    images: Float[Tensor, "B C H W"], targets: Float[Tensor, "B K"], share: float
) -> tuple[Float[Tensor, "B C H W"], Float[Tensor, "B K"]]:
    """lambda x_i + (1 - lambda) x_j, the same of the targets, lambda = `share` (arXiv:1710.09412, section 2).

    j is B - 1 - i, where the paper permutes at random: in a shuffled batch the two are the same.
    """
    return (
        share * images + (1 - share) * images.flip(0),
        share * targets + (1 - share) * targets.flip(0),
    )


def cutmix(
    images: Float[Tensor, "B C H W"], targets: Float[Tensor, "B K"], box: tuple[int, int, int, int]
) -> tuple[Float[Tensor, "B C H W"], Float[Tensor, "B K"]]:
    """M x_i + (1 - M) x_j with M = 0 in the box (left, top, right, bottom) (arXiv:1905.04899, eq. 1).

    The targets are mixed with lambda = 1 - box area / (W H): the area the box really has, not the one drawn.
    """
    left, top, right, bottom = box
    mixed = images.clone()
    mixed[:, :, top:bottom, left:right] = images.flip(0)[:, :, top:bottom, left:right]
    share = 1 - (right - left) * (bottom - top) / (images.shape[2] * images.shape[3])
    return mixed, share * targets + (1 - share) * targets.flip(0)


def cut_box(size: tuple[int, int], share: float, place: tuple[float, float]) -> tuple[int, int, int, int]:
    """The box (left, top, right, bottom) of the shape of (height, width) `size` and 1 - share of its area.

    Centred at `place`, two numbers in [0, 1) as shares of width and height, and cut at the edges of the
    picture (arXiv:1905.04899, eq. 2).
    """
    height, width = size
    side = math.sqrt(1 - share)
    left, right = _cut(place[0], side, width)
    top, bottom = _cut(place[1], side, height)
    return left, top, right, bottom


def _cut(place: float, side: float, length: int) -> tuple[int, int]:
    """Both ends of a span of `side` times `length` around `place`, within 0 and `length`."""
    middle, half = int(place * length), int(side * length) / 2
    first, last = np.clip([round(middle - half), round(middle + half)], 0, length)
    return int(first), int(last)
