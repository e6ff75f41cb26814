"""Folders that `datasets` wrote by `save_to_disk`, read by that library: a memory map, no picture decoded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, SupportsIndex, overload

import numpy as np

from vitrine.data.columns import INSTALL, Columns, choose
from vitrine.data.labels import Classes
from vitrine.data.packed import picked
from vitrine.data.parted import WORDS
from vitrine.data.tabled import Tabled, left_out
from vitrine.errors import BadData, Unavailable, VitrineError

_ONE = ("dataset_info.json", "state.json")
_SEVERAL = "dataset_dict.json"


def is_saved(folder: Path) -> bool:
    """Whether `save_to_disk` wrote this folder."""
    return (folder / _SEVERAL).is_file() or all((folder / name).is_file() for name in _ONE)


class SavedNames(Sequence[str]):
    """Names of rows, `SPLIT/ROW` or `ROW`, made when they are asked for."""

    def __init__(self, splits: tuple[str, ...], begins: tuple[int, ...], kept: np.ndarray) -> None:
        self.splits, self.begins, self.kept = splits, begins, kept

    def __len__(self) -> int:
        return len(self.kept)

    def where(self, row: int) -> tuple[int, int]:
        """The split of a row of all rows, and its place there."""
        split = int(np.searchsorted(self.begins, row, side="right")) - 1
        return split, row - self.begins[split]

    def of_row(self, row: int) -> str:
        """The name of a row of all rows."""
        split, place = self.where(row)
        return f"{self.splits[split]}/{place}" if self.splits[split] else f"row {place}"

    @overload
    def __getitem__(self, i: SupportsIndex) -> str: ...
    @overload
    def __getitem__(self, i: slice) -> tuple[str, ...]: ...
    def __getitem__(self, i: SupportsIndex | slice) -> str | tuple[str, ...]:
        return picked(i, len(self), lambda k: self.of_row(int(self.kept[k])))


@dataclass(frozen=True, kw_only=True, eq=False)
class Saved:
    """`Packed` pictures of splits that the library holds open."""

    splits: tuple[Any, ...]
    columns: Columns
    names: SavedNames
    total: int

    def __len__(self) -> int:
        return len(self.names)

    def total_bytes(self) -> int:
        """Bytes of the column, rows that do not count included."""
        return self.total

    def size(self, i: int) -> int:
        """Bytes of picture `i`."""
        return len(self._cell(i))

    def read(self, i: int, start: int = 0, count: int | None = None) -> bytes:
        """Bytes of picture `i`, from the memory map."""
        return self._cell(i)[start : None if count is None else start + count]

    def _cell(self, i: int) -> bytes:
        split, place = self.names.where(int(self.names.kept[i]))
        try:
            cell = self.splits[split][place][self.columns.picture]
        except Exception as error:  # whatever a damaged file makes the library raise
            raise BadData(f"{self.names[i]}: cannot be read ({' '.join(str(error).split())[:200]}).") from error
        found = cell.get("bytes") if isinstance(cell, dict) else cell
        if not isinstance(found, bytes):
            raise BadData(f"{self.names[i]}: the cell holds no picture; a path alone is not followed.")
        return found


def open_saved(folder: Path, *, picture: str, label: str | None, labelled: bool) -> Tabled:
    """The pictures of a folder that `save_to_disk` wrote, with their classes and, by the names of splits, parts.

    Raises what `parquet.open_files` raises, and `Unavailable` without the library.
    """
    try:
        import datasets
    except ImportError as error:
        raise Unavailable(
            f"{folder}: was saved by the package datasets, which reads it. Install it: {INSTALL}"
        ) from error
    try:
        opened: Any = datasets.load_from_disk(str(folder), keep_in_memory=False)
        splits = dict(opened) if isinstance(opened, dict) else {"": opened}
        return _tabled(folder.resolve().name, splits, picture, label, labelled)
    except VitrineError:
        raise
    except Exception as error:
        told = " ".join(str(error).split())[:200]
        raise BadData(f"{folder}: `datasets` cannot load it ({told}). Save it again.") from error


def _tabled(name: str, splits: dict[str, Any], picture: str, label: str | None, labelled: bool) -> Tabled:
    import datasets

    parts = {split: WORDS.get(split.lower(), "") for split in splits}
    others = [split for split in splits if not parts[split]] if any(parts.values()) else []
    used = {split: one for split, one in splits.items() if split not in others and len(one)}
    if not used:
        raise BadData(f"{name}: holds no rows. Save it again with pictures.")
    columns: Columns | None = None
    for split, one in used.items():
        found = choose(f"{name}/{split}".rstrip("/"), one.features.arrow_schema, picture, label, labelled=labelled)
        if columns is not None and found != columns:
            raise BadData(f"{name}: its splits have different columns or classes. Save them again alike.")
        columns = found
    assert columns is not None
    opened = []
    for one in used.values():
        kept = one.select_columns([columns.picture])
        nested: Any = datasets.Image(decode=False)
        opened.append(kept.cast_column(columns.picture, nested) if columns.nested else kept)
    lengths = [len(one) for one in used.values()]
    begins = tuple(int(begin) for begin in np.cumsum([0, *lengths[:-1]]))
    every = SavedNames(tuple(used), begins, np.arange(sum(lengths)))
    given = np.repeat(np.array([parts[split] if len(used) > 1 else "" for split in used], np.str_), lengths)
    class_names: tuple[str, ...] = ("",)
    labels, says = np.zeros(sum(lengths), np.int64), np.ones(sum(lengths), bool)
    if columns.label is not None:
        classes = Classes(columns=columns)
        cells = [
            classes.read(
                one.select_columns([columns.label]).with_format("arrow")[:].column(0),
                lambda row, begin=begin: every.of_row(begin + row),  # type: ignore[misc]
            )
            for one, begin in zip(used.values(), begins, strict=True)
        ]
        says = np.concatenate([part.given for part in cells])
        class_names, labels = classes.settle(name, cells)
    notes = [f"Splits left out, as they are no part: {', '.join(others)}."] if others else []
    names = SavedNames(tuple(used), begins, np.flatnonzero(says))
    packed = Saved(
        splits=tuple(opened), columns=columns, names=names,
        total=sum(int(one.data.column(columns.picture).nbytes) for one in used.values()),
    )  # fmt: skip
    return Tabled(
        name=name, packed=packed, class_names=class_names, labels=labels, ids=names, given=given[says],
        notes=(*notes, *left_out(given, says)),
    )  # fmt: skip
