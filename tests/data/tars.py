"""Tar files made member by member, sound and otherwise."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from tests.data.pictures import pixels


def png(seed: int, size: tuple[int, int] = (12, 10), channels: int = 3) -> bytes:
    """A lossless picture with pixels drawn from `seed`."""
    return encoded(pixels(seed, size, channels), "PNG")


def encoded(array: np.ndarray, kind: str, **options: object) -> bytes:
    into = io.BytesIO()
    Image.fromarray(array).save(into, kind, **options)
    return into.getvalue()


def tar(path: Path, contents: Mapping[str, bytes], form: int = tarfile.GNU_FORMAT) -> Path:
    """A plain tar with these members, by name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as made:
        for name, content in contents.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            made.addfile(member, io.BytesIO(content))
    return path


def packed_folder(folder: Path, path: Path, around: str = "") -> Path:
    """The files of a folder in a tar, in the order of a folder's listing, as `tar cf` would write them."""
    with tarfile.open(path, "w") as made:
        for file in sorted(folder.rglob("*")):
            made.add(file, arcname=around + file.relative_to(folder).as_posix(), recursive=False)
    return path


def classes(count: int = 3) -> dict[str, bytes]:
    """Class folders a and b with `count` pictures each."""
    return {f"{name}/{i}.png": png(10 * (name == "b") + i) for name in "ab" for i in range(count)}


def samples(count: int = 6, first: int = 0) -> dict[str, bytes]:
    """WebDataset's layout with class numbers 0 and 1 in turn."""
    made: dict[str, bytes] = {}
    for i in range(first, first + count):
        made |= {f"{i:06d}.png": png(i), f"{i:06d}.cls": str(i % 2).encode()}
    return made
