"""IDX files, the format of MNIST and Fashion-MNIST (yann.lecun.com/exdb/mnist, "the IDX file format")."""

from __future__ import annotations

import gzip
import io
import math
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Int64, UInt8

from vitrine.errors import BadData

PIECE_BYTES = 1 << 24
PARTS = {"train": "train", "t10k": "test"}
_MAGIC = {"images": 0x803, "labels": 0x801}  # unsigned bytes (0x08) in three dimensions, or in one


def has_idx(folder: Path) -> bool:
    """Whether `folder` holds IDX files of pictures under their usual names."""
    return any(_find(folder, part, "images") for part in PARTS)


def read_idx(
    folder: Path,
) -> Iterator[tuple[str, UInt8[np.ndarray, "n H W"], Int64[np.ndarray, " n"]]]:
    """For each part that is there: its name ("train" or "test"), pictures and class numbers.

    Raises `BadData` where labels are missing, a header is wrong, or a file is cut off.
    """
    for stem, part in PARTS.items():
        images = _find(folder, stem, "images")
        if images is None:
            continue
        labels = _find(folder, stem, "labels")
        if labels is None:
            raise BadData(f"{folder}: {images.name} has no {stem}-labels-idx1-ubyte beside it. Add that file.")
        pixels, classes = _read(images, "images"), _read(labels, "labels").astype(np.int64)
        if len(pixels) != len(classes):
            raise BadData(f"{labels}: has {len(classes)} labels for {len(pixels)} pictures. Get both again.")
        yield part, pixels, classes


def read_names(folder: Path) -> list[str] | None:
    """The class names in labels.txt, one a line, or None where there is no such file."""
    path = folder / "labels.txt"
    if not path.is_file():
        return None
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise BadData(f"{path}: is not UTF-8 text. Save it as UTF-8.") from error
    while names and not names[-1]:
        names.pop()
    if not all(names) or len(set(names)) != len(names):
        raise BadData(f"{path}: has an empty line or one name twice. Give one name a line, all different.")
    return names


def _find(folder: Path, stem: str, kind: str) -> Path | None:
    dims = {"images": "idx3", "labels": "idx1"}[kind]
    names = (f"{stem}-{kind}{dot}{dims}-ubyte{end}" for dot in "-." for end in ("", ".gz"))
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _read(path: Path, kind: str) -> UInt8[np.ndarray, " ..."]:
    """The array in one IDX file: big-endian magic number, one 32-bit size a dimension, then bytes."""
    dims = 3 if kind == "images" else 1
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            header = np.frombuffer(file.read(4 + 4 * dims).ljust(4 + 4 * dims, b"\0"), ">u4")
            if header[0] != _MAGIC[kind]:
                raise BadData(
                    f"{path}: is not an IDX file of {kind}: it begins with {int(header[0]):#010x}, "
                    f"not {_MAGIC[kind]:#010x}. Get the file again."
                )
            shape = tuple(int(size) for size in header[1:])
            # One byte more than the header promises tells a file that is too long from one that is right.
            body = _up_to(file, math.prod(shape) + 1)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise BadData(f"{path}: is cut off or not gzip ({error}). Get the file again.") from error
    if len(body) != math.prod(shape):
        more = "more" if len(body) > math.prod(shape) else f"{len(body):,}"
        raise BadData(
            f"{path}: its header promises {math.prod(shape):,} bytes ({' x '.join(map(str, shape))}), "
            f"but there are {more}. Get the file again."
        )
    if min(shape[1:], default=1) == 0:
        raise BadData(f"{path}: its header tells of pictures without pixels ({' x '.join(map(str, shape))}).")
    return np.frombuffer(body, np.uint8).reshape(shape)


def _up_to(file: io.BufferedIOBase, count: int) -> bytearray:
    """The next `count` bytes or all there are; memory is asked for what the file has, not for what is promised."""
    body = bytearray()
    while len(body) < count and (piece := file.read(min(PIECE_BYTES, count - len(body)))):
        body += piece
    return body
