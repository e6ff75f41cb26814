"""Every picture opened once before training: which are damaged, how large they are, which are the same."""

from __future__ import annotations

import contextlib
import hashlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int64, UInt8
from PIL import ExifTags, Image

from vitrine.config.options import DataConfig
from vitrine.data.ahead import by_threads
from vitrine.data.sources import Source
from vitrine.errors import BadData, VitrineError
from vitrine.files import content_hash
from vitrine.images.decode import sniff

DECODE_LIMIT_BYTES = 2_000_000_000
_ENDS_BYTES = 65_536


@dataclass(frozen=True, kw_only=True, slots=True)
class Look:
    """What one picture turned out to be: `size` is width and height, (0, 0) if damaged for `reason`."""

    size: tuple[int, int] = (0, 0)
    grey: bool = True
    hash: bytes = b""
    reason: str = ""


@dataclass(frozen=True, kw_only=True, eq=False)
class Scan:
    """What opening every picture showed.

    `bad` gives the reason, one line, by number of the picture. `sizes` is width and height of the upright
    picture in pixels, 0 where damaged; `median_size` sums them up. `grey`: no readable picture has colour.
    `hashes`: SHA-256 of size and upright pixels, empty where damaged.
    `fingerprint` is one hash over names, classes and contents. `complete` is False where the files are so
    large together that only headers were read; hashes then cover file size and both ends of the file.
    """

    bad: dict[int, str]
    grey: bool
    sizes: Int64[np.ndarray, "n 2"]
    median_size: tuple[int, int]
    hashes: tuple[bytes, ...]
    fingerprint: str
    complete: bool


def scan(source: Source, settings: DataConfig, progress: Callable[[int, int], None] | None = None) -> Scan:
    """Open every picture of `source` under the limits of `settings`, calling `progress(done, all)`.

    Pictures are decoded whole, up to 2 GB of files; above that only their headers are read. Raises `BadData`
    where more than `settings.max_bad_share` of them are damaged.
    """
    source = source.within(settings)
    complete = _total_bytes(source) <= DECODE_LIMIT_BYTES
    looks = _look_at_all(source, _decode_one if complete else _peek, progress)
    bad = {i: found.reason for i, found in enumerate(looks) if found.reason}
    _check_share(source, bad, settings.max_bad_share)
    readable = [found for found in looks if not found.reason]
    sizes = np.array([found.size for found in looks], np.int64).reshape(-1, 2)
    good = sizes[[i for i, found in enumerate(looks) if not found.reason]]
    median = np.median(good, axis=0).astype(np.int64)
    hashes = tuple(found.hash for found in looks)
    return Scan(
        bad=bad,
        grey=all(found.grey for found in readable),
        sizes=sizes,
        median_size=(int(median[0]), int(median[1])),
        hashes=hashes,
        fingerprint=_fingerprint(source, hashes),
        complete=complete,
    )


def _look_at_all(
    source: Source, look: Callable[[Source, int], Look], progress: Callable[[int, int], None] | None
) -> list[Look]:
    looks = []
    with (
        warnings.catch_warnings(),
        contextlib.closing(by_threads(lambda i: look(source, i), range(len(source)))) as found,
    ):
        # Pillow warns of size and of broken EXIF while it reads a header: the first is checked here, the other borne.
        warnings.filterwarnings("ignore", module=r"PIL\.")
        for one in found:
            looks.append(one)
            if progress is not None:
                progress(len(looks), len(source))
    return looks


def has_no_colour(pixels: UInt8[np.ndarray, "H W C"]) -> bool:
    """Whether there is one channel, or all channels are equal."""
    # A few pixels tell most colour pictures without a look at the rest.
    return all(bool((part[..., :1] == part).all()) for part in (pixels[::37, ::37], pixels))


def _total_bytes(source: Source) -> int:
    total = 0
    for path in source.paths or ():
        try:
            total += path.stat().st_size
        except (OSError, ValueError):  # ValueError: a NUL in the name; it is found damaged later
            continue
    return total


