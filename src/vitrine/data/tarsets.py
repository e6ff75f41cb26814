"""Which members of tar files are pictures, and of which class: class folders inside, or WebDataset's layout.

In WebDataset's layout (github.com/webdataset/webdataset, "The WebDataset Format") members whose names agree up to the
first dot of the last part are one sample: `000001.jpg` with `000001.cls` or `000001.json`.
"""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from vitrine.data.folders import BEGINNINGS, EXTENSIONS, shown, sub_folders
from vitrine.data.listing import PART_NAMES, natural_key
from vitrine.data.packed import Names
from vitrine.data.table import require_names
from vitrine.data.tar import FILE, LINK, SPARSE, Member, members, require_plain
from vitrine.data.tarred import Descriptor, Tarred
from vitrine.errors import BadData

CLASS_NAMES_FILE = "classnames.txt"
"""Beside shards, the name of each class number on a line of its own."""

COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst", ".tar.lz4")
LAYOUTS = (
    "Put the pictures of each class in a folder of its own inside, or give each picture 000001.jpg a 000001.cls, or a "
    '000001.json with "label", beside it.'
)
MOST_LABEL_BYTES = 1 << 20
LABELS_TRIED = 100

Label = str | tuple[str, ...]
Said = Label | int
"""What stands beside a picture: a class number too."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Found:
    """The pictures in tar files: an id, a label and a part for each; `ignored` counts members that are no pictures.

    `notes` say what else was passed over. Labels are the name of one class each, or all of them tuples of names where
    a picture may have several.
    """

    ids: Names
    labels: Sequence[Label]
    parts: Sequence[str]
    packed: Tarred
    ignored: int
    notes: tuple[str, ...]


@dataclass(kw_only=True, eq=False)
class _Gathered:
    """What is known of the pictures so far, and of what was passed over."""

    ids: list[str] = field(default_factory=list)
    labels: list[Said] = field(default_factory=list)
    parts: list[str] = field(default_factory=list)
    places: list[tuple[int, int, int]] = field(default_factory=list)
    ignored: int = 0
    passed: Counter[str] = field(default_factory=Counter)


def tar_files(folder: Path) -> list[tuple[str, Path]]:
    """The tar files that are the data of `folder`, each with its part ("" for none), or none at all.

    They lie in a folder without class folders, their parts told by a word of the name (train-000.tar), or in its train/
    and val/. Raises `BadData` for compressed ones, and where only some tell their part.
    """
    subs = sub_folders(folder)
    if not subs:
        files = _tars_in(folder)
        found = [(_part_of(path.name), path) for path in files]
    else:
        if not all(sub.name.lower() in PART_NAMES for sub in subs):
            return []
        found = [(PART_NAMES[sub.name.lower()], path) for sub in subs for path in _tars_in(sub) if not sub_folders(sub)]
    without = [path.name for part, path in found if not part]
    if without and len(without) < len(found):
        raise BadData(
            f"{folder}: some tar files name their part and {without[0]} does not. Put train, val or test into each "
            "name, or into none."
        )
    return found


def _tars_in(folder: Path) -> list[Path]:
    there = sorted((path for path in folder.iterdir() if shown(path.name)), key=lambda path: natural_key(path.name))
    if any(path.suffix.lower() in EXTENSIONS for path in there):
        return []  # a folder of pictures, whatever else lies there
    found = [path for path in there if path.suffix.lower() == ".tar" and path.is_file()]
    if not found:
        for path in there:
            if path.name.lower().endswith(COMPRESSED):
                require_plain(path)
    return found


def _part_of(name: str) -> str:
    words = re.split(r"[^a-z]+", name.lower())
    return next((PART_NAMES[word] for word in words if word in PART_NAMES), "")


def read_tars(home: Path, files: Sequence[tuple[str, Path]], *, labelled: bool = True) -> Found:
    """The pictures in these tar files, by their headers; pixels are not looked at. `home` is what errors name.

    Where one of them has labels beside its pictures, all are in WebDataset's layout; else classes are folders. Where
    labels are of no use (`labelled` False) no folder will do too. Links, sparse members, hidden ones and names that
    lead upwards are passed over. Raises `BadData`.
    """
    into = _Gathered()
    listed = [_members(path, into) for _, path in files]
    samples = any(_labels_beside(path, one) for (_, path), one in zip(files, listed, strict=True))
    for number, ((part, path), of_file) in enumerate(zip(files, listed, strict=True)):
        prefix = f"{path.stem}/" if len(files) > 1 else ""
        taken = _samples(path, of_file, into) if samples else _foldered(path, of_file, part, into, labelled)
        for member, name, label, in_part in taken:
            into.ids.append(prefix + name)
            into.labels.append(label)
            into.parts.append(in_part or part)
            into.places.append((number, member.offset, member.size))
    if not into.ids:
        raise BadData(f"{home}: holds no pictures that can be learnt from. {LAYOUTS}")
    return _found(home, files, into, class_names(home) if samples else None)


def _found(home: Path, files: Sequence[tuple[str, Path]], into: _Gathered, names: list[str] | None) -> Found:
    labels = [_named(home, label, names) for label in into.labels]
    if len({type(label) for label in labels}) > 1:
        raise BadData(
            f'{home}: some pictures have one label and some a list of "labels". Give all the one or the other.'
        )
    places = np.array(into.places, np.int64)
    notes = tuple(f"{home.name}: {count:,} {what}" for what, count in into.passed.items())
    return Found(
        ids=Names.of(into.ids),
        labels=labels,
        parts=into.parts,
        packed=Tarred(
            files=tuple(path for _, path in files),
            file=places[:, 0].astype(np.int32),
            offsets=places[:, 1].copy(),
            lengths=places[:, 2].copy(),
        ),
        ignored=into.ignored,
        notes=notes,
    )


def _members(path: Path, into: _Gathered) -> list[Member]:
    """The files in a tar under clean names; of two with one name the later, as it would be after unpacking."""
    require_plain(path)
    found = dict[str, Member]()
    for member in members(path):
        if member.kind in (LINK, SPARSE):
            into.passed["links passed over: the files themselves are needed" if member.kind == LINK else
                        "sparse members passed over: pack the files again without --sparse"] += 1  # fmt: skip
        if member.kind != FILE:
            continue
        parts = [part for part in member.name.split("/") if part not in ("", ".")]
        if not parts or ".." in parts:
            into.passed["members passed over whose names lead out of the archive"] += 1
        elif all(map(shown, parts)):
            name = "/".join(parts)
            if found.pop(name, None) is not None:
                into.passed["members replaced by a later one of the same name, as when unpacking"] += 1
            found[name] = member._replace(name=name)
    return list(found.values())


def _ending(name: str) -> str:
    """What follows the first dot of the last part of a name."""
    return name.rpartition("/")[2].partition(".")[2].lower()


# Class folders inside


def _foldered(
    path: Path, of_file: list[Member], part: str, into: _Gathered, labelled: bool
) -> Iterator[tuple[Member, str, str, str]]:
    """Each picture with its name, class and part, by the folders it lies in."""
    reader = Descriptor(path)
    pictures = [member for member in of_file if _is_picture(member, reader)]
    into.ignored += len(of_file) - len(pictures)
    split = [member.name.split("/") for member in pictures]
    alone = not labelled and all(len(parts) == 1 for parts in split)
    while (tops := {parts[0] for parts in split}) and not (parted := _parts(tops)):
        # One folder around everything is how most archives are made.
        if len(tops) > 1 or min(map(len, split)) < 3:
            break
        split = [parts[1:] for parts in split]
    for member, folders in zip(pictures, split, strict=True):
        at = 1 if parted else 0
        in_part = PART_NAMES.get(folders[0].lower(), "") if parted else ""
        if (parted and not in_part) or (not alone and len(folders) < at + 2):
            into.ignored += 1
            into.passed["pictures passed over that lie in no class folder"] += 1
            continue
        yield member, "/".join(folders), "" if alone else folders[at], in_part or part


def _parts(tops: set[str]) -> bool:
    """Whether the outermost folders are parts and not classes: all are named so, or train and another one are."""
    named = {PART_NAMES[top.lower()] for top in tops if top.lower() in PART_NAMES}
    return bool(named) and (len(named) == len(tops) or ("train" in named and len(named) > 1))


def _is_picture(member: Member, reader: Descriptor) -> bool:
    dot = Path(member.name).suffix.lower()
    return dot in EXTENSIONS if dot else reader.at(member.offset, min(4, member.size)).startswith(BEGINNINGS)


# WebDataset's layout


def _keyed(path: Path, of_file: list[Member]) -> tuple[dict[str, Member], dict[str, dict[str, Member]]]:
    """The pictures and what may be their labels, by the key that joins them."""
    pictures, beside = dict[str, Member](), dict[str, dict[str, Member]]()
    for member in of_file:
        ending = _ending(member.name)
        key = member.name[: len(member.name) - len(ending) - 1]
        if ending in ("cls", "json"):
            beside.setdefault(key, {})[ending] = member
        elif f".{ending}" in EXTENSIONS and key not in pictures:
            pictures[key] = member
    return pictures, {key: by for key, by in beside.items() if key in pictures}


def _labels_beside(path: Path, of_file: list[Member]) -> bool:
    """Whether pictures have their label in a member beside them: one of the first hundred that could has."""
    _, beside = _keyed(path, of_file)
    reader = Descriptor(path)
    return any(
        _label(f"{path}, {key}", beside[key], reader) is not None for key in itertools.islice(beside, LABELS_TRIED)
    )


def _samples(path: Path, of_file: list[Member], into: _Gathered) -> Iterator[tuple[Member, str, Said, str]]:
    """Each picture with its name and label; the part is that of the file."""
    reader = Descriptor(path)
    pictures, beside = _keyed(path, of_file)
    taken = {member.name for member in pictures.values()}
    for member in of_file:
        if member.name not in taken and f".{_ending(member.name)}" in EXTENSIONS:
            raise BadData(f"{path}: {member.name} is a second picture of one sample. Keep one.")
    into.ignored += len(of_file) - len(pictures) - sum(map(len, beside.values()))
    for key, member in pictures.items():
        label = _label(f"{path}, {key}", beside.get(key, {}), reader)
        if label is None:
            raise BadData(f"{path}: {member.name} has no label beside it. {LAYOUTS}")
        yield member, member.name, label, ""


def _label(where: str, beside: dict[str, Member], reader: Descriptor) -> Said | None:
    """The label beside a picture: of its .cls, else of its .json; None where neither has one."""
    for member in beside.values():
        if member.size > MOST_LABEL_BYTES:
            raise BadData(f"{where}: a label of {member.size:,} bytes is none. {LAYOUTS}")
    if "cls" in beside:
        text = reader.at(beside["cls"].offset, beside["cls"].size).decode("utf-8", "replace").strip()
        if not text or not text.isprintable():
            raise BadData(f"{where}: the .cls says {text[:40]!r}, which names no class. Write a number or a name.")
        return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else text
    if "json" not in beside:
        return None
    try:
        said = json.loads(reader.at(beside["json"].offset, beside["json"].size))
    except (ValueError, RecursionError) as error:
        raise BadData(f"{where}: the .json is not valid JSON: {error}.") from error
    if not isinstance(said, dict):
        return None
    if isinstance(names := said.get("labels"), list) and all(isinstance(name, str) for name in names):
        require_names(where, tuple(names))
        return tuple(names)
    value = said.get("label", said.get("cls"))
    if isinstance(value, str):
        return value.strip() or None
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def class_names(home: Path) -> list[str] | None:
    """The names beside shards, by class number; None where there are none."""
    file = (home if home.is_dir() else home.parent) / CLASS_NAMES_FILE
    if not file.is_file():
        return None
    return [line.strip() for line in file.read_text(encoding="utf-8", errors="surrogateescape").splitlines()]


def _named(home: Path, said: Said, names: list[str] | None) -> Label:
    """The name that a class number stands for, its digits where no names are there; a name stays."""
    if not isinstance(said, int):
        return said
    if names is None:
        return str(said)
    if said >= len(names):
        raise BadData(f"{home}: there is a class number {said}, and {CLASS_NAMES_FILE} has {len(names):,} names.")
    return names[said]
