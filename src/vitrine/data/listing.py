"""What a folder or a table says about its pictures before any of them is opened."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

# The parts a data set may bring along, by every name they go under.
PART_NAMES = {"train": "train", "val": "val", "validation": "val", "valid": "val", "test": "test"}

REMEDY = "Put the pictures of each class in a folder of its own, or give a CSV with the columns path,label."


@dataclass(frozen=True, kw_only=True)
class Row:
    """One picture: its file, a stable `id`, the name of its class, its given part ("" for none).

    In a multi-label listing `labels` are the names of its classes, maybe none, and `label` is empty.
    """

    path: Path
    id: str
    label: str
    part: str
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Listing:
    """The pictures found, in a stable order, and the number of files that were left out.

    `multi_label`: a picture may have several classes, or none.
    """

    rows: tuple[Row, ...]
    ignored: int = 0
    multi_label: bool = False


def natural_key(name: str) -> tuple[tuple[tuple[int, int, str], ...], str]:
    """A sort key that puts `item2` before `item10`; capitals count as small letters."""
    parts = re.split(r"([0-9]+)", name.casefold())
    return tuple((0, int(p), "") if p.isdecimal() and p.isascii() else (1, 0, p) for p in parts), name
