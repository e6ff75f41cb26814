"""Pictures made on the spot, as files of every kind the tests need."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image


def photo(width: int = 61, height: int = 43, channels: int = 3, seed: int = 0) -> np.ndarray:
    """Smooth colours with some noise, so that no codec loses much and no two pixels agree by chance."""
    y, x = np.mgrid[:height, :width]
    planes = [x * 255 / width, y * 255 / height, 128 + 100 * np.sin(x / 5) * np.cos(y / 4)][:channels]
    noise = np.random.default_rng(seed).normal(0, 4, (height, width, channels))
    return (np.stack(planes, -1) + noise).clip(0, 255).astype(np.uint8)


def encoded(picture: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def png(width: int, height: int, bits: int, colour: int, rows: bytes, *extra: tuple[bytes, bytes]) -> bytes:
    """A PNG file made by hand, for the kinds that Pillow does not write."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    chunks = [(b"IHDR", header), *extra, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*each) for each in chunks)


def png_rows(values: np.ndarray) -> bytes:
    """Unfiltered rows of 8- or 16-bit values, each after its filter byte 0."""
    big = values.astype(values.dtype.newbyteorder(">"))
    return b"".join(b"\0" + row.tobytes() for row in big)


JPEGS = {
    "4:4:4": {"subsampling": 0},
    "4:2:2": {"subsampling": 1},
    "4:2:0": {"subsampling": 2},
    "4:4:0": {},
    "4:1:1": {},
    "progressive": {"progressive": True, "quality": 40},
    "restart": {"restart_marker_blocks": 2},
    "rgb": {"keep_rgb": True},
    "grey": {},
    "grey progressive": {"progressive": True},
}


def jpeg(kind: str, width: int = 131, height: int = 77) -> bytes:
    pixels = photo(width, height)
    if kind in ("4:4:0", "4:1:1"):  # Pillow reads them and does not write them
        encode = pytest.importorskip("simplejpeg").encode_jpeg
        return bytes(encode(pixels, colorsubsampling=kind.replace(":", "")))
    picture = Image.fromarray(pixels)
    return encoded(picture.convert("L" if "grey" in kind else "RGB"), "JPEG", **JPEGS[kind])
