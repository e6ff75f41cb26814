"""Pictures that lie in tar files, read at their places without unpacking anything."""

from __future__ import annotations

import os
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Int64, Shaped

from vitrine.errors import BadData
from vitrine.files import read_error

KEPT_OPEN = 128
"""Files that stay open; of more, the rest is opened for each picture: a process may hold only so many."""


class Descriptor:
    """An open file, closed when nobody holds it any more."""

    def __init__(self, path: Path) -> None:
        self.number = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0))

    def at(self, offset: int, count: int) -> bytes:
        """`count` bytes from `offset`, or as many as there are."""
        if hasattr(os, "pread"):
            return os.pread(self.number, count, offset)
        with os.fdopen(os.dup(self.number), "rb") as file:  # pragma: no cover
            file.seek(offset)
            return file.read(count)

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)


@dataclass(frozen=True, kw_only=True, eq=False)
class Tarred:
    """Pictures in tar files, as `data.packed.Packed`: picture i is `lengths[i]` bytes from `offsets[i]` of its file.

    `sums`, where they are known, are the CRC-32 of each picture: a byte that has changed since is noticed.
    """

    files: tuple[Path, ...]
    file: Shaped[np.ndarray, " n"]
    offsets: Int64[np.ndarray, " n"]
    lengths: Int64[np.ndarray, " n"]
    sums: Shaped[np.ndarray, " n"] | None = None
    _open: dict[int, Descriptor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.offsets)

    def total_bytes(self) -> int:
        """The bytes of all pictures."""
        return int(self.lengths.sum())

    def size(self, i: int) -> int:
        """The bytes of picture `i`."""
        return int(self.lengths[i])

    def read(self, i: int, start: int = 0, count: int | None = None) -> bytes:
        """Bytes of picture `i`. Raises `BadData` where they are not those that were written, or no longer there."""
        number, length = int(self.file[i]), int(self.lengths[i])
        wanted = max(0, length - start if count is None else min(count, length - start))
        try:
            data = self._descriptor(number).at(int(self.offsets[i]) + start, wanted)
        except OSError as error:
            raise read_error(error, self.files[number]) from error
        if len(data) < wanted:
            raise BadData(f"{self.files[number].name} ends before the picture does. Take another copy of it.")
        if self.sums is not None and wanted == length and zlib.crc32(data) != int(self.sums[i]):
            raise BadData(f"its bytes in {self.files[number].name} are not those that were written. Take another copy.")
        return data

    def _descriptor(self, number: int) -> Descriptor:
        found = self._open.get(number)
        if found is None:
            found = Descriptor(self.files[number])
            if len(self._open) < KEPT_OPEN:
                # Of two threads that open one file at once, one finds the other's; what is not kept closes itself.
                found = self._open.setdefault(number, found)
        return found

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_open": {}}
