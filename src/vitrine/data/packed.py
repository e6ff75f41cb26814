"""Encoded pictures that lie in something larger than a file each: how they are read, named, and known beforehand."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, overload, runtime_checkable

import numpy as np
from jaxtyping import Int64, UInt8

from vitrine.errors import BadData

DIGEST_BYTES = 32


@runtime_checkable
class Packed(Protocol):
    """Encoded pictures by number, held open: members of a tar, cells of a table.

    `size` is the bytes of picture `i`, `read` all of them or `count` from `start` onward (fewer where the picture ends
    before). `total_bytes` is the sum of all sizes, or near it. Any number of threads may read at once; after a fork the
    child may read on; sent to another process, it opens again there. Raises `BadData` or `DiskError` for a picture that
    cannot be had, which then counts as a damaged one.
    """

    def __len__(self) -> int: ...
    def total_bytes(self) -> int: ...
    def size(self, i: int) -> int: ...
    def read(self, i: int, start: int = 0, count: int | None = None) -> bytes: ...


class Names(Sequence[str]):
    """Many names in one piece of memory, which a million Python strings would not be. They are UTF-8."""

    def __init__(self, text: UInt8[np.ndarray, " _"], ends: Int64[np.ndarray, " n"]) -> None:
        self.text, self.ends = text, ends

    @classmethod
    def of(cls, names: Iterable[str]) -> Names:
        """These names, in this order."""
        pieces = [name.encode("utf-8", "surrogateescape") for name in names]
        ends = np.cumsum(np.fromiter(map(len, pieces), np.int64, len(pieces)), dtype=np.int64)
        return cls(np.frombuffer(b"".join(pieces), np.uint8), ends)

    def __len__(self) -> int:
        return len(self.ends)

    @overload
    def __getitem__(self, i: int) -> str: ...
    @overload
    def __getitem__(self, i: slice) -> tuple[str, ...]: ...
    def __getitem__(self, i: int | slice) -> str | tuple[str, ...]:
        if isinstance(i, slice):
            return tuple(self[k] for k in range(*i.indices(len(self))))
        n = len(self)
        if not -n <= i < n:
            raise IndexError(f"name {i} of {n}")
        i %= n
        begin = int(self.ends[i - 1]) if i else 0
        return self.text[begin : int(self.ends[i])].tobytes().decode("utf-8", "surrogateescape")

    def __iter__(self) -> Iterator[str]:
        text, begin = self.text.tobytes(), 0
        for end in self.ends.tolist():
            yield text[begin:end].decode("utf-8", "surrogateescape")
            begin = end


class Digests(Sequence[bytes]):
    """SHA-256 of each picture, empty for one without: rows of a table, all 0 where there is none."""

    def __init__(self, table: UInt8[np.ndarray, "n 32"]) -> None:
        self.table = table

    @classmethod
    def of(cls, digests: Sequence[bytes]) -> Digests:
        """These digests, in this order."""
        joined = b"".join(digest or bytes(DIGEST_BYTES) for digest in digests)
        return cls(np.frombuffer(joined, np.uint8).reshape(-1, DIGEST_BYTES))

    def __len__(self) -> int:
        return len(self.table)

    @overload
    def __getitem__(self, i: int) -> bytes: ...
    @overload
    def __getitem__(self, i: slice) -> tuple[bytes, ...]: ...
    def __getitem__(self, i: int | slice) -> bytes | tuple[bytes, ...]:
        if isinstance(i, slice):
            return tuple(self[k] for k in range(*i.indices(len(self))))
        row = self.table[i]
        return row.tobytes() if row.any() else b""

    def twins(self, members: Int64[np.ndarray, " m"]) -> list[Int64[np.ndarray, " _"]]:
        """Those of `members` that share a digest, in groups of two or more, in the order in which they first appear."""
        members = members[self.table[members].any(axis=1)]
        rows = np.ascontiguousarray(self.table[members])
        # Eight bytes part nearly all; only what they leave together is compared in full.
        _, place, count = np.unique(rows[:, :8].view(np.uint64)[:, 0], return_inverse=True, return_counts=True)
        groups: dict[bytes, list[int]] = {}
        for k in np.flatnonzero(count[place.reshape(-1)] > 1).tolist():
            groups.setdefault(rows[k].tobytes(), []).append(int(members[k]))
        return [np.array(group, np.int64) for group in groups.values() if len(group) > 1]


@dataclass(frozen=True, kw_only=True, eq=False)
class Known:
    """What a look at every picture found at an earlier time, all of them readable: see `scan.Scan` for the fields."""

    sizes: Int64[np.ndarray, "n 2"]
    grey: bool
    hashes: Digests
    fingerprint: str

    def __post_init__(self) -> None:
        if len(self.sizes) != len(self.hashes):
            raise BadData(f"{len(self.sizes):,} sizes are known and {len(self.hashes):,} hashes. Make the index anew.")
