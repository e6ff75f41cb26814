"""Augmentation policies: which operations a picture gets, how strong, and the batch after them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float64, Int64, UInt8
from torch import Tensor

from vitrine.config.policies import Policy
from vitrine.images.operations import Op, operate

PER_LAYER = 6
"""Random numbers that a layer takes: choice, whether at all, magnitude, sign, and a place across and down."""

Convention = Literal["own", "torch", "google"]
Size = tuple[int, int]
Column = Float64[np.ndarray, " n"]
Amount = Callable[[Column, Column, Size], np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One of a policy's operations. `amount` gives its numbers, (n,) or (n, 6), from the strength of each picture
    (1 at the top of the scale), a sign (1 or -1) and the (height, width) of the pictures."""

    op: Op
    amount: Amount
    weight: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Space:
    """The operations that a policy chooses from. `fill`: grey level of what comes from outside the picture, None for
    the mean that the model is given as 0. `steps`: the strength is one of that many and 0, evenly spaced."""

    choices: tuple[Choice, ...]
    scale: float = 10.0
    fill: int | None = None
    smooth: bool = False
    again: bool = True  # whether the same operation may come twice
    steps: int | None = None


def space(policy: Policy, convention: Convention) -> Space:
    """The operations of a policy, as published: timm's list for timm's strings, Google's for AugReg's levels.

    By convention `google` both are Google's, by `torch` timm's and torchvision's. Lists, ranges and fills: timm
    `auto_augment.py`; big_vision `pp/autoaugment.py`; torchvision `autoaugment.py`; for `trivial`
    arXiv:2103.10158, table 6 ("wide"); for `three` arXiv:2204.07118, section 3.
    """
    if policy.kind == "trivial":
        return Space(choices=_trivial(), fill=0, steps=30)
    if policy.kind == "three":
        return Space(choices=_THREE, fill=0)
    if convention == "google" or (convention == "own" and policy.kind == "augreg"):
        return Space(choices=_GOOGLE, fill=128)
    if policy.kind == "augreg":
        return Space(choices=_TORCHVISION, scale=30.0, fill=0)
    return Space(choices=_timm(policy), smooth=True, again=policy.choices not in ("weights", "3aw"))


def plan(
    policy: Policy, found: Space, numbers: Float64[np.ndarray, "n L 6"], size: Size
) -> tuple[Int64[np.ndarray, "n L"], Float64[np.ndarray, "n L 6"]]:
    """The operations of each picture, as numbers of `Op`, and their arguments, from uniform numbers in [0, 1)."""
    kinds, drawn = _chosen(found, numbers[:, :, 0]), np.zeros(numbers.shape)
    ops = np.array([choice.op for choice in found.choices], np.int64)[kinds]
    strength = _strength(policy, found, numbers[:, :, 2])
    for kind, choice in enumerate(found.choices):
        at = kinds == kind
        sign = np.where(numbers[:, :, 3][at] > 0.5, -1.0, 1.0)
        amount = choice.amount(strength[at], sign, size)
        if amount.ndim == 2:
            drawn[at] = amount
        else:
            drawn[at, 0] = amount
            drawn[at, 1:3] = numbers[:, :, 4:6][at]
    ops[numbers[:, :, 1] >= policy.probability] = Op.IDENTITY
    return ops, drawn


def augmented(
    images: UInt8[Tensor, "B C H W"],
    policy: Policy,
    convention: Convention,
    numbers: Float64[np.ndarray, "B L 6"],
    mean: tuple[float, ...],
) -> UInt8[Tensor, "B C H W"]:
    """The batch after the policy, on its device; picture i by row i of the uniform `numbers` alone.

    `mean` is that of the preprocessing, in [0, 1] a channel.
    """
    found = space(policy, convention)
    ops, args = plan(policy, found, numbers, (images.shape[2], images.shape[3]))
    grey = [found.fill] * len(mean) if found.fill is not None else [min(255, round(255 * value)) for value in mean]
    fill = torch.tensor(grey, dtype=torch.uint8, device=images.device)[:, None, None]
    x, place = images, np.arange(len(ops))
    for layer in range(ops.shape[1]):
        # Pictures with one operation are brought together, so that each operation works on a slice.
        rank = np.argsort(ops[place, layer], kind="stable")
        x, place = x.index_select(0, torch.from_numpy(rank).to(x.device)), place[rank]
        ranked = ops[place, layer]
        own = torch.from_numpy(args[place, layer].astype(np.float32)).to(x.device)
        for op in map(Op, np.unique(ranked)):
            first, last = (int(end) for end in np.searchsorted(ranked, [op, op + 1]))
            if op is not Op.IDENTITY:
                x[first:last] = operate(op, x[first:last], own[first:last], fill, smooth=found.smooth)
    return x.index_select(0, torch.from_numpy(np.argsort(place)).to(x.device))