def _decode_one(source: Source, i: int) -> Look:
    try:
        if source.arrays is not None:
            pixels = source.arrays[i]
        else:
            picture = np.asarray(source.picture(i))
            pixels = picture[..., None] if picture.ndim == 2 else picture
    except VitrineError as error:
        return Look(reason=reason(error, source, i))
    H, W, C = pixels.shape
    digest = hashlib.sha256(f"{W} {H} {C} ".encode())
    digest.update(np.ascontiguousarray(pixels).data)
    return Look(size=(W, H), grey=has_no_colour(pixels), hash=digest.digest())


def _peek(source: Source, i: int) -> Look:
    """Size and colour from the header, hash from size and ends of the file; nothing is decoded."""
    assert source.paths is not None
    path, limits = source.paths[i], source.limits
    try:
        size_bytes, head, hashed = _ends(path)
        kind = sniff(head, source.ids[i])
        with Image.open(path, formats=[kind]) as picture:
            W, H = picture.size
            grey = picture.mode in ("1", "L", "LA", "I;16", "I;16B")
            if _lies_on_its_side(picture, kind):
                W, H = H, W
    except VitrineError as error:
        return Look(reason=reason(error, source, i))
    except Exception as error:  # Pillow's readers raise what they like on a damaged header
        return Look(reason=f"its header cannot be read ({' '.join(str(error).split())})")
    size = (W, H)
    if size[0] * size[1] > limits.max_pixels:
        return Look(reason=f"{W} x {H} pixels are more than the limit max_pixels = {limits.max_pixels:,}")
    if size_bytes > limits.max_bytes:
        return Look(reason=f"{size_bytes:,} bytes are more than the limit max_bytes = {limits.max_bytes:,}")
    return Look(size=size, grey=grey, hash=hashed)


def _lies_on_its_side(picture: Image.Image, kind: str) -> bool:
    """Whether EXIF swaps width and height. Not asked of a PNG: Pillow would decode it for the answer."""
    if kind == "PNG":
        return False
    try:
        return picture.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
    except Exception:  # a broken block is ignored, as when decoding
        return False


def _ends(path: Path) -> tuple[int, bytes, bytes]:
    """Bytes of the file, its first 64 KiB, and the hash of that number with its first and last 64 KiB."""
    size = path.stat().st_size
    with path.open("rb") as file:
        first = file.read(_ENDS_BYTES)
        file.seek(max(0, size - _ENDS_BYTES))
        return size, first, hashlib.sha256(f"{size} ".encode() + first + file.read(_ENDS_BYTES)).digest()


def reason(error: Exception, source: Source, i: int) -> str:
    """What `error` says of picture `i`, on one line, without its name and the full stop."""
    said = " ".join(str(error).split()).removesuffix(".")
    path = source.paths[i] if source.paths is not None else source.ids[i]
    for name in (source.ids[i], path, repr(source.ids[i])):
        said = said.removeprefix(f"{name}: ")
    return said


def _check_share(source: Source, bad: dict[int, str], allowed: float) -> None:
    if len(bad) <= allowed * len(source) and len(bad) < len(source):
        return
    first = "; ".join(f"{source.ids[i]} ({why})" for i, why in list(bad.items())[:3])
    raise BadData(
        f"{source.name}: {len(bad)} of {len(source)} pictures cannot be read, more than data.max_bad_share = "
        f"{allowed:g} allows: {first}{'; ...' if len(bad) > 3 else ''}. Mend or remove them; in training the share "
        "may be raised."
    )


def _fingerprint(source: Source, hashes: tuple[bytes, ...]) -> str:
    lines = (
        f"{name}\t{'|'.join(source.classes_of(i))}\t{hashed.hex()}"
        for i, (name, hashed) in enumerate(zip(source.ids, hashes, strict=True))
    )
    return content_hash("\n".join(sorted(lines)).encode("utf-8", "surrogateescape"))
