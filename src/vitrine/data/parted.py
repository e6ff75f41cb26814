"""Which part of a set each of its files is, from the names that `datasets` and the hub give them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from vitrine.data.listing import PART_NAMES, natural_key
from vitrine.errors import BadData, NotFound, UsageError, nearest

# The words for parts that `datasets` knows in file names, beside those of every set
# (huggingface.co/docs/datasets/repository_structure).
WORDS = {**PART_NAMES, "training": "train", "dev": "val", "testing": "test", "eval": "test", "evaluation": "test"}

PARTIAL = "partial-"
"""How the hub begins the name of a part of which it converted the first files alone."""

_SHARD = re.compile(r"(.*?)-(\d{4,})-of-(\d{4,})(.*)")


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """The files of a set with the part of each, and sentences for the user."""

    files: tuple[tuple[str, str], ...]
    notes: tuple[str, ...] = ()


def part_of(file: str) -> str | None:
    """The part that a file's name says, by a word of it or a folder it is in; None where it says none."""
    *folders, name = file.removesuffix(".parquet").split("/")
    for piece in (name, *reversed(folders)):
        told = [WORDS[word] for word in re.split(r"[-_. ]", piece.lower()) if word in WORDS]
        if told:
            return told[0]
    return None


def parted(name: str, files: Iterable[str]) -> Chosen:
    """These files with their parts. Where only some say one, those that do not are left out and told; where all say
    the same, or none does, the set is not parted. Raises `BadData` where a file of several is missing."""
    ranked = sorted(files, key=natural_key)
    require_all(name, ranked)
    parts = {file: part_of(file) for file in ranked}
    told = {part for part in parts.values() if part is not None}
    if len(told) < 2 and None not in parts.values():
        return Chosen(files=tuple((file, "") for file in ranked))
    if not told:
        return Chosen(files=tuple((file, "") for file in ranked))
    kept = tuple((file, part) for file, part in parts.items() if part is not None)
    others = [file for file, part in parts.items() if part is None]
    if len(told) == 1:
        kept = tuple((file, "") for file, _ in kept)
    return Chosen(files=kept, notes=_told_others(others))


def require_all(name: str, files: Sequence[str]) -> None:
    """Raise `BadData` where a file is missing of those that are numbered `00000-of-00004`."""
    series: dict[tuple[str, str, str], set[int]] = {}
    for file in files:
        if found := _SHARD.fullmatch(file):
            series.setdefault((found[1], found[3], found[4]), set()).add(int(found[2]))
    for (stem, count, end), there in series.items():
        missing = [k for k in range(int(count)) if k not in there][:1] if int(count) <= 10_000_000 else []
        if missing:
            raise BadData(
                f"{name}: {stem}-{missing[0]:0{len(count)}}-of-{count}{end} is missing. Get it, or remove the others."
            )


def of_hub(name: str, files: Iterable[str], config: str | None, told: Any) -> Chosen:
    """The Parquet files of a hub's data set with their parts.

    `told` are the configurations that its card lists (huggingface.co/docs/hub/datasets-manual-configuration); without
    them a folder whose folders are parts is one, as the hub's own conversion lays it out. Raises `UsageError` where
    several are there and none is named, `NotFound` for a `config` that is not, `BadData`.
    """
    every = sorted((file for file in files if file.endswith(".parquet")), key=natural_key)
    listed = _listed(every, told)
    if not listed:
        folders = {file.split("/")[0] for file in every if file.count("/") == 2 and part_of(file.split("/")[1])}
        if folders and all(file.split("/")[0] in folders for file in every):
            listed = {folder: [f for f in every if f.startswith(f"{folder}/")] for folder in sorted(folders)}
    if not listed:
        if config is None:
            return parted(name, every)
        below = [f for f in every if config in f.split("/")[:-1]]
        if not below:
            raise NotFound(f"{name}: there is no configuration {config}. Leave it out.")
        return parted(name, below)
    if config is None and len(listed) > 1:
        usual = [key for key in listed if key == "default" or _is_default(key, told)]
        if len(usual) != 1:
            raise UsageError(
                f"{name}: has several configurations: {', '.join(listed)}. Choose one: {name}:{next(iter(listed))}"
            )
        config = usual[0]
    config = next(iter(listed)) if config is None else config
    if config not in listed:
        raise NotFound(f"{name}: there is no configuration {config}.{nearest(config, listed)} Known: "
                       f"{', '.join(listed)}.")  # fmt: skip
    found = listed[config]
    return _splits(name, found) if isinstance(found, dict) else _partial(parted(name, found))


