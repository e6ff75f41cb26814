"""Small data sets that the tests of this room are made of."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
from PIL import Image

from vitrine.config.options import DataConfig
from vitrine.data.sources import Source


def pixels(seed: int, size: tuple[int, int] = (12, 10), channels: int = 3) -> np.ndarray:
    """Random pixels of a picture of (width, height) `size`."""
    shape = (size[1], size[0], 3) if channels == 3 else (size[1], size[0])
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def save(path: Path, seed: int, size: tuple[int, int] = (12, 10), channels: int = 3) -> Path:
    """A picture on the disk, its pixels drawn from `seed`; lossless unless the name says JPEG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels(seed, size, channels)).save(path)
    return path


def class_folder(folder: Path, counts: dict[str, int], first_seed: int = 0) -> Path:
    """Class folders with as many different PNGs as `counts` says."""
    seed = first_seed
    for name, count in counts.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            save(folder / name / f"{i}.png", seed)
            seed += 1
    return folder


def idx(folder: Path, stem: str, images: np.ndarray, labels: np.ndarray, zipped: bool = True) -> None:
    """A pair of IDX files."""
    folder.mkdir(parents=True, exist_ok=True)
    bodies = {
        f"{stem}-images-idx3-ubyte": struct.pack(">4I", 0x803, *images.shape) + images.tobytes(),
        f"{stem}-labels-idx1-ubyte": struct.pack(">2I", 0x801, len(labels)) + labels.astype(np.uint8).tobytes(),
    }
    for name, body in bodies.items():
        if zipped:
            (folder / f"{name}.gz").write_bytes(gzip.compress(body))
        else:
            (folder / name).write_bytes(body)


def in_memory(counts: list[int], side: int = 4, channels: int = 1, given: list[str] | None = None) -> Source:
    """A source of arrays with `counts[k]` pictures of class k."""
    labels = np.repeat(np.arange(len(counts)), counts).astype(np.int64)
    n = len(labels)
    return Source(
        name="made",
        class_names=tuple(f"class{k}" for k in range(len(counts))),
        labels=labels,
        ids=tuple(f"made/{i}" for i in range(n)),
        given=np.array(given if given is not None else [""] * n, np.str_),
        arrays=np.random.default_rng(0).integers(0, 256, (n, side, side, channels), dtype=np.uint8),
    )


def settings(path: Path | str = "", **options: object) -> DataConfig:
    return DataConfig(source=str(path), **options)  # type: ignore[arg-type]
