"""One part of the data judged by all ranks: each has some of its pictures, and all have every answer after."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import fields, replace
from typing import Any

import numpy as np
from jaxtyping import Int64
from torch import Tensor

from vitrine.machine import ranks
from vitrine.train.answers import Found
from vitrine.train.parallel import Spread

Labelled = tuple[Tensor, Tensor]
"""Pictures, and a label for each."""

LEAST = 4
"""Pictures for a rank below which every rank looks at all of them."""


def share(part: Int64[np.ndarray, " n"], spread: Spread) -> Int64[np.ndarray, " m"]:
    """The pictures of a part that this rank looks at."""
    if spread.parts == 1 or len(part) < LEAST * spread.parts:
        return part
    return part[spread.number :: spread.parts]


def in_step(batches: Iterable[Labelled], spread: Spread, example: Labelled) -> Iterator[Labelled]:
    """The batches, and at the end what makes every rank ask the model as often as the others, as they put a parted one
    together for each other; at least once. Answers to what is added, which is like the `example`, are to be dropped."""
    came = False
    for batch in batches:
        if spread.parted:
            ranks.each(True)
        came = True
        yield batch
    while spread.parted and any(ranks.each(False)):
        came = True
        yield example
    if not came and spread.parts > 1:
        yield example


def joined(columns: dict[str, np.ndarray], places: Int64[np.ndarray, " m"], spread: Spread) -> dict[str, np.ndarray]:
    """The first len(places) rows of every column and those of the other ranks, in the order of their places."""
    columns = {name: column[: len(places)] for name, column in columns.items()}
    if spread.parts == 1:
        return columns
    _, order = np.unique(np.concatenate(ranks.arrays(places)), return_index=True)
    return {name: np.concatenate(ranks.arrays(column))[order] for name, column in columns.items()}


def together(found: Found, places: Int64[np.ndarray, " m"], spread: Spread) -> Found:
    """The answers of all ranks, of which `found` are those to the pictures at these places of the part."""
    names = [f.name for f in fields(found) if isinstance(getattr(found, f.name), np.ndarray)]
    every: dict[str, Any] = joined({name: getattr(found, name) for name in names}, places, spread)
    return replace(found, **every)


def reasons(mine: dict[str, str]) -> dict[str, str]:
    """The damaged pictures that any rank met, with the reason."""
    return {name: reason for found in ranks.each(mine) for name, reason in found.items()}
