"""Packed pictures with their classes, as tables of every kind give them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int64, Shaped, UInt8

from vitrine.data.packed import Packed


@dataclass(frozen=True, kw_only=True, eq=False)
class Tabled:
    """Packed pictures with their classes: what `sources` makes a source of. The fields are those of `Source`."""

    name: str
    packed: Packed
    class_names: tuple[str, ...]
    labels: Int64[np.ndarray, " n"] | UInt8[np.ndarray, "n K"]
    ids: Sequence[str]
    given: Shaped[np.ndarray, " n"]
    notes: tuple[str, ...] = ()
    again: str = ""


def left_out(given: Shaped[np.ndarray, " n"], says: Bool[np.ndarray, " n"]) -> tuple[str, ...]:
    """How many rows of each part say nothing of their class."""
    if says.all():
        return ()
    parts, counts = np.unique(given[~says], return_counts=True)
    told = ", ".join(f"{n:,}{f' of the {part} part' if part else ''}" for part, n in zip(parts, counts, strict=True))
    return (f"Left out, as they have no class: {told}.",)
