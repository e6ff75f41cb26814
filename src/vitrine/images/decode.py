"""Bytes to an upright picture, grey or RGB: strict about what is damaged, careful with what is huge.

Six formats are read, told apart by their content and never by the name of the file.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import stat
import struct
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError, features

from vitrine.errors import BadData, DiskError, NotFound, VitrineError
from vitrine.files import disk_error

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
READ = "JPEG, PNG, WebP, GIF, BMP or TIFF"

_SIGNATURES = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"BM", "BMP"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
)
_FOREIGN = (
    (b"\0\0\0\x0cjP  ", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"\0\0\0\x0cJXL ", "JPEG XL"),
    (b"\xff\x0a", "JPEG XL"),
    (b"II\xbc\x01", "JPEG XR"),
    (b"\0\0\1\0", "ICO"),
    (b"\0\0\2\0", "CUR"),
    (b"icns", "ICNS"),
    (b"qoif", "QOI"),
    (b"8BPS", "Photoshop"),
    (b"%PDF", "PDF"),
    (b"%!PS", "PostScript"),
    (b"DDS ", "DDS"),
    (b"v/1\1", "OpenEXR"),
    (b"#?RADIANCE", "Radiance HDR"),
    *((b"P%d%c" % (kind, blank), "PPM") for kind in range(1, 8) for blank in b" \t\r\n#"),
)
_BRANDS = {b"avif": "AVIF", b"avis": "AVIF", b"mif1": "HEIF", b"msf1": "HEIF", b"crx ": "Canon raw"}
_BRANDS |= dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"), "HEIF")

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_TILE_WIDTH, _TILE_LENGTH = 322, 323

# The warning filters belong to the whole process: two threads that change them at once would leave them
# wrong. A fork waits, so that no child starts with the lock held by a thread it does not have.
_FILTERS = threading.Lock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_FILTERS.acquire, after_in_parent=_FILTERS.release, after_in_child=_FILTERS.release)


def decode(
    source: bytes | Path, *, name: str = "", max_pixels: int = 50_000_000, max_bytes: int = 64_000_000
) -> Image.Image:
    """The upright picture in mode "L" where the file holds no colour, "RGB" where it does.

    The first picture of an animation or of several pages; turned as EXIF says (a broken EXIF block is
    ignored); transparency laid over white; 16 bits a channel cut to the upper 8. A palette whose entries
    are all grey counts as grey.

    `name` is what messages call the picture; by default the path.
    Raises `BadData` where the file is empty, larger than `max_bytes`, no picture, of a format not among
    `FORMATS`, claims more than `max_pixels`, or is damaged or cut off; sizes are checked before anything
    is read or decoded. Raises `NotFound` or `DiskError` where the path cannot be read.
    """
    label = name or (str(source) if isinstance(source, Path) else "the picture")
    data = source if isinstance(source, bytes) else read_file(source, label, max_bytes)
    require_bytes(label, len(data), max_bytes)
    kind = sniff(data, label)
    try:
        return _decode(data, kind, label, max_pixels)
    except VitrineError:
        raise
    except MemoryError as error:
        raise BadData(f"{label}: the picture needs more memory than there is. Make it smaller.") from error
    except Image.DecompressionBombError as error:
        limit = min(max_pixels, 2 * (Image.MAX_IMAGE_PIXELS or max_pixels))
        raise BadData(f"{label}: more pixels than the limit of {limit:,}. Make it smaller.") from error
    except Exception as error:  # whatever a decoder says about hostile bytes means one thing to the user
        raise BadData(f"{label}: {_reason(error, kind)}. Replace it or take it out.") from error


def flatten(picture: Image.Image, *, name: str = "the picture", bits: int = 16) -> Image.Image:
    """A picture in mode "L" or "RGB" with the pixels of `picture`, transparency laid over white.

    `bits` says how many bits a value has in a picture of mode "I;16". Raises `BadData` for pictures whose
    values have no agreed range (floating point, 32-bit integers).
    """
    if picture.mode in ("F", "I"):
        kind = "floating-point" if picture.mode == "F" else "32-bit integer"
        raise BadData(f"{name}: {kind} pixels have no agreed range; save it with 8 or 16 bits a channel.")
    if picture.mode.startswith("I;16"):
        return _upper_byte(picture, bits)
    mode = "L" if picture.mode in ("1", "L", "LA", "La") or _is_grey_palette(picture) else "RGB"
    if picture.has_transparency_data:
        if picture.mode == "La":
            picture = picture.convert("LA")
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture.convert("RGBA"))
    flat = picture.convert(mode)
    flat.info = {}
    return flat


def sniff(data: bytes, name: str = "the picture") -> str:
    """The one of `FORMATS` that the first bytes of `data` announce.

    Raises `BadData` that says what the bytes are instead, where they tell.
    """
    if not data:
        raise BadData(f"{name}: the file is empty. Replace it or take it out.")
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    for signature, kind in _SIGNATURES:
        if data.startswith(signature):
            return kind
    foreign = _foreign(data)
    if foreign:
        raise BadData(f"{name}: {foreign} pictures are not read; convert it to {READ}.")
    text = _text(data)
    if text:
        raise BadData(f"{name}: this is {text}, not a picture. Replace it or take it out.")
    raise BadData(f"{name}: this is no picture, or its first bytes are damaged; what is read is {READ}.")


def _foreign(data: bytes) -> str:
    """The name of a picture format that is known and not read, or an empty string."""
    if data[4:8] == b"ftyp":
        brands = [data[at : at + 4] for at in range(8, min(64, len(data), data[3] or 64), 4)]
        known = [_BRANDS[brand] for brand in brands if brand in _BRANDS]
        return "AVIF" if "AVIF" in known else known[0] if known else ""
    for signature, kind in _FOREIGN:
        if data.startswith(signature):
            return kind
    return "SVG" if b"<svg" in data[:1024].lower() else ""


def _text(data: bytes) -> str:
    """`an HTML page`, `a text file`, or an empty string for what is neither."""
    head = data[:1024].removeprefix(b"\xef\xbb\xbf")
    if head.lstrip().lower().startswith((b"<!doctype html", b"<html")):
        return "an HTML page"
    words = head.decode("utf-8", errors="ignore")
    lost = len(head) - len(words.encode())  # a character may be cut at the end of the head, no more
    return "a text file" if lost <= 3 and all(c.isprintable() or c in "\t\r\n" for c in words) else ""


def read_file(path: Path, label: str, max_bytes: int) -> bytes:
    """All bytes of a file of at most `max_bytes`; its size is asked for before it is read. `label` names it in errors.

    Raises `BadData` for a larger one and for what is no file, `NotFound` or `DiskError` where it cannot be read.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            what = "a folder" if stat.S_ISDIR(status.st_mode) else "not a plain file"
            raise BadData(f"{label}: this is {what}; give the path of a picture.")
        require_bytes(label, status.st_size, max_bytes)
        with path.open("rb") as file:
            return file.read(max_bytes + 1)
    except PermissionError as error:
        raise DiskError(f"{label}: this account may not read the file. Change its permissions.") from error
    except OSError as error:
        raise disk_error(error, path) from error
    except ValueError as error:  # a NUL in the name
        raise NotFound(f"{label!r}: there is no such file.") from error


