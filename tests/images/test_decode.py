"""Every odd file is read right or refused in one line: generated ones anywhere, a collection where it lies."""

from __future__ import annotations

import csv
import io
import struct
import sys
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageOps

from tests.images.samples import JPEGS, encoded, jpeg, photo, png, png_rows
from vitrine.errors import BadData
from vitrine.images import decode as room
from vitrine.images.decode import FORMATS, decode, flatten, sniff

AWKWARD = Path(__file__).parents[3] / "shared/data/awkward"
ROWS = (
    list(csv.DictReader((AWKWARD / "manifest.csv").read_text(encoding="utf-8").splitlines()))
    if AWKWARD.is_dir()
    else []
)
# Refused here by the list of formats, whatever a reader with more formats would do.
NOT_READ = {"AVIF", "JPEG2000", "ICO", "PPM", "QOI"}


@pytest.mark.parametrize("row", ROWS or [None], ids=[row["file"] for row in ROWS] or ["none"])
def test_awkward_file(row: dict[str, str] | None) -> None:
    if row is None:
        pytest.skip("shared/data/awkward is not here")
    start = time.perf_counter()
    if not row["mean_rgb_white_bg"] or row["format"] in NOT_READ:
        with pytest.raises(BadData, match=r"^the file under test: .+\.$"):
            decode((AWKWARD / row["file"]).read_bytes(), name="the file under test")
        assert time.perf_counter() - start < 0.5
        return
    picture = decode(AWKWARD / row["file"])
    assert f"{picture.width}x{picture.height}" == row["oriented_size"]
    wanted = np.array([float(value) for value in row["mean_rgb_white_bg"].split("/")])
    mean = np.asarray(picture).reshape(picture.width * picture.height, -1).mean(0)
    assert np.abs(mean - wanted).max() < 1.0


def test_awkward_refusals_name_the_format() -> None:
    if not ROWS:
        pytest.skip("shared/data/awkward is not here")
    names = {"photo.heif": "HEIF", "photo.avif": "AVIF", "photo.jp2": "JPEG 2000", "icon.ico": "ICO"}
    for file, kind in {**names, "photo.ppm": "PPM", "photo.qoi": "QOI"}.items():
        with pytest.raises(BadData, match=f"{file}: {kind} pictures are not read; convert it to JPEG"):
            decode(AWKWARD / file)


@pytest.mark.parametrize("kind", FORMATS)
def test_each_format_whatever_its_name(kind: str, tmp_path: Path) -> None:
    pixels = photo()
    options = {"lossless": True} if kind == "WEBP" else {}
    file = tmp_path / "picture.txt"
    file.write_bytes(encoded(Image.fromarray(pixels), kind, **options))
    picture = decode(file)
    assert picture.mode == "RGB"
    assert sniff(file.read_bytes()) == kind
    if kind in ("PNG", "WEBP", "BMP", "TIFF"):
        assert np.array_equal(np.asarray(picture), pixels)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_once(kind: str, orientation: int) -> None:
    stored = Image.fromarray(photo(17, 11))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(stored, kind, exif=exif, **options)
    picture = decode(data)
    with Image.open(io.BytesIO(data)) as opened:
        opened.load()
        upright = ImageOps.exif_transpose(opened)
    assert picture.size == ((17, 11) if orientation < 5 else (11, 17))
    assert np.array_equal(np.asarray(picture), np.asarray(upright.convert("RGB")))
    assert np.array_equal(np.asarray(ImageOps.exif_transpose(picture)), np.asarray(picture))


def test_exif_8_turns_left() -> None:
    pixels = photo(17, 11)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 8
    picture = decode(encoded(Image.fromarray(pixels), "PNG", exif=exif))
    assert np.array_equal(np.asarray(picture), np.rot90(pixels))