def _chosen(found: Space, uniform: Float64[np.ndarray, "n L"]) -> Int64[np.ndarray, "n L"]:
    """Number of the choice of each picture and layer, in proportion to the weights."""
    weights = np.array([choice.weight for choice in found.choices])
    taken = np.zeros((len(uniform), len(weights)), bool)
    chosen = np.zeros(uniform.shape, np.int64)
    for layer in range(uniform.shape[1]):
        ends = np.where(taken, 0.0, weights).cumsum(1)
        chosen[:, layer] = (uniform[:, layer, None] * ends[:, -1:] >= ends).sum(1).clip(max=len(weights) - 1)
        if not found.again:
            taken[np.arange(len(taken)), chosen[:, layer]] = True
    return chosen


def _strength(policy: Policy, found: Space, uniform: Float64[np.ndarray, "n L"]) -> Float64[np.ndarray, "n L"]:
    if policy.kind == "three":
        return uniform
    if found.steps is not None:
        return np.floor(uniform * (found.steps + 1)) / found.steps
    level = np.full(uniform.shape, policy.magnitude)
    if math.isinf(policy.spread):
        level = uniform * policy.magnitude
    elif policy.spread:
        level = level + policy.spread * torch.special.ndtri(torch.from_numpy(uniform).clamp(min=2.0**-54)).numpy()
    return np.clip(level, 0, policy.largest) / found.scale


def rotation(degrees: Column, size: Size) -> Float64[np.ndarray, "n 6"]:
    """The numbers of `Op.AFFINE` for a turn anticlockwise about the centre of (height, width) `size`."""
    height, width = size
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    x, y = width / 2, height / 2
    return np.stack([cos, -sin, x - x * cos + y * sin, sin, cos, y - x * sin - y * cos], 1)


def _map(**given: Column) -> Float64[np.ndarray, "n 6"]:
    """The identity but for the given of the six numbers a to f."""
    num = len(next(iter(given.values())))
    start = {"a": 1.0, "b": 0.0, "c": 0.0, "d": 0.0, "e": 1.0, "f": 0.0}
    return np.stack([given.get(name, np.full(num, value)) for name, value in start.items()], 1)


def _moves(shear: float, across: Amount, down: Amount, degrees: float) -> tuple[Choice, ...]:
    """Shears, translations and rotation, up to these amounts at strength 1, either way."""
    return (
        Choice(op=Op.AFFINE, amount=lambda t, sign, size: _map(b=sign * shear * t)),
        Choice(op=Op.AFFINE, amount=lambda t, sign, size: _map(d=sign * shear * t)),
        Choice(op=Op.AFFINE, amount=lambda t, sign, size: _map(c=sign * across(t, sign, size))),
        Choice(op=Op.AFFINE, amount=lambda t, sign, size: _map(f=sign * down(t, sign, size))),
        Choice(op=Op.AFFINE, amount=lambda t, sign, size: rotation(sign * degrees * t, size)),
    )


def _none(t: Column, sign: Column, size: Size) -> Column:
    return np.zeros_like(t)


def _either_way(most: float) -> Amount:
    """Factors from 1 - `most` to 1 + `most`, never below 0."""
    return lambda t, sign, size: np.maximum(0.0, 1 + sign * most * t)


def _factors(amount: Amount, contrast: Op = Op.CONTRAST) -> tuple[Choice, ...]:
    return tuple(Choice(op=op, amount=amount) for op in (Op.COLOR, contrast, Op.BRIGHTNESS, Op.SHARPNESS))


def _bits(most: int, least: int) -> Amount:
    """Bits that stay, `most` at strength 0 and `least` at 1, to the nearest."""
    return lambda t, sign, size: most - np.round((most - least) * t)


_STRETCH = (Choice(op=Op.AUTOCONTRAST, amount=_none), Choice(op=Op.EQUALIZE, amount=_none))
_INVERT = Choice(op=Op.INVERT, amount=_none)
_IDENTITY = Choice(op=Op.IDENTITY, amount=_none)
_DOWN_FROM_255 = Choice(op=Op.SOLARIZE, amount=lambda t, sign, size: 255 * (1 - t))


