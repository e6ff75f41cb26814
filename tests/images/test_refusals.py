"""What cannot be read is refused: in one line, in no time, and without a warning."""

from __future__ import annotations

import os
import struct
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.images.samples import encoded, jpeg, photo, png
from vitrine.errors import BadData, DiskError, NotFound
from vitrine.images import decode as room
from vitrine.images.decode import FORMATS, decode


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("kind", ["4:2:0", "progressive", "grey"])
def test_a_cut_jpeg_is_refused(fast: bool, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if not fast:
        monkeypatch.setattr(room, "_simplejpeg", lambda: None)
    data = jpeg(kind)
    for keep in (3, 100, len(data) // 2, len(data) - 60, len(data) - 2, len(data) - 1):
        with pytest.raises(BadData, match=r"cut\.jpg: the JPEG .+ damaged"):
            decode(data[:keep], name="cut.jpg")


@pytest.mark.parametrize("kind", FORMATS)
def test_a_cut_file_of_each_format_is_refused(kind: str) -> None:
    data = encoded(Image.fromarray(photo()), kind)
    for keep in (len(data) // 10, len(data) // 2, len(data) * 3 // 4):
        with pytest.raises(BadData, match=f"^the picture: the {kind} "):
            decode(data[:keep])


@pytest.mark.parametrize("kind", FORMATS)
def test_altered_bytes_never_escape(kind: str) -> None:
    """Flipped bytes give a picture or one clear line, and no warning (they are errors here)."""
    random = np.random.default_rng(7)
    data = encoded(Image.fromarray(photo(20, 20)), kind)
    outcomes = set()
    for _ in range(150):
        altered = bytearray(data)
        for at in random.integers(0, min(len(data), 250), 3):
            altered[at] = random.integers(256)
        try:
            outcomes.add(decode(bytes(altered), max_pixels=100_000).mode)
        except BadData as error:
            assert "\n" not in str(error)
            outcomes.add("refused")
    assert "refused" in outcomes


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the file is empty"),
        (b"<!DOCTYPE html><html><body>404</body></html>", "this is an HTML page, not a picture"),
        ("\ufeff  <HTML>".encode(), "this is an HTML page"),
        ("a poem, très court\n".encode(), "this is a text file, not a picture"),
        (b"<?xml version='1.0'?><svg xmlns='x'/>", "SVG pictures are not read"),
        (b"P6 2 2 255\n" + bytes(12), "PPM pictures are not read"),
        (b"\0\0\0\x1cftypheic\0\0\0\0mif1heic", "HEIF pictures are not read"),
        (b"\0\0\0\x1cftypmif1\0\0\0\0mif1avif", "AVIF pictures are not read"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL pictures are not read"),
        (bytes(range(128, 255)), "this is no picture, or its first bytes are damaged"),
        (b"\x89PNG\r\n\x1a\n" + bytes(30), "the PNG "),
        (b"RIFF\x10\0\0\0WEBPVP8 ", "the WEBP "),
        (b"BMW is not a bitmap", "the BMP data is damaged"),
    ],
)
def test_what_is_no_picture_is_named(data: bytes, message: str, tmp_path: Path) -> None:
    file = tmp_path / "holiday.jpg"
    file.write_bytes(data)
    with pytest.raises(BadData, match=f"holiday.jpg: {message}"):
        decode(file)


def bomb(kind: str, width: int, height: int) -> bytes:
    if kind == "png":
        return png(width, height, 1, 0, b"")
    if kind == "gif":
        screen = struct.pack("<HHBBB", 1, 1, 0, 0, 0)
        frame = b"," + struct.pack("<HHHHB", 0, 0, width, height, 0)
        return b"GIF89a" + screen + frame + b"\x02\x02\x44\x01\0;"
    if kind == "webp":
        canvas = struct.pack("<I", width - 1)[:3] + struct.pack("<I", height - 1)[:3]
        body = b"WEBPVP8X" + struct.pack("<I", 10) + bytes(4) + canvas
        return b"RIFF" + struct.pack("<I", len(body)) + body
    if kind == "bmp":
        return b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
    data = jpeg("grey", 16, 16)
    at = data.index(b"\xff\xc0") + 5
    return data[:at] + struct.pack(">HH", height, width) + data[at + 4 :]


@pytest.mark.parametrize("kind", ["png", "gif", "webp", "bmp", "jpeg"])
@pytest.mark.parametrize(("width", "height"), [(10_000, 12_000), (16_000, 16_000), (50_001, 1000)])
def test_too_many_pixels_are_refused_from_the_header(kind: str, width: int, height: int) -> None:
    start = time.perf_counter()
    with pytest.raises(BadData, match=r"the picture: .*pixels .*than the limit of 50,000,000"):
        decode(bomb(kind, width, height))
    assert time.perf_counter() - start < 0.5


def test_huge_tiles_of_a_small_tiff_are_refused() -> None:
    def entry(tag: int, kind: int, value: int) -> bytes:
        return struct.pack("<HHII", tag, kind, 1, value)

    values = {256: 8, 257: 8, 258: 8, 259: 1, 262: 1, 277: 1, 322: 60_000, 323: 60_000, 324: 8, 325: 64}
    body = b"".join(entry(tag, 4, value) for tag, value in values.items())
    with pytest.raises(BadData, match="60000 x 60000 pixels"):
        decode(b"II*\0" + struct.pack("<IH", 8, len(values)) + body + bytes(4))


def test_limits_are_inclusive() -> None:
    data = encoded(Image.fromarray(photo(10, 10)), "PNG")
    assert decode(data, max_pixels=100, max_bytes=len(data)).size == (10, 10)
    with pytest.raises(BadData, match=r"10 x 10 pixels are more than the limit of 99\. .+ raise the limit max_pixels"):
        decode(data, max_pixels=99)
    with pytest.raises(BadData, match=r"bytes, more than the limit of .+ \(in training data\.max_bytes\)"):
        decode(data, max_bytes=len(data) - 1)


def test_a_large_file_is_refused_unread(tmp_path: Path) -> None:
    file = tmp_path / "large.png"
    with file.open("wb") as handle:
        handle.truncate(10 * 2**40)  # ten terabytes that hold nothing
    with pytest.raises(BadData, match=r"large\.png: the file has 10,995,116,277,760 bytes"):
        decode(file)


def test_paths_that_are_no_file(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"none\.png: there is no such file"):
        decode(tmp_path / "none.png")
    with pytest.raises(BadData, match="this is a folder; give the path of a picture"):
        decode(tmp_path)
    with pytest.raises(NotFound):
        decode(Path("a\0b.png"))
    pipe = tmp_path / "pipe.png"
    os.mkfifo(pipe)
    with pytest.raises(BadData, match="not a plain file"):
        decode(pipe)


def test_a_file_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:  # root, who may run the tests, is never refused by the system
        raise PermissionError(13, "Permission denied")

    file = tmp_path / "locked.png"
    file.write_bytes(b"x")
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(DiskError, match=r"locked\.png: this account may not read the file"):
        decode(file)


def test_memory_running_out_is_said_plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(room, "flatten", full)
    with pytest.raises(BadData, match="needs more memory than there is"):
        decode(encoded(Image.fromarray(photo()), "PNG"))