def require_bytes(label: str, size: int, max_bytes: int) -> None:
    """Raise `BadData` for a file of more than `max_bytes`."""
    if size > max_bytes:
        raise BadData(
            f"{label}: the file has {size:,} bytes, more than the limit of {max_bytes:,}. "
            "Make it smaller, or raise the limit max_bytes (in training data.max_bytes)."
        )


def _decode(data: bytes, kind: str, label: str, max_pixels: int) -> Image.Image:
    if kind == "WEBP":  # Pillow makes room for the canvas as soon as it opens one
        _check_pixels(*_webp_size(data), label, max_pixels)
    with _quiet():
        opened = Image.open(io.BytesIO(data), formats=[kind])
    _check_pixels(*opened.size, label, max_pixels)
    if kind == "TIFF":
        _check_pixels(*_tile_size(opened), label, max_pixels)
    bits = _prepare(opened)
    picture = _fast_jpeg(data, opened) if kind == "JPEG" else None
    if picture is None:
        # Of all formats TIFF alone warns while it loads.
        with _quiet() if kind == "TIFF" else contextlib.nullcontext():
            opened.load()
        picture = opened
    with _quiet():
        orientation = _orientation(opened)
    return turn(flatten(picture, name=label, bits=bits), orientation)


def upright(picture: Image.Image) -> Image.Image:
    """What `decode` gives for a picture that Pillow has opened: in mode "L" or "RGB", turned as EXIF says.

    Raises `BadData` where its file turns out to be damaged, and what `flatten` raises.
    """
    try:
        with _quiet():
            picture.load()
            orientation = _orientation(picture)
    except Exception as error:
        raise BadData(f"the picture: {_reason(error, picture.format or 'image')}. Replace it.") from error
    return turn(flatten(picture), orientation)


def turn(picture: Image.Image, orientation: int) -> Image.Image:
    """`picture` as it is meant to be seen; `orientation` is EXIF's, 1 to 8."""
    how = _UPRIGHT.get(orientation)
    return picture if how is None else picture.transpose(how)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep Pillow's warnings from the user: what matters of them is an error here, the rest is ignored."""
    with _FILTERS, warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield


