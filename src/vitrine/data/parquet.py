"""Pictures and classes in Parquet files, on this disk or far away: read by row groups, given by number."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, SupportsIndex, TypeVar, overload, runtime_checkable

import numpy as np
from jaxtyping import Int64, UInt8

from vitrine.data.blocks import MIXED_BYTES, span_of
from vitrine.data.columns import Columns, choose, require_pyarrow
from vitrine.data.held import Held
from vitrine.data.labels import Cells, Classes
from vitrine.data.packed import picked
from vitrine.data.tabled import Tabled, left_out
from vitrine.errors import BadData, VitrineError
from vitrine.files import read_error

if TYPE_CHECKING:
    import pyarrow as pa

T = TypeVar("T")

GROUP_BYTES = 2 << 30
"""A row group with more bytes of pictures is refused: it would be read as a whole for each of them."""

MOST_ROWS = 1 << 31
AT_ONCE = 64
"""Rows that are unpacked together, so that a small file of huge cells is noticed before it fills the memory."""

READERS = 16
"""Files far away that are looked into at once; row groups that are read ahead at once are a quarter."""


@runtime_checkable
class Place(Protocol):
    """Where files lie. `reading` gives what `use` makes of a file opened for pyarrow; `far` is that of `Blocked`."""

    @property
    def far(self) -> bool: ...
    def reading(self, file: str, use: Callable[[Any], T]) -> T: ...


@dataclass(frozen=True)
class Disk:
    """Files below `folder` on this disk."""

    folder: Path
    far: bool = False

    def reading(self, file: str, use: Callable[[Any], T]) -> T:
        """What `use` makes of the path of a file. Raises `BadData` where that is no sound Parquet, `DiskError`."""
        path = self.folder / file
        try:
            return use(str(path))
        except VitrineError:
            raise
        except Exception as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise read_error(error, path) from error
            raise not_parquet(file, error) from error


def not_parquet(file: str, error: Exception) -> BadData:
    """The error for what pyarrow said of a file."""
    told = " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__
    return BadData(f"{file}: cannot be read as Parquet ({told}). Get the file again.")


@dataclass(frozen=True, kw_only=True, eq=False)
class Chunks:
    """The pictures of a row group in the pieces that they were unpacked in, with the rows at which these end."""

    pieces: tuple[Any, ...]
    ends: Int64[np.ndarray, " p"]
    nbytes: int

    def cell(self, row: int) -> Any:
        """The bytes of a row as pyarrow's buffer, or None."""
        piece = int(np.searchsorted(self.ends, row, side="right"))
        begin = int(self.ends[piece - 1]) if piece else 0
        return self.pieces[piece][row - begin].as_buffer()


class RowNames(Sequence[str]):
    """Names of rows, `FILE:ROW` counted from 0, made when they are asked for."""

    def __init__(self, files: tuple[str, ...], ends: Int64[np.ndarray, " f"], kept: Int64[np.ndarray, " n"] | None):
        self.files, self.ends, self.kept = files, ends, kept

    def __len__(self) -> int:
        return int(self.ends[-1]) if self.kept is None else len(self.kept)

    def of_row(self, row: int) -> str:
        """The name of a row of all rows, whether kept or not."""
        file = int(np.searchsorted(self.ends, row, side="right"))
        return f"{self.files[file]}:{row - (int(self.ends[file - 1]) if file else 0)}"

    @overload
    def __getitem__(self, i: SupportsIndex) -> str: ...
    @overload
    def __getitem__(self, i: slice) -> tuple[str, ...]: ...
    def __getitem__(self, i: SupportsIndex | slice) -> str | tuple[str, ...]:
        return picked(i, len(self), lambda k: self.of_row(k if self.kept is None else int(self.kept[k])))


