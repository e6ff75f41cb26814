"""A CSV that lists pictures: columns path and label (or labels), and split where the parts are given."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from vitrine.data.listing import PART_NAMES, Listing, Row
from vitrine.errors import BadData

DELIMITERS = ",;\t|"
BAR = "|"
"""Between the names in a cell of the column `labels`."""


def read_table(path: Path) -> Listing:
    """The pictures listed in the CSV at `path`; their paths are relative to its folder.

    The first line names the columns, in any case and order; the delimiter is a comma, semicolon, tab or bar,
    whichever makes path and label appear. A column `labels` instead of `label` makes the listing multi-label: its cells
    hold names with a bar between them, or nothing for none. A file that is not there stays in the list and is found
    damaged later. Raises `BadData` for a missing column, an empty cell or an unknown part, with the line.
    """
    text = read_utf8(path)
    columns, delimiter = _columns(path, text.partition("\n")[0])
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        next(reader)
        filled = ((cells, reader.line_num) for cells in reader if any(cell.strip() for cell in cells))
        rows = [_row(path, columns, cells, line) for cells, line in filled]
    except csv.Error as error:
        raise BadData(f"{path}, line {reader.line_num}: this is not valid CSV: {error}.") from error
    if not rows:
        raise BadData(f"{path}: lists no pictures. Add one line of path and label for each.")
    return Listing(rows=tuple(rows), multi_label="labels" in columns)


def read_utf8(path: Path) -> str:
    """The text of a file. Raises `BadData` unless it is UTF-8."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadData(f"{path}: is not UTF-8 text ({error.reason}). Save it as UTF-8.") from error


def _columns(path: Path, header: str) -> tuple[dict[str, int], str]:
    """Place of each column by name, and the delimiter."""
    readings = []
    for delimiter in DELIMITERS:
        cells = next(csv.reader([header], delimiter=delimiter), [])
        columns = {cell.strip().lower(): place for place, cell in enumerate(cells)}
        if "path" in columns and {"label", "labels"} & columns.keys():
            _check_labels(path, columns, delimiter)
            return columns, delimiter
        readings.append([cell.strip() for cell in cells])
    found = max(readings, key=len)
    missing = " and ".join(name for name in ("path", "label") if name not in map(str.lower, found))
    raise BadData(
        f"{path}: the first line has no column {missing}; columns found: {', '.join(found) or 'none'}. "
        "Name the columns path and label (labels for several classes a picture), and split where the parts are given."
    )


def _check_labels(path: Path, columns: dict[str, int], delimiter: str) -> None:
    """Refuse a table of both kinds, and one whose columns and names have the same sign between them."""
    if {"label", "labels"} <= columns.keys():
        raise BadData(
            f"{path}: has both a column label and a column labels. Keep label where every picture has one class, "
            f"labels where it may have several, with a {BAR} between them."
        )
    if "labels" in columns and delimiter == BAR:
        raise BadData(
            f"{path}: its columns are parted by {BAR}, which parts the names in the column labels. "
            "Part the columns by a comma, semicolon or tab."
        )


def _row(table: Path, columns: dict[str, int], cells: list[str], line: int) -> Row:
    """One line of the table, checked."""
    where = f"{table}, line {line}"

    def value(column: str) -> str:
        place = columns[column]
        return cells[place].strip() if place < len(cells) else ""

    def cell(column: str) -> str:
        if not value(column):
            raise BadData(f"{where}: {column} is empty. Fill it in or remove the line.")
        return value(column)

    name = cell("path")
    part = part_named(where, cell("split")) if "split" in columns else ""
    file, name = in_place(table, name)
    if "labels" not in columns:
        return Row(path=file, id=name, label=_single(where, cell("label")), part=part)
    if columns["labels"] >= len(cells):
        raise BadData(f"{where}: there is no cell for labels. Put a delimiter there; empty is for none.")
    labels = tuple(one.strip() for one in value("labels").split(BAR)) if value("labels") else ()
    require_names(where, labels)
    return Row(path=file, id=name, label="", labels=labels, part=part)


def _single(where: str, label: str) -> str:
    """The one class of a picture, refused where it looks like several."""
    if BAR in label:
        raise BadData(
            f"{where}: label = {label!r}: has a {BAR} in it. Where a picture may have several classes, name the column "
            "labels; where this is one class, write it without the bar."
        )
    return label


def require_names(where: str, labels: tuple[str, ...]) -> None:
    """Raise `BadData` for an empty name among the classes of a picture, a bar in one, and one that is there twice."""
    told = BAR.join(labels)
    if not all(labels):
        raise BadData(f"{where}: labels = {told!r}: one of the names is empty. Remove the {BAR} that is too many.")
    if any(BAR in name for name in labels):
        raise BadData(f"{where}: labels = {list(labels)!r}: a name has a {BAR} in it. Give each name by itself.")
    twice = [name for name in dict.fromkeys(labels) if labels.count(name) > 1]
    if twice:
        raise BadData(f"{where}: labels = {told!r}: {twice[0]} is there twice. Keep it once.")


def part_named(where: str, word: str) -> str:
    """The part that `word` means, "" for an empty one. Raises `BadData` for another word."""
    if word and word.lower() not in PART_NAMES:
        raise BadData(f"{where}: split = {word!r}: must be one of train, val, test.")
    return PART_NAMES[word.lower()] if word else ""


def in_place(table: Path, name: str) -> tuple[Path, str]:
    """The file that a table means by `name`, and the name with slashes."""
    file = table.parent / name
    if "\\" in name and not file.exists():
        name = name.replace("\\", "/")
        file = table.parent / name
    return file, name
