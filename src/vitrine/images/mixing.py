"""Mixup and CutMix: a batch mixed with itself in reverse, pictures and targets alike."""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from vitrine.config.options import AugmentConfig
from vitrine.images.augment import Stream, generator


def mix(
    images: Float[Tensor, "B C H W"],
    targets: Float[Tensor, "B K"],
    settings: AugmentConfig,
    seed: int,
    step: int,
    rows: Int64[np.ndarray, " B"] | None = None,
    whole: int = 0,
) -> tuple[Float[Tensor, "B C H W"], Float[Tensor, "B K"]]:
    """The batch mixed by mixup, or by CutMix, or as it came where both are off; nothing is changed in place.

    With both on, one of the two by a fair draw. One share lambda from Beta(alpha, alpha) a batch, or a picture if
    `mix_per` says so; picture i is mixed with picture B - 1 - i. Rows of the targets sum to what they did, where
    all sum to the same. The draws depend on (seed, step) and the place in the batch alone. Where these pictures are
    but some `rows` of a batch of `whole` pictures, those of `rows_of`, they become what they would in it.
    """
    if not settings.mixup and not settings.cutmix:
        return images, targets
    random = generator(seed, step, Stream.MIXING)
    if settings.mix_per == "picture":
        numbers = _numbers(whole or len(images), settings, random)
        return _each(images, targets, settings, *(of if rows is None else of[rows] for of in numbers))
    toss, place_x, place_y = random.random(3)
    if settings.cutmix and (not settings.mixup or toss < 0.5):
        share = float(random.beta(settings.cutmix, settings.cutmix))
        size = (images.shape[2], images.shape[3])
        return cutmix(images, targets, cut_box(size, share, (place_x, place_y)))
    return mixup(images, targets, float(random.beta(settings.mixup, settings.mixup)))


def _each(
    images: Float[Tensor, "B C H W"],
    targets: Float[Tensor, "B K"],
    settings: AugmentConfig,
    numbers: Float64[np.ndarray, "B 3"],
    shares: Float64[np.ndarray, " B"],
) -> tuple[Float[Tensor, "B C H W"], Float[Tensor, "B K"]]:
    """As `mix`, with a toss, a share and a box for each picture (timm's mode `elem`)."""
    H, W = images.shape[2], images.shape[3]
    cut = _is_cut(numbers, settings)
    boxes = [cut_box((H, W), float(share), (x, y)) for share, (_, x, y) in zip(shares, numbers, strict=True)]
    left, top, right, bottom = np.array(boxes).T
    shares = np.where(cut, 1 - (right - left) * (bottom - top) / (H * W), shares)
    across, down = np.arange(W), np.arange(H)[:, None]
    edges = [edge[:, None, None] for edge in (left, top, right, bottom)]
    inside = (across >= edges[0]) & (down >= edges[1]) & (across < edges[2]) & (down < edges[3])
    own = np.where(cut[:, None, None], ~inside, shares[:, None, None])
    weight = torch.from_numpy(own).to(images)[:, None]
    share = torch.from_numpy(shares).to(targets)[:, None]
    return weight * images + (1 - weight) * images.flip(0), share * targets + (1 - share) * targets.flip(0)


def _numbers(
    num: int, settings: AugmentConfig, random: np.random.Generator
) -> tuple[Float64[np.ndarray, "B 3"], Float64[np.ndarray, " B"]]:
    """A toss and a place, and a share, for each place in a batch of `num` pictures."""
    numbers = random.random((num, 3))
    alpha = np.where(_is_cut(numbers, settings), settings.cutmix, settings.mixup)
    return numbers, random.beta(alpha, alpha)


def _is_cut(numbers: Float64[np.ndarray, "B 3"], settings: AugmentConfig) -> Bool[np.ndarray, " B"]:
    """Which pictures are mixed by CutMix rather than mixup."""
    return np.full(len(numbers), bool(settings.cutmix)) & ((numbers[:, 0] < 0.5) | (not settings.mixup))


def rows_of(batch_size: int, number: int, parts: int) -> Int64[np.ndarray, " b"]:
    """The rows of a batch that part `number` of `parts` has: as many pairs {i, B - 1 - i} as the others, or one more or
    less, in their order. So a part mixed with itself in reverse is that part of the mixed batch."""
    # The last part has the middle row of an odd batch, which is its own partner: it is among those with a pair more.
    pairs = np.array_split(np.arange((batch_size + 1) // 2)[::-1], parts)[parts - 1 - number]
    return np.unique(np.concatenate([pairs, batch_size - 1 - pairs]))


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
