"""Cells of a table to class numbers: those that a table numbers, those that it names, and lists of either."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int64, UInt8

from vitrine.data.columns import Columns
from vitrine.data.listing import natural_key
from vitrine.errors import BadData

if TYPE_CHECKING:
    import pyarrow as pa

UNLABELLED = -1
"""What Hugging Face's data sets write where the class of a picture is not given, as in a test part."""

MOST_CELLS = 200_000_000
"""Numbers, not bytes: of a table of n pictures and K classes that several may be of."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Cells:
    """The classes of some rows: `codes` one after the other; `counts` how many each row has, None where each has one.

    A code, or a count, of `UNLABELLED` stands for a row that says nothing.
    """

    codes: Int64[np.ndarray, " m"]
    counts: Int64[np.ndarray, " n"] | None = None

    @property
    def given(self) -> np.ndarray:
        """Which rows say something, as n truth values."""
        return (self.codes if self.counts is None else self.counts) != UNLABELLED


@dataclass(frozen=True, kw_only=True, eq=False)
class Classes:
    """What gives each class of a column its number while the column is read."""

    columns: Columns
    _numbers: dict[str, int] = field(default_factory=dict)

    def read(self, column: pa.ChunkedArray, name_of: Callable[[int], str]) -> Cells:
        """The classes in this column; `name_of(row)` names a row. Raises `BadData` for a cell that is no class."""
        import pyarrow as pa

        try:
            array = column.combine_chunks()
            if isinstance(array, pa.ChunkedArray):  # of a column without a chunk, in some versions
                array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], column.type)
            if not self.columns.several:
                return Cells(codes=self._codes(array, name_of, lists=False))
            counts = array.value_lengths().fill_null(UNLABELLED).to_numpy(zero_copy_only=False).astype(np.int64)
            owner = np.repeat(np.arange(len(counts)), np.maximum(counts, 0))
            codes = self._codes(array.flatten(), lambda k: name_of(int(owner[k])), lists=True)
            return Cells(codes=codes, counts=counts)
        except (pa.ArrowException, ValueError, OverflowError) as error:
            told = " ".join(str(error).split())
            raise BadData(f"{name_of(0)}: column {self.columns.label}: cannot be read as classes ({told}).") from error

    def _codes(self, array: pa.Array, name_of: Callable[[int], str], *, lists: bool) -> Int64[np.ndarray, " m"]:
        import pyarrow as pa

        if pa.types.is_dictionary(array.type):
            array = array.dictionary_decode()
        text = not (pa.types.is_integer(array.type) or pa.types.is_boolean(array.type))
        if text:
            coded = array.dictionary_encode()
            words = coded.dictionary.to_pylist()
            numbers = np.array([self._number(word) for word in words] or [0], np.int64)
            at = coded.indices.fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
            codes = np.where(array.is_null().to_numpy(zero_copy_only=False), UNLABELLED, numbers[at])
            wrong = np.flatnonzero(codes == self._numbers.get("", UNLABELLED - 1))
            said = "an empty name"
        else:
            codes = array.cast(pa.int64()).fill_null(UNLABELLED).to_numpy(zero_copy_only=False).astype(np.int64)
            most = len(self.columns.names) if self.columns.names is not None else np.iinfo(np.int64).max
            wrong = np.flatnonzero((codes < UNLABELLED) | (codes >= most))
            said = f"{codes[wrong[0]]}, where the classes are 0 to {most - 1:,}" if len(wrong) else ""
        if lists and not len(wrong):
            wrong, said = np.flatnonzero(codes == UNLABELLED), "a class that is not given, inside a list"
        if len(wrong):
            raise BadData(f"{name_of(int(wrong[0]))}: column {self.columns.label} has {said}. Mend the cell.")
        return codes.astype(np.int64)

    def _number(self, word: str) -> int:
        return self._numbers.setdefault(word, len(self._numbers))

    def settle(self, name: str, parts: Sequence[Cells]) -> tuple[tuple[str, ...], np.ndarray]:
        """The names of the classes that a picture has, and the labels of all rows that say something, as in `Source`.

        Classes that the column numbers keep their order; names stand in natural order. Raises `BadData` where no row
        says anything.
        """
        codes = np.concatenate([cells.codes for cells in parts]) if parts else np.empty(0, np.int64)
        if not self.columns.several:
            codes = codes[codes != UNLABELLED]
        used = np.unique(codes)
        if not len(used):
            raise BadData(f"{name}: no picture has a class in the column {self.columns.label}; nothing can be learnt.")
        words = list(self._numbers) or self.columns.names
        names = [words[code] if words else str(code) for code in used.tolist()]
        if self._numbers:
            ranked = sorted(range(len(used)), key=lambda k: natural_key(names[k]))
            used, names = used[ranked], [names[k] for k in ranked]
        by_code = np.argsort(used)
        labels = by_code[np.searchsorted(used[by_code], codes)]
        if not self.columns.several:
            return tuple(names), labels
        return tuple(names), _table(name, parts, labels, len(names))


def _table(
    name: str, parts: Sequence[Cells], labels: Int64[np.ndarray, " m"], num_classes: int
) -> UInt8[np.ndarray, "n K"]:
    """A row of 0 and 1 for each picture that says something, maybe that it has no class."""
    counts = np.concatenate([cells.counts for cells in parts if cells.counts is not None])
    counts = counts[counts != UNLABELLED]
    if len(counts) * num_classes > MOST_CELLS:
        raise BadData(f"{name}: {len(counts):,} pictures of {num_classes:,} classes are too many for several classes "
                      "a picture. Choose a column of fewer classes by data.label_column.")  # fmt: skip
    table = np.zeros((len(counts), num_classes), np.uint8)
    table[np.repeat(np.arange(len(counts)), counts), labels] = 1
    return table
