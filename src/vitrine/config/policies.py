"""What the word for an augmentation policy means: its operations a picture, their strength and its spread."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

from vitrine.errors import BadConfig, nearest

AUGREG = {
    "augreg-light1": 0,
    "augreg-light2": 10,
    "augreg-medium1": 15,
    "augreg-medium2": 15,
    "augreg-strong1": 20,
    "augreg-strong2": 20,
}
"""Magnitude of two layers of RandAugment by level (arXiv:2106.10270, section 3.4; big_vision's `vit_i1k.py`). The
levels differ in mixup too, which is an option of its own: 0, 0.2, 0.2, 0.5, 0.5, 0.8."""

MOST_LAYERS = 16
_KEYS = ("m", "n", "p", "mstd", "mmax")
_SETS = ("weights", "3a", "3aw")


@dataclass(frozen=True, kw_only=True)
class Policy:
    """A policy as numbers. Each of `layers` operations is made with that `probability`, at a magnitude normal about
    `magnitude` with deviation `spread` (uniform below it where infinite), cut to 0 and `largest`."""

    kind: Literal["none", "trivial", "three", "rand", "augreg"]
    layers: int = 1
    magnitude: float = 10.0
    spread: float = 0.0
    largest: float = 10.0
    probability: float = 1.0
    increasing: bool = False
    choices: str = ""


_FIXED = {"none": Policy(kind="none"), "trivial": Policy(kind="trivial"), "three": Policy(kind="three")}


@lru_cache
def policy(word: str) -> Policy:
    """What `none`, `trivial`, `three`, a level of AugReg or a string of timm's such as `rand-m9-mstd0.5-inc1` says.

    timm's parts, in any order: m magnitude (10), n layers (2), p probability of each (0.5), mstd spread (0; above
    100 uniform), mmax largest magnitude (10), inc1 for ranges that grow with it, tweights, t3a or t3aw for another
    list of operations. Raises `BadConfig` that names the part it does not know.
    """
    if word in _FIXED:
        return _FIXED[word]
    if word in AUGREG:
        return Policy(kind="augreg", layers=2, magnitude=AUGREG[word], largest=math.inf)
    first, *parts = word.split("-")
    if first != "rand":
        known = (*_FIXED, *AUGREG)
        raise BadConfig(
            f"augment.policy = {word!r}: must be one of {', '.join(known)}, or timm's as rand-m9-mstd0.5-inc1."
            f"{nearest(word, known)}"
        )
    found = Policy(kind="rand", layers=2, probability=0.5)
    for part in parts:
        found = _with(found, part, word)
    return found


def _with(found: Policy, part: str, word: str) -> Policy:
    if part in [f"t{name}" for name in _SETS]:
        return replace(found, choices=part[1:])
    split = re.fullmatch(r"([a-z]+)(\d+(?:\.\d*)?)", part)
    key, number = (split[1], float(split[2])) if split else ("", 0.0)
    if key == "inc" and number in (0, 1):
        return replace(found, increasing=bool(number))
    wrong = (
        key not in _KEYS
        or (key in ("n", "m", "mmax") and number != int(number))
        or (key == "n" and not 1 <= number <= MOST_LAYERS)
        or (key == "p" and number > 1)
        or (key == "mmax" and number < 1)
    )
    if wrong:
        raise BadConfig(
            f"augment.policy = {word!r}: {part!r} is no part of it. Parts are m, n (1 to {MOST_LAYERS}) and mmax "
            f"with a whole number, p with one of 0 to 1, mstd with any, inc0 or inc1, t{', t'.join(_SETS)}."
        )
    if key == "n":
        return replace(found, layers=int(number))
    if key == "m":
        return replace(found, magnitude=number)
    if key == "mmax":
        return replace(found, largest=number)
    if key == "p":
        return replace(found, probability=number)
    return replace(found, spread=number if number <= 100 else math.inf)