def _is_default(key: str, told: Any) -> bool:
    every = [one for one in told if isinstance(one, dict)] if isinstance(told, list) else []
    return any(one.get("config_name") == key and one.get("default") is True for one in every)


def _listed(every: Sequence[str], told: Any) -> dict[str, dict[str, list[str]] | list[str]]:
    """Files by split, or all together, of every configuration on the card that has Parquet files."""
    listed: dict[str, dict[str, list[str]] | list[str]] = {}
    for one in told if isinstance(told, list) else ():
        if not isinstance(one, dict) or not isinstance(one.get("config_name"), str):
            continue
        by_split: dict[str, list[str]] = {}
        for split, patterns in _data_files(one.get("data_files")):
            by_split.setdefault(split, []).extend(f for f in every if any(_fits(f, pattern) for pattern in patterns))
        folder = one.get("data_dir")
        if any(by_split.values()):
            listed[one["config_name"]] = by_split
        elif isinstance(folder, str) and (below := [f for f in every if f.startswith(f"{folder.strip('/')}/")]):
            listed[one["config_name"]] = below
    return listed


def _data_files(told: Any) -> list[tuple[str, list[str]]]:
    """(split, patterns) as a card may write them: a pattern, a list of these, or of objects with split and path."""
    if isinstance(told, str):
        told = [told]
    if not isinstance(told, list):
        return []
    plain = [one for one in told if isinstance(one, str)]
    found: list[tuple[str, list[str]]] = [("", plain)] if plain else []
    for one in told:
        if isinstance(one, Mapping):
            path = one.get("path")
            paths = [path] if isinstance(path, str) else path if isinstance(path, list) else []
            found.append((str(one.get("split", "train")), [p for p in paths if isinstance(p, str)]))
    return found


def _fits(file: str, pattern: str) -> bool:
    return fnmatchcase(file, pattern.removeprefix("./").replace("**/", "*"))


def _splits(name: str, by_split: Mapping[str, list[str]]) -> Chosen:
    """The files of splits that are parts; others are left out and told. Without any, one split is the set."""
    filled = {split: list(dict.fromkeys(files)) for split, files in by_split.items() if files}
    parts = {split: WORDS.get(split.lower()) for split in filled}
    for files in filled.values():
        require_all(name, files)
    known = [split for split in filled if parts[split]]
    if len(filled) == 1:
        (files,) = filled.values()
        return parted(name, files) if "" in filled else Chosen(files=tuple((file, "") for file in files))
    if not known:
        raise BadData(
            f"{name}: none of its splits is a part that is known: {', '.join(filled)}. Get its files and name the one "
            "that is wanted."
        )
    kept = tuple((file, parts[split] or "") for split in known for file in filled[split])
    if len(known) == 1:
        kept = tuple((file, "") for file, _ in kept)
    others = [file for split in filled if split not in known for file in filled[split]]
    return Chosen(files=kept, notes=_told_others(others))


def _partial(chosen: Chosen) -> Chosen:
    cut = sorted({piece for file, _ in chosen.files for piece in file.split("/")[:-1] if piece.startswith(PARTIAL)})
    if not cut:
        return chosen
    note = f"The hub has made Parquet of the first files alone: {', '.join(cut)}."
    return Chosen(files=chosen.files, notes=(*chosen.notes, note))


def _told_others(others: Sequence[str]) -> tuple[str, ...]:
    if not others:
        return ()
    shown = ", ".join(others[:3]) + (", ..." if len(others) > 3 else "")
    return (f"Files left out, as their names are of no part (train, validation, test): {shown}.",)
