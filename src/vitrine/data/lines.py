"""A .jsonl file that lists pictures: a JSON object a line, with path, label or labels, and split."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vitrine.data.listing import Listing, Row
from vitrine.data.table import in_place, part_named, read_utf8, require_names
from vitrine.errors import BadData

KEYS = ("path", "label", "labels", "split")
FORM = '{"path": "a.jpg", "labels": ["cat", "dog"]} or {"path": "a.jpg", "label": "cat"}'


def read_lines(path: Path) -> Listing:
    """The pictures listed in the JSONL at `path`, as in a CSV: all lines have `label`, or all have `labels`.

    Raises `BadData`, with the line, for one that is no such object.
    """
    rows: list[Row] = []
    kinds: dict[str, int] = {}
    for line, text in enumerate(read_utf8(path).split("\n"), start=1):
        if not text.strip():
            continue
        where = f"{path}, line {line}"
        found = _object(where, text)
        kind = "labels" if "labels" in found else "label"
        kinds.setdefault(kind, line)
        if len(kinds) > 1:
            told = " and ".join(f"{name} in line {first}" for name, first in kinds.items())
            raise BadData(f"{path}: has {told}. Give every line the one or the other.")
        rows.append(_row(where, path, found, kind))
    if not rows:
        raise BadData(f"{path}: lists no pictures. Give a line each: {FORM}.")
    return Listing(rows=tuple(rows), multi_label="labels" in kinds)


def _object(where: str, text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadData(f"{where}: this is not valid JSON: {error}.") from error
    if not isinstance(found, dict):
        raise BadData(f"{where}: is no JSON object. Write {FORM}.")
    if {"label", "labels"} <= found.keys():
        raise BadData(f"{where}: has both label and labels. Keep one of them.")
    if other := sorted(found.keys() - set(KEYS)):
        raise BadData(f"{where}: {', '.join(other)}: there is no such key, only {', '.join(KEYS)}. Remove it.")
    return found


def _row(where: str, table: Path, found: dict[str, Any], kind: str) -> Row:
    for key in ("path", *(("label",) if kind == "label" else ()), *(("split",) if "split" in found else ())):
        value = found.get(key)
        if not isinstance(value, str) or not value.strip():
            raise BadData(f"{where}: {key} = {value!r}: must be a text that is not empty. Write {FORM}.")
    names = found.get("labels", [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise BadData(f"{where}: labels = {names!r}: must be a list of names, empty for none.")
    labels = tuple(name.strip() for name in names)
    require_names(where, labels)
    file, name = in_place(table, found["path"].strip())
    part = part_named(where, found.get("split", ""))
    return Row(path=file, id=name, label=found.get("label", "").strip(), labels=labels, part=part)
