"""Encoded pictures held in memory by number, as a reader of tar or tables would hold them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vitrine.data.packed import Names
from vitrine.data.sources import Source


@dataclass(frozen=True)
class Held:
    """What `data.packed.Packed` asks for, over a list of bytes."""

    pictures: tuple[bytes, ...]

    def __len__(self) -> int:
        return len(self.pictures)

    def total_bytes(self) -> int:
        return sum(map(len, self.pictures))

    def size(self, i: int) -> int:
        return len(self.pictures[i])

    def read(self, i: int, start: int = 0, count: int | None = None) -> bytes:
        return self.pictures[i][start : None if count is None else start + count]


def held(source: Source) -> Source:
    """The same pictures as a source of files, held as bytes."""
    assert source.paths is not None
    return Source(
        name=source.name,
        class_names=source.class_names,
        labels=source.labels,
        ids=Names.of(source.ids),
        given=source.given,
        packed=Held(tuple(Path(path).read_bytes() for path in source.paths)),
    )


def numbers(count: int) -> np.ndarray:
    return np.arange(count, dtype=np.int64)