@pytest.mark.parametrize("block", [b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\x7f", b"Exif\0\0MM\0*\0\0\0\x08\0"])
def test_broken_exif_is_ignored(block: bytes) -> None:
    sound = encoded(Image.fromarray(photo()), "JPEG")
    segment = b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block
    picture = decode(sound[:2] + segment + sound[2:])
    assert np.array_equal(np.asarray(picture), np.asarray(decode(sound)))


@pytest.mark.parametrize("mode", ["1", "L", "LA"])
def test_no_colour_gives_grey(mode: str) -> None:
    grey = Image.fromarray(photo(channels=1)[:, :, 0])
    picture = decode(encoded(grey.convert(mode), "PNG"))
    assert picture.mode == "L"
    assert np.array_equal(np.asarray(picture), np.asarray(grey.convert(mode).convert("L")))


def test_palette_is_grey_only_if_all_its_entries_are() -> None:
    indices = Image.fromarray(np.arange(12, dtype=np.uint8).reshape(3, 4) % 4).convert("P")
    indices.putpalette([9, 9, 9, 40, 40, 40, 7, 7, 7, 200, 200, 200])
    assert decode(encoded(indices, "PNG")).mode == "L"
    assert np.asarray(decode(encoded(indices, "PNG")))[0].tolist() == [9, 40, 7, 200]
    indices.putpalette([9, 9, 9, 40, 41, 40, 7, 7, 7, 200, 200, 200])
    picture = decode(encoded(indices, "PNG"))
    assert picture.mode == "RGB"
    assert np.asarray(picture)[0, 1].tolist() == [40, 41, 40]


def test_transparency_is_laid_over_white() -> None:
    pixels = np.zeros((1, 3, 4), np.uint8)
    pixels[0, :] = [[200, 0, 0, 255], [200, 0, 0, 0], [200, 0, 0, 51]]
    picture = np.asarray(decode(encoded(Image.fromarray(pixels), "PNG")))
    assert picture[0].tolist() == [[200, 0, 0], [255, 255, 255], [244, 204, 204]]


def test_palette_transparency_of_both_kinds() -> None:
    indices = Image.fromarray(np.array([[0, 1, 2]], np.uint8)).convert("P")
    indices.putpalette([200, 0, 0, 0, 200, 0, 0, 0, 200])
    one = np.asarray(decode(encoded(indices, "PNG", transparency=1)))
    assert one[0].tolist() == [[200, 0, 0], [255, 255, 255], [0, 0, 200]]
    several = np.asarray(decode(encoded(indices, "PNG", transparency=b"\x00\x33\xff")))
    assert several[0].tolist() == [[255, 255, 255], [204, 244, 204], [0, 0, 200]]


def test_transparent_colour_of_a_png_in_its_own_bit_depth() -> None:
    two_bits = png(4, 1, 2, 0, b"\0\x1b", (b"tRNS", b"\0\2"))
    assert np.asarray(decode(two_bits)).tolist() == [[0, 85, 255, 255]]
    four_bits = png(2, 1, 4, 0, b"\0\x3c", (b"tRNS", b"\0\3"))
    assert np.asarray(decode(four_bits)).tolist() == [[255, 204]]
    grey = np.array([[300, 65535, 256]], np.uint16)
    keyed = png(3, 1, 16, 0, png_rows(grey), (b"tRNS", struct.pack(">H", 300)))
    assert np.asarray(decode(keyed)).tolist() == [[255, 255, 1]]
    colour = np.array([[[65535, 0, 2560], [0, 2560, 5120]]], np.uint16)
    key = struct.pack(">HHH", 0, 2560, 5120)
    deep = decode(png(2, 1, 16, 2, png_rows(colour.reshape(1, 6)), (b"tRNS", key)))
    assert np.asarray(deep).tolist() == [[[255, 0, 10], [255, 255, 255]]]


@pytest.mark.parametrize("order", ["<", ">"])
def test_16_bit_grey_is_scaled_not_clipped(order: str) -> None:
    values = np.linspace(0, 65535, 12).astype(np.uint16).reshape(3, 4)
    wanted = (values >> 8).astype(np.uint8)
    from_png = decode(png(4, 3, 16, 0, png_rows(values)))
    mode = "I;16" if order == "<" else "I;16B"
    from_tiff = decode(encoded(Image.frombytes(mode, (4, 3), values.astype(f"{order}u2").tobytes()), "TIFF"))
    for picture in (from_png, from_tiff):
        assert picture.mode == "L"
        assert np.array_equal(np.asarray(picture), wanted)


def test_12_bit_grey_fills_the_range() -> None:
    deep = Image.fromarray(np.array([[0, 2048, 4095]], np.uint16))
    assert np.asarray(flatten(deep, bits=12)).tolist() == [[0, 128, 255]]


def test_16_bit_rgb_loses_its_low_byte() -> None:
    values = np.array([[[65535, 511, 0], [4660, 22136, 39612]]], np.uint16)
    picture = decode(png(2, 1, 16, 2, png_rows(values.reshape(1, 6))))
    assert np.array_equal(np.asarray(picture), (values >> 8).astype(np.uint8))


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk_is_not_inverted(kind: str) -> None:
    ink = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    picture = np.asarray(decode(encoded(ink, kind, **({"quality": 95} if kind == "JPEG" else {}))))
    assert np.abs(picture.reshape(-1, 3).mean(0) - [255, 0, 0]).max() < 3


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "TIFF", "PNG"])
def test_first_of_several(kind: str) -> None:
    frames = [Image.new("RGB", (8, 6), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert np.asarray(decode(data))[3, 3].tolist() == [255, 0, 0]


def test_first_picture_of_an_mpo() -> None:
    first, second = (Image.new("RGB", (16, 8), colour) for colour in ("red", "blue"))
    picture = decode(encoded(first, "MPO", save_all=True, append_images=[second]))
    assert np.abs(np.asarray(picture).astype(int) - [254, 0, 0]).max() < 3


def test_floating_point_is_refused() -> None:
    data = encoded(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF")
    with pytest.raises(BadData, match=r"a\.tif: floating-point pixels have no agreed range; save it with 8 or 16"):
        decode(data, name="a.tif")
    whole = encoded(Image.fromarray(np.ones((4, 4), np.int32)), "TIFF")
    with pytest.raises(BadData, match="32-bit integer pixels"):
        decode(whole)


@pytest.mark.parametrize("kind", JPEGS)
@pytest.mark.parametrize("size", [(131, 77), (1, 1), (16, 9)])
def test_simplejpeg_equals_pillow(kind: str, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("simplejpeg")
    data = jpeg(kind, *size)
    with Image.open(io.BytesIO(data)) as opened:
        fast = room._fast_jpeg(data, opened)
    assert fast is not None
    monkeypatch.setattr(room, "_simplejpeg", lambda: None)
    slow = decode(data)
    assert fast.mode == slow.mode
    assert np.array_equal(np.asarray(fast), np.asarray(slow))


def test_without_simplejpeg(monkeypatch: pytest.MonkeyPatch) -> None:
    data = jpeg("4:2:0")
    wanted = np.asarray(decode(data))
    monkeypatch.setitem(sys.modules, "simplejpeg", None)
    room._simplejpeg.cache_clear()
    try:
        assert room._simplejpeg() is None
        assert np.array_equal(np.asarray(decode(data)), wanted)
    finally:
        room._simplejpeg.cache_clear()


def test_garbage_after_a_jpeg_is_ignored() -> None:
    data = jpeg("4:2:0")
    assert np.array_equal(np.asarray(decode(data + bytes(3000))), np.asarray(decode(data)))


@pytest.mark.parametrize("kind", ["VP8 ", "VP8L", "VP8X"])
def test_webp_size_of_each_kind(kind: str) -> None:
    picture = Image.fromarray(photo(57, 39, 3))
    frames = [Image.new("RGB", (57, 39), colour) for colour in ("red", "lime")]
    data = {
        "VP8 ": lambda: encoded(picture, "WEBP"),
        "VP8L": lambda: encoded(picture, "WEBP", lossless=True),
        "VP8X": lambda: encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:]),
    }[kind]()
    assert data[12:16] == kind.encode()
    assert room._webp_size(data) == (57, 39)


def test_threads_agree_and_leave_the_warning_filters_alone() -> None:
    data = [encoded(Image.fromarray(photo(seed=seed)), kind) for seed in range(3) for kind in FORMATS]
    wanted = [np.asarray(decode(each)) for each in data]
    before = list(warnings.filters)
    wrong: list[int] = []

    def work() -> None:
        for number, each in enumerate(data):
            if not np.array_equal(np.asarray(decode(each)), wanted[number]):
                wrong.append(number)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert list(warnings.filters) == before


def test_nothing_global_is_set() -> None:
    decode(encoded(Image.fromarray(photo()), "PNG"))
    assert Image.MAX_IMAGE_PIXELS == 1024 * 1024 * 1024 // 4 // 3