class Groups:
    """`Packed` pictures, `Blocked` by row groups. `metas` are the files' own tables of contents.

    `kept` are the rows that count, of all rows of all files in their order; None for all of them.
    """

    def __init__(
        self, place: Place, files: tuple[str, ...], metas: tuple[Any, ...], columns: Columns,
        kept: Int64[np.ndarray, " n"] | None,
    ) -> None:  # fmt: skip
        self.place, self.files, self.metas, self.columns, self.kept = place, files, metas, columns, kept
        self.groups = [(f, g) for f, meta in enumerate(metas) for g in range(meta.num_row_groups)]
        rows = [metas[f].row_group(g).num_rows for f, g in self.groups]
        self.ends = np.cumsum(rows, dtype=np.int64)
        of_file = np.cumsum([meta.num_rows for meta in metas], dtype=np.int64)
        self.names = RowNames(files, of_file, kept)
        sizes = [_picture_bytes(metas[f].row_group(g), columns) for f, g in self.groups]
        counted = self.ends if kept is None else np.searchsorted(kept, self.ends, side="left")
        self.blocks = np.unique(counted[counted > 0]).astype(np.int64)
        self.span = span_of(sum(sizes), len(self.blocks))
        self.far = place.far
        self._total = sum(sizes)
        self._held: Held[Chunks] = Held(max(MIXED_BYTES * 3 // 2, (self.span + 4) * max(sizes, default=0)))
        self._ahead: set[int] = set()

    def __reduce__(self) -> tuple[Any, ...]:
        return Groups, (self.place, self.files, self.metas, self.columns, self.kept)

    def __len__(self) -> int:
        return len(self.names)

    def total_bytes(self) -> int:
        """Bytes of all pictures as the files state them, rows that do not count included."""
        return self._total

    def size(self, i: int) -> int:
        """Bytes of picture `i`."""
        return int(self._cell(i).size)

    def read(self, i: int, start: int = 0, count: int | None = None) -> bytes:
        """Bytes of picture `i`, its row group read where it is not held."""
        cell = self._cell(i)
        start = min(start, cell.size)
        length = cell.size - start
        return bytes(cell.slice(start, length if count is None else min(count, length)).to_pybytes())

    def soon(self, numbers: Iterable[int]) -> None:
        """Begin to read the row groups of these pictures beside all else, where reading takes its time.

        Only a few at once: those that must wait will be named again.
        """
        for group in dict.fromkeys(self._of(i)[0] for i in numbers) if self.far else ():
            if len(self._ahead) >= READERS // 4:
                return
            if group not in self._held and group not in self._ahead:
                self._ahead.add(group)
                # A network that fails keeps nobody from leaving.
                threading.Thread(target=self._read_ahead, args=(group,), daemon=True).start()

    def _read_ahead(self, group: int) -> None:
        with contextlib.suppress(VitrineError):  # it shows when the picture is asked for
            self._group(group)
        self._ahead.discard(group)

    def _of(self, i: int) -> tuple[int, int]:
        """The row group of picture `i`, and its row there."""
        row = i if self.kept is None else int(self.kept[i])
        group = int(np.searchsorted(self.ends, row, side="right"))
        return group, row - (int(self.ends[group - 1]) if group else 0)

    def _cell(self, i: int) -> Any:
        group, row = self._of(i)
        try:
            cell = self._group(group).cell(row)
        except BadData as error:
            raise BadData(f"{self.names[i]}: {error}") from error
        if cell is None:
            raise BadData(f"{self.names[i]}: the cell holds no picture; a path alone is not followed.")
        return cell

    def _group(self, group: int) -> Chunks:
        file, place = self.groups[group]

        def unpack(opened: Any) -> Chunks:
            return _unpacked(opened, self.metas[file], place, self.columns)

        return self._held.get(group, lambda: self.place.reading(self.files[file], unpack))


def _leaf(columns: Columns) -> str:
    return f"{columns.picture}.bytes" if columns.nested else columns.picture


def _picture_bytes(group: Any, columns: Columns) -> int:
    """Bytes of the pictures in a row group, as the file states them."""
    every = (group.column(k) for k in range(group.num_columns))
    return sum(max(0, one.total_uncompressed_size) for one in every if one.path_in_schema == _leaf(columns))


def _unpacked(opened: Any, meta: Any, group: int, columns: Columns) -> Chunks:
    """The pictures of one row group of an opened file, on one thread."""
    import pyarrow.parquet as parquet

    pieces: list[Any] = []
    rows = total = 0
    ends: list[int] = []
    with parquet.ParquetFile(opened, metadata=meta) as file:
        wanted = {"row_groups": [group], "columns": [_leaf(columns)], "batch_size": AT_ONCE, "use_threads": False}
        for batch in file.iter_batches(**wanted):
            cells = batch.column(0)
            cells = cells.flatten()[0] if columns.nested else cells
            pieces.append(cells)
            total += cells.nbytes
            ends.append(rows := rows + len(cells))
            if total > GROUP_BYTES:
                raise BadData(_too_large(group, total))
    if rows != meta.row_group(group).num_rows:
        raise BadData(f"row group {group} has {rows:,} rows, {meta.row_group(group).num_rows:,} are stated")
    return Chunks(pieces=tuple(pieces), ends=np.array(ends, np.int64), nbytes=total)


def _too_large(group: int, size: int) -> str:
    return (
        f"row group {group} has {size:,} bytes of pictures or more, above the limit of {GROUP_BYTES:,}: it is read as "
        "a whole for each of them. Write the file anew with fewer rows a group (row_group_size=100)"
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Looked:
    """What a file tells without its pictures."""

    meta: Any
    schema: Any
    column: pa.ChunkedArray | None


def open_files(
    place: Place,
    files: Sequence[tuple[str, str]],
    name: str,
    *,
    picture: str = "",
    label: str | None = "",
    labelled: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> Tabled:
    """The pictures of these (file, part) with their classes. Tables of contents and classes are read, no picture is.

    `picture` and `label` name their columns, "" where they are to be found, None for no classes at all; where they are
    of no use (`labelled` False) there may be none. Rows without a class are left out and told. Raises `BadData`,
    `NotFound`, `Unavailable`.
    """
    parquet = require_pyarrow(name)
    found: list[Columns] = []

    def look(file: str) -> _Looked:
        def use(opened: Any) -> _Looked:
            with parquet.ParquetFile(opened, **({"pre_buffer": False} if place.far else {})) as one:
                # All files have the columns of the first one, which is looked into before the others.
                columns = found[0] if found else choose(file, one.schema_arrow, picture, label, labelled=labelled)
                _require_sound(file, one, columns)
                column = None
                if columns.label is not None:
                    column = one.read(columns=[columns.label], use_threads=False).column(0)
                return _Looked(meta=one.metadata, schema=one.schema_arrow, column=column)

        return place.reading(file, use)

    names = tuple(file for file, _ in files)
    first = look(names[0])
    found.append(choose(names[0], first.schema, picture, label, labelled=labelled))
    looked = [first]
    with ThreadPoolExecutor(READERS if place.far else 1, "tables") as pool:
        for one in pool.map(look, names[1:]):
            looked.append(one)
            if progress is not None:
                progress(len(looked), len(names))
    return _joined(place, files, name, found[0], looked)


def _require_sound(file: str, opened: Any, columns: Columns) -> None:
    """Raise `BadData` where a file has not these columns, or states numbers that cannot be."""
    meta, schema = opened.metadata, opened.schema_arrow
    for column in filter(None, (columns.picture, columns.label)):
        if schema.names.count(column) != 1:
            raise BadData(f"{file}: has no column {column}, which the other files have. Leave the file out.")
    if not 0 <= meta.num_rows < MOST_ROWS:
        raise BadData(f"{file}: states {meta.num_rows:,} rows, more than the limit of {MOST_ROWS:,}. Write several.")
    for group in range(meta.num_row_groups):
        size = _picture_bytes(meta.row_group(group), columns)
        if size > GROUP_BYTES:
            raise BadData(f"{file}: {_too_large(group, size)}.")


def _joined(
    place: Place, files: Sequence[tuple[str, str]], name: str, columns: Columns, looked: Sequence[_Looked]
) -> Tabled:
    """One set of all files."""
    names, rows = tuple(file for file, _ in files), np.array([one.meta.num_rows for one in looked], np.int64)
    if not rows.sum():
        raise BadData(f"{name}: holds no rows. Give files with pictures.")
    given = np.repeat(np.array([part for _, part in files], np.str_), rows)
    every = RowNames(names, np.cumsum(rows), None)
    kept: Int64[np.ndarray, " n"] | None = None
    notes: tuple[str, ...] = ()
    class_names: tuple[str, ...] = ("",)
    if columns.label is None:
        labels: Int64[np.ndarray, " n"] | UInt8[np.ndarray, "n K"] = np.zeros(int(rows.sum()), np.int64)
    else:
        classes, cells, begin = Classes(columns=columns), list[Cells](), 0
        for one in looked:
            assert one.column is not None
            cells.append(classes.read(one.column, lambda row, begin=begin: every.of_row(begin + row)))  # type: ignore[misc]
            begin += one.meta.num_rows
        says = np.concatenate([part.given for part in cells])
        class_names, labels = classes.settle(name, cells)
        if not says.all():
            kept, notes = np.flatnonzero(says), left_out(given, says)
            given = given[kept]
    packed = Groups(place, names, tuple(one.meta for one in looked), columns, kept)
    return Tabled(
        name=name, packed=packed, class_names=class_names, labels=labels, ids=packed.names, given=given, notes=notes
    )
