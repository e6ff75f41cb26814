"""A CSV that lists pictures: columns path and label, and split where the parts are given."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from vitrine.data.listing import PART_NAMES, Listing, Row
from vitrine.errors import BadData

DELIMITERS = ",;\t|"


def read_table(path: Path) -> Listing:
    """The pictures listed in the CSV at `path`; their paths are relative to its folder.

    The first line names the columns, in any case and order; the delimiter is a comma, semicolon, tab or bar,
    whichever makes path and label appear. A file that is not there stays in the list and is found damaged
    later. Raises `BadData` for a missing column, an empty cell or an unknown part, with the line.
    """
    text = _text(path)
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
    return Listing(rows=tuple(rows))


def _text(path: Path) -> str:
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
        if {"path", "label"} <= columns.keys():
            return columns, delimiter
        readings.append([cell.strip() for cell in cells])
    found = max(readings, key=len)
    missing = " and ".join(name for name in ("path", "label") if name not in map(str.lower, found))
    raise BadData(
        f"{path}: the first line has no column {missing}; columns found: {', '.join(found) or 'none'}. "
        "Name the columns path and label, and split where the parts are given."
    )


def _row(table: Path, columns: dict[str, int], cells: list[str], line: int) -> Row:
    """One line of the table, checked."""

    def cell(column: str) -> str:
        place = columns[column]
        value = cells[place].strip() if place < len(cells) else ""
        if not value:
            raise BadData(f"{table}, line {line}: {column} is empty. Fill it in or remove the line.")
        return value

    name = cell("path")
    part = cell("split") if "split" in columns else ""
    if part and part.lower() not in PART_NAMES:
        raise BadData(f"{table}, line {line}: split = {part!r}: must be one of train, val, test.")
    file = table.parent / name
    if "\\" in name and not file.exists():
        name = name.replace("\\", "/")
        file = table.parent / name
    return Row(path=file, id=name, label=cell("label"), part=PART_NAMES[part.lower()] if part else "")
