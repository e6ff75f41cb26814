"""Class folders, alone or in train/, val/ and test/: every picture with its class and part."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from vitrine.data.listing import PART_NAMES, REMEDY, Listing, Row, natural_key
from vitrine.errors import BadData

EXTENSIONS = frozenset(
    (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff")
)
BEGINNINGS = (b"\xff\xd8\xff", b"\x89PNG", b"RIFF", b"GIF8", b"BM", b"II*\0", b"MM\0*")


def read_folder(folder: Path) -> Listing:
    """The pictures below `folder`, whose sub-folders are classes, or parts that hold class folders.

    Class folders are searched to any depth; links are followed. A file counts as a picture by its extension,
    or, where it has none, by its first bytes. Hidden files are passed over; all others that are no pictures
    are counted. Raises `BadData` where there is nothing to learn from.
    """
    parts = part_folders(folder)
    homes = [(part, home) for part, homes in parts.items() for home in homes] or [("", folder)]
    rows: list[Row] = []
    others: Counter[str] = Counter()
    empty: list[Path] = []
    for part, home in homes:
        _check_has_classes(home)
        for class_folder in sub_folders(home):
            found = [path for path in _files(class_folder) if _counts(path, others)]
            if not found:
                empty.append(class_folder)
            ids = sorted((path.relative_to(folder).as_posix(), path) for path in found)
            rows += [Row(path=path, id=name, label=class_folder.name, part=part) for name, path in ids]
    _check_none_empty(empty, {row.label for row in rows}, others)
    used = {home for _, home in homes}
    ignored = sum(others.values()) + sum(_loose(home) for home in used | {folder})
    ignored += sum(1 for sub in sub_folders(folder) if parts and sub not in used for _ in _files(sub))
    return Listing(rows=tuple(rows), ignored=ignored)


def read_flat(folder: Path) -> Listing:
    """The pictures that lie in `folder` itself, of one class without a name. Raises `BadData` where there is none."""
    others: Counter[str] = Counter()
    found = sorted(path.relative_to(folder).as_posix() for path in _files(folder) if _counts(path, others))
    if not found:
        _check_has_classes(folder)
    rows = tuple(Row(path=folder / name, id=name, label="", part="") for name in found)
    return Listing(rows=rows, ignored=sum(others.values()))


def sub_folders(folder: Path) -> list[Path]:
    """The folders in `folder` in natural order of their names, hidden ones left out."""
    found = (path for path in folder.iterdir() if shown(path.name) and path.is_dir())
    return sorted(found, key=lambda path: natural_key(path.name))


def part_folders(folder: Path) -> dict[str, list[Path]]:
    """Part ("train", "val", "test") to its folder in a list, or an empty dict where sub-folders are classes.

    Folders are parts where all are named like parts, or where train and another are and one of them holds
    folders: a class may well be called train. Raises `BadData` where two folders claim one part.
    """
    subs = sub_folders(folder)
    named = [sub for sub in subs if sub.name.lower() in PART_NAMES]
    parts: dict[str, list[Path]] = {}
    for sub in named:
        parts.setdefault(PART_NAMES[sub.name.lower()], []).append(sub)
    mixed = "train" in parts and len(parts) > 1 and any(sub_folders(sub) for sub in named)
    if len(named) < len(subs) and not mixed:
        return {}
    for part, homes in parts.items():
        if len(homes) > 1:
            names = " and ".join(home.name + "/" for home in homes)
            raise BadData(f"{folder}: {names} both claim to be the {part} part. Keep one of them.")
    return {part: parts[part] for part in ("train", "val", "test") if part in parts}


def shown(name: str) -> bool:
    """Whether a file or folder is meant to be seen; __MACOSX is what archives made on a Mac leave behind."""
    return not name.startswith(".") and name != "__MACOSX"


def _files(folder: Path) -> Iterator[Path]:
    """Every shown file below `folder`; a folder that links back to one already seen is entered once."""

    def fail(error: OSError) -> NoReturn:
        raise error

    seen = {os.path.realpath(folder)}
    for here, folders, files in os.walk(folder, followlinks=True, onerror=fail):
        keep = []
        for name in sorted(folders):
            real = os.path.realpath(Path(here, name))
            if shown(name) and real not in seen:
                seen.add(real)
                keep.append(name)
        folders[:] = keep
        yield from (Path(here, name) for name in files if shown(name))


def _is_picture(path: Path) -> bool:
    if path.suffix:
        return path.suffix.lower() in EXTENSIONS
    try:
        with path.open("rb") as file:
            return file.read(4).startswith(BEGINNINGS)
    except OSError:
        return False


def _counts(path: Path, others: Counter[str]) -> bool:
    """Whether `path` is a picture; if not, its extension is counted in `others`."""
    if _is_picture(path):
        return True
    others[path.suffix.lower() or "without extension"] += 1
    return False


def _loose(folder: Path) -> int:
    """How many shown files lie in `folder` itself, beside the class folders."""
    return sum(1 for path in folder.iterdir() if shown(path.name) and not path.is_dir())


def _check_has_classes(folder: Path) -> None:
    if sub_folders(folder):
        return
    loose = sum(1 for path in folder.iterdir() if shown(path.name) and path.is_file() and _is_picture(path))
    what = f"{loose} pictures but no class folders" if loose else "nothing: no class folders and no pictures"
    raise BadData(f"{folder}: holds {what}. {REMEDY}")


def _check_none_empty(empty: list[Path], filled: set[str], others: Counter[str]) -> None:
    """Refuse classes that have no picture in any part, and say what lay there instead."""
    bare = [path for path in empty if path.name not in filled]
    if not bare:
        return
    names = ", ".join(f"{path.parent.name}/{path.name}" for path in bare[:5]) + (", ..." if len(bare) > 5 else "")
    kinds = ", ".join(f"{count} {kind}" for kind, count in others.most_common(3))
    instead = f" (files of other kinds found: {kinds})" if kinds else ""
    raise BadData(
        f"{names}: no pictures in {'this folder' if len(bare) == 1 else 'these folders'}{instead}. "
        "Add pictures (JPEG, PNG, WebP, GIF, BMP, TIFF) or remove the folder."
    )