def _check_pixels(width: int, height: int, label: str, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise BadData(
            f"{label}: {width} x {height} pixels are more than the limit of {max_pixels:,}. "
            "Make it smaller, or raise the limit max_pixels (in training data.max_pixels)."
        )


def _webp_size(data: bytes) -> tuple[int, int]:
    """Width and height in a WebP header (RFC 9649, sections 2.5 to 2.7); (0, 0) where it is unknown."""
    head = data[:30].ljust(30, b"\0")
    if head[12:16] == b"VP8X":
        return 1 + int.from_bytes(head[24:27], "little"), 1 + int.from_bytes(head[27:30], "little")
    if head[12:16] == b"VP8L":
        packed = int.from_bytes(head[21:25], "little")
        return 1 + (packed & 0x3FFF), 1 + (packed >> 14 & 0x3FFF)
    width, height = struct.unpack_from("<HH", head, 26)
    return (width & 0x3FFF, height & 0x3FFF) if head[12:16] == b"VP8 " else (0, 0)


def _tile_size(opened: Image.Image) -> tuple[int, int]:
    """Width and height of a TIFF's tiles, which may be larger than the picture; (0, 0) where there are none."""
    tags = getattr(opened, "tag_v2", {})
    with _quiet():
        sides = tags.get(_TILE_WIDTH, 0), tags.get(_TILE_LENGTH, 0)
    return sides if all(isinstance(side, int) for side in sides) else (0, 0)


def _prepare(opened: ImageFile.ImageFile) -> int:
    """The bits of a 16-bit grey value; brings the transparent colour of `opened` to the scale of its pixels.

    Pillow scales the pixels of a PNG to 8 bits, but not the colour that its tRNS chunk calls transparent.
    """
    args = opened.tile[0].args if opened.tile else ""
    raw = args if isinstance(args, str) else str(args[0]) if args else ""
    key = opened.info.get("transparency")
    if raw in ("L;2", "L;4") and isinstance(key, int):
        opened.info["transparency"] = key * (85 if raw == "L;2" else 17)
    if raw == "RGB;16B" and isinstance(key, tuple):
        opened.info["transparency"] = tuple(value >> 8 for value in key)
    return 12 if raw == "I;12" else 16


@functools.cache
def _simplejpeg() -> ModuleType | None:
    """simplejpeg where it is installed and Pillow decodes with the same library: then both agree exactly."""
    if not features.check("libjpeg_turbo"):
        return None
    try:
        import simplejpeg
    except ImportError:
        return None
    module: ModuleType = simplejpeg
    return module


def _fast_jpeg(data: bytes, opened: Image.Image) -> Image.Image | None:
    """The decoded JPEG, equal to Pillow's bit for bit; None where only Pillow can say what it holds."""
    fast = _simplejpeg()
    if fast is None or opened.mode not in ("L", "RGB"):
        return None
    try:
        pixels = fast.decode_jpeg(data, colorspace="GRAY" if opened.mode == "L" else "RGB", strict=True)
    except (ValueError, RuntimeError):  # damaged, or of an unusual kind: Pillow decides
        return None
    if pixels.shape[1::-1] != opened.size:
        return None
    return Image.fromarray(pixels[:, :, 0] if opened.mode == "L" else pixels)


def _orientation(opened: Image.Image) -> int:
    """EXIF orientation 1 to 8, and 1 where the block is missing or broken."""
    try:
        value = opened.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # the block is decoration: the pixels are sound whatever is wrong with it
        return 1
    return value if isinstance(value, int) else 1


def _upper_byte(picture: Image.Image, bits: int) -> Image.Image:
    """A 16-bit grey picture as "L": the low bits are dropped, as Pillow drops them from 16-bit RGB."""
    values = np.asarray(picture)
    grey = (values >> (bits - 8)).clip(0, 255).astype(np.uint8)
    key = picture.info.get("transparency")
    if isinstance(key, int):
        grey[values == key] = 255
    return Image.fromarray(grey)


def _is_grey_palette(picture: Image.Image) -> bool:
    if picture.mode not in ("P", "PA"):
        return False
    entries = np.array(picture.getpalette("RGB") or [0, 0, 0]).reshape(-1, 3)
    return bool((entries == entries[:, :1]).all())


def _reason(error: Exception, kind: str) -> str:
    if isinstance(error, UnidentifiedImageError):
        return f"the {kind} header is damaged, or of a kind that is not read"
    return f"the {kind} data is damaged or cut off ({error or type(error).__name__})"
