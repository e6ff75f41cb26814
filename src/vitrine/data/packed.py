"""Encoded pictures that lie in something larger than a file each: how they are read, named, and known beforehand."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, SupportsIndex, TypeVar, overload, runtime_checkable

import numpy as np
from jaxtyping import Int64, UInt8

from vitrine.errors import BadData

T = TypeVar("T")

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


def picked(i: SupportsIndex | slice, num: int, one: Callable[[int], T], word: str = "name") -> T | tuple[T, ...]:
    """Item `i` of a sequence of `num` whose item k, from 0, is `one(k)`: below 0 from the end, of a slice a tuple.

    Raises `IndexError`, in which an item is a `word`, for one that is not there.
    """
    if isinstance(i, slice):
        return tuple(one(k) for k in range(*i.indices(num)))
    k = operator.index(i)
    if not -num <= k < num:
        raise IndexError(f"{word} {k} of {num}")
    return one(k % num)


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
    def __getitem__(self, i: SupportsIndex) -> str: ...
    @overload
    def __getitem__(self, i: slice) -> tuple[str, ...]: ...
    def __getitem__(self, i: SupportsIndex | slice) -> str | tuple[str, ...]:
        return picked(i, len(self), self._name)

    def _name(self, k: int) -> str:
        begin = int(self.ends[k - 1]) if k else 0
        return self.text[begin : int(self.ends[k])].tobytes().decode("utf-8", "surrogateescape")

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
    def __getitem__(self, i: SupportsIndex) -> bytes: ...
    @overload
    def __getitem__(self, i: slice) -> tuple[bytes, ...]: ...
    def __getitem__(self, i: SupportsIndex | slice) -> bytes | tuple[bytes, ...]:
        return picked(i, len(self), self._digest, "digest")

    def _digest(self, k: int) -> bytes:
        row = self.table[k]
        return row.tobytes() if row.any() else b""

    def twins(self, members: Int64[np.ndarray, " m"], kinds: Int64[np.ndarray, " n"]) -> list[Int64[np.ndarray, " _"]]:
        """Those of `members` that share a digest and are not all of one kind, in groups, in the order of `members`.

        `kinds` has a number for each row of the table.
        """
        members = members[self.table[members].any(axis=1)]
        rows = np.ascontiguousarray(self.table[members])
        # Eight bytes part all but copies; only what they leave together is compared in full.
        keys = rows[:, :8].copy().view(np.uint64)[:, 0]
        order = np.argsort(keys, kind="stable")
        ends = np.append(np.flatnonzero(keys[order][1:] != keys[order][:-1]) + 1, len(keys))[: len(keys)]
        begins = np.append(0, ends[:-1])[: len(keys)]
        kind = kinds[members[order]]
        unlike = np.add.reduceat(kind != np.repeat(kind[begins], ends - begins), begins) if len(keys) else begins
        sames = (rows[order][1:] == rows[order][:-1]).all(axis=1)
        clean = np.append(0, np.cumsum(~sames))  # how many rows up to here are not as the one before
        groups: list[Int64[np.ndarray, " _"]] = []
        for begin, end in zip(begins[unlike > 0].tolist(), ends[unlike > 0].tolist(), strict=True):
            places = order[begin:end]
            if clean[begin] == clean[end - 1]:
                groups.append(members[places])
            else:
                apart = (members[group] for group in _alike(rows, places))
                groups += [group for group in apart if (kinds[group] != kinds[group[0]]).any()]
        at = np.empty(len(kinds), np.int64)
        at[members] = np.arange(len(members))
        return sorted(groups, key=lambda group: int(at[group[0]]))


def _alike(rows: UInt8[np.ndarray, "n 32"], places: Int64[np.ndarray, " m"]) -> list[Int64[np.ndarray, " _"]]:
    """`places` in groups of equal rows, those of one left out."""
    groups = []
    while len(places) > 1:
        same = (rows[places] == rows[places[0]]).all(axis=1)
        groups += [places[same]] if same.sum() > 1 else []
        places = places[~same]
    return groups


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