def _trivial() -> tuple[Choice, ...]:
    """TrivialAugment's wide space: 14 operations; translations of up to 32 pixels, whatever the size."""
    pixels: Amount = lambda t, sign, size: 32 * t  # noqa: E731
    moves = _moves(0.99, pixels, pixels, 135.0)
    posterize = Choice(op=Op.POSTERIZE, amount=_bits(8, 2))
    return (_IDENTITY, *moves, *_factors(_either_way(0.99)), posterize, _DOWN_FROM_255, *_STRETCH)


_THREE = (
    Choice(op=Op.COLOR, amount=_none),
    Choice(op=Op.SOLARIZE, amount=lambda t, sign, size: np.full_like(t, 128.0)),
    Choice(op=Op.BLUR, amount=lambda t, sign, size: 0.1 + 1.9 * t),
)

_GOOGLE = (
    *_STRETCH,
    _INVERT,
    *_moves(0.3, lambda t, sign, size: 100 * t, lambda t, sign, size: 100 * t, 30.0),
    Choice(op=Op.POSTERIZE, amount=lambda t, sign, size: np.clip(np.floor(4 * t), 1, 8)),  # a shift by 8 is one by 7
    Choice(op=Op.SOLARIZE, amount=lambda t, sign, size: np.floor(256 * t)),
    Choice(op=Op.SOLARIZE_ADD, amount=lambda t, sign, size: np.floor(110 * t)),
    *_factors(lambda t, sign, size: 1.8 * t + 0.1, Op.FLAT_CONTRAST),
    Choice(op=Op.CUTOUT, amount=lambda t, sign, size: np.floor(40 * t)),
)

_TORCHVISION = (
    _IDENTITY,
    *_moves(
        0.3,
        lambda t, sign, size: 150 / 331 * size[1] * t,
        lambda t, sign, size: 150 / 331 * size[0] * t,
        30.0,
    ),
    *_factors(_either_way(0.9)),
    Choice(op=Op.POSTERIZE, amount=_bits(8, 4)),
    _DOWN_FROM_255,
    *_STRETCH,
)


def _timm(policy: Policy) -> tuple[Choice, ...]:
    """timm's list, or one of its others by name; ranges that grow with the magnitude where `increasing`."""
    shear_x, shear_y, across, down, turn = _moves(
        0.3, lambda t, sign, size: 0.45 * size[1] * t, lambda t, sign, size: 0.45 * size[0] * t, 30.0
    )
    growing = policy.increasing or policy.choices != ""
    if growing:
        factor: Amount = lambda t, sign, size: np.maximum(0.1, 1 + sign * 0.9 * t)  # noqa: E731
        bits: Amount = lambda t, sign, size: np.maximum(0, 4 - np.floor(4 * t))  # noqa: E731
        threshold: Amount = lambda t, sign, size: 256 - np.minimum(256, np.floor(256 * t))  # noqa: E731
    else:
        factor = lambda t, sign, size: 1.8 * t + 0.1  # noqa: E731
        bits = lambda t, sign, size: np.floor(4 * t)  # noqa: E731
        threshold = lambda t, sign, size: np.minimum(256, np.floor(256 * t))  # noqa: E731
    color, contrast, brightness, sharpness = _factors(factor)
    stretch, flat = _STRETCH
    posterize, solarize = Choice(op=Op.POSTERIZE, amount=bits), Choice(op=Op.SOLARIZE, amount=threshold)
    add = Choice(op=Op.SOLARIZE_ADD, amount=lambda t, sign, size: np.minimum(128, np.floor(110 * t)))
    grey = Choice(op=Op.COLOR, amount=lambda t, sign, size: 1 - np.clip(0.5 + 0.5 * t, 0.5, 1))
    blur = Choice(op=Op.BLUR, amount=lambda t, sign, size: np.clip(0.1 + 1.9 * t, 0.1, 2))
    usual = (stretch, flat, _INVERT, turn, posterize, solarize, add, color, contrast, brightness, sharpness)
    if not policy.choices:
        return (*usual, shear_x, shear_y, across, down)
    if policy.choices == "3a":
        return solarize, grey, blur
    rare: tuple[Choice, ...] = (solarize, add, contrast, brightness, flat, posterize, _INVERT)
    groups = {3.0: (turn,), 2.0: (shear_x, shear_y), 1.0: (across, down), 0.25: (color, sharpness, stretch), 0.05: rare}
    if policy.choices == "3aw":
        rare = (posterize, stretch, color, sharpness, contrast, brightness, flat, _INVERT)
        groups = {6.0: (solarize, grey, blur), 3.0: (turn,), 2.0: (shear_x, shear_y), 1.0: rare}
    return tuple(
        Choice(op=choice.op, amount=choice.amount, weight=weight)
        for weight, group in groups.items()
        for choice in group
    )
