"""Pictures opened once before training: which are damaged, how large they are, which are the same.

All of them, unless an index knows already what would be found, or there are so many that a part must do.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int64, UInt8
from PIL import ExifTags, Image

from vitrine.config.options import DataConfig
from vitrine.data.ahead import by_threads
from vitrine.data.blocks import blocked, is_far, sample_of_blocks
from vitrine.data.packed import Digests, Known
from vitrine.data.sources import Source
from vitrine.errors import BadData, Unavailable, VitrineError
from vitrine.files import content_hash
from vitrine.images.decode import require_bytes, sniff

DECODE_LIMIT_BYTES = 2_000_000_000
LARGE = 100_000
"""More pictures than these are not all looked at where no index knows them, and not all decoded before training."""

SAMPLE = 10_000
"""How many are looked at then, evenly spread over the source."""

FAR_SAMPLE = 1_000
"""How many are looked at of a set that is streamed."""

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
    Where there are too many pictures to look at, `looked` is below their number: of the others nothing is known, their
    size is 0 and their hash empty.
    """

    bad: dict[int, str]
    grey: bool
    sizes: Int64[np.ndarray, "n 2"]
    median_size: tuple[int, int]
    hashes: Digests
    fingerprint: str
    complete: bool
    looked: int


def scan(source: Source, settings: DataConfig, progress: Callable[[int, int], None] | None = None) -> Scan:
    """Open every picture of `source` under the limits of `settings`, calling `progress(done, all)`.

    Pictures are decoded whole, up to 2 GB of files; above that only their headers are read. What an index knows is
    taken from there and nothing is opened; without one, of more than `LARGE` pictures `SAMPLE` are looked at. Raises
    `BadData` where more than `settings.max_bad_share` of those looked at are damaged.
    """
    source = source.within(settings)
    if source.known is not None:
        return _as_known(source, source.known, settings)
    chosen = _chosen(source)
    complete = _total_bytes(source) * len(chosen) <= DECODE_LIMIT_BYTES * len(source)
    looks = _look_at_all(source, chosen, _decode_one if complete else _peek, progress)
    bad = {int(i): found.reason for i, found in zip(chosen, looks, strict=True) if found.reason}
    _check_share(source, bad, len(chosen), settings.max_bad_share)
    sizes, table = np.zeros((len(source), 2), np.int64), np.zeros((len(source), 32), np.uint8)
    sizes[chosen] = [found.size for found in looks]
    table[chosen] = Digests.of([found.hash for found in looks]).table
    hashes = Digests(table)
    return Scan(
        bad=bad,
        grey=all(found.grey for found in looks if not found.reason),
        sizes=sizes,
        median_size=_median(sizes[sizes[:, 0] > 0]),
        hashes=hashes,
        fingerprint=fingerprint(source, hashes),
        complete=complete,
        looked=len(chosen),
    )


def _chosen(source: Source) -> Int64[np.ndarray, " m"]:
    """The pictures to look at: all, or an even sample; of what is read in blocks, whole ones."""
    n, packed = len(source), blocked(source.packed)
    most = FAR_SAMPLE if is_far(packed) else SAMPLE if n > LARGE else n
    if not source.encoded or n <= most:
        return np.arange(n)
    return np.arange(most) * n // most if packed is None else sample_of_blocks(packed.blocks, most)


def _as_known(source: Source, known: Known, settings: DataConfig) -> Scan:
    """What the look at an earlier time found, under the limits of now."""
    most = settings.max_pixels
    over = np.flatnonzero(known.sizes.prod(axis=1) > most)
    why = "{} x {} pixels are more than the limit max_pixels = {:,}"
    bad = {int(i): why.format(*known.sizes[i].tolist(), most) for i in over}
    _check_share(source, bad, len(source), settings.max_bad_share)
    sizes = known.sizes.copy()
    sizes[over] = 0
    return Scan(
        bad=bad, grey=known.grey, sizes=sizes, median_size=_median(sizes[sizes[:, 0] > 0]), hashes=known.hashes,
        fingerprint=known.fingerprint, complete=True, looked=len(source),
    )  # fmt: skip


def _median(sizes: Int64[np.ndarray, "n 2"]) -> tuple[int, int]:
    W, H = np.median(sizes, axis=0).astype(np.int64).tolist()
    return W, H


def _look_at_all(
    source: Source,
    chosen: Int64[np.ndarray, " m"],
    look: Callable[[Source, int], Look],
    progress: Callable[[int, int], None] | None,
) -> list[Look]:
    looks = []
    with (
        warnings.catch_warnings(),
        contextlib.closing(by_threads(lambda i: look(source, i), map(int, chosen))) as found,
    ):
        # Pillow warns of size and of broken EXIF while it reads a header: the first is checked here, the other borne.
        warnings.filterwarnings("ignore", module=r"PIL\.")
        for one in found:
            looks.append(one)
            if progress is not None:
                progress(len(looks), len(chosen))
    return looks


def has_no_colour(pixels: UInt8[np.ndarray, "H W C"]) -> bool:
    """Whether there is one channel, or all channels are equal."""
    # A few pixels tell most colour pictures without a look at the rest.
    return all(bool((part[..., :1] == part).all()) for part in (pixels[::37, ::37], pixels))


def _total_bytes(source: Source) -> int:
    if source.packed is not None:
        return source.packed.total_bytes()
    total = 0
    for path in source.paths or ():
        try:
            total += path.stat().st_size
        except (OSError, ValueError):  # ValueError: a NUL in the name; it is found damaged later
            continue
    return total


def looked_at(pixels: UInt8[np.ndarray, "H W C"]) -> Look:
    """What decoded pixels show: size, colour, and the hash of both."""
    H, W, C = pixels.shape
    digest = hashlib.sha256(f"{W} {H} {C} ".encode())
    digest.update(np.ascontiguousarray(pixels).data)
    return Look(size=(W, H), grey=has_no_colour(pixels), hash=digest.digest())


def _decode_one(source: Source, i: int) -> Look:
    try:
        if source.arrays is not None:
            return looked_at(source.arrays[i])
        picture = np.asarray(source.picture(i))
    except Unavailable:
        raise  # the network, not the picture
    except VitrineError as error:
        return Look(reason=reason(error, source, i))
    return looked_at(picture[..., None] if picture.ndim == 2 else picture)


def _peek(source: Source, i: int) -> Look:
    """Size and colour from the header, hash from size and ends of the file; nothing is decoded."""
    limits = source.limits
    try:
        size_bytes, first, last = _ends(source, i)
        kind = sniff(first, source.ids[i])
        with Image.open(_header(source, i, size_bytes), formats=[kind]) as picture:
            W, H = picture.size
            grey = picture.mode in ("1", "L", "LA", "I;16", "I;16B")
            if _lies_on_its_side(picture, kind):
                W, H = H, W
    except Unavailable:
        raise
    except VitrineError as error:
        return Look(reason=reason(error, source, i))
    except Exception as error:  # Pillow's readers raise what they like on a damaged header
        return Look(reason=f"its header cannot be read ({' '.join(str(error).split())})")
    if limits.max_pixels < W * H:
        return Look(reason=f"{W} x {H} pixels are more than the limit max_pixels = {limits.max_pixels:,}")
    if size_bytes > limits.max_bytes:
        return Look(reason=f"{size_bytes:,} bytes are more than the limit max_bytes = {limits.max_bytes:,}")
    return Look(size=(W, H), grey=grey, hash=hashlib.sha256(f"{size_bytes} ".encode() + first + last).digest())


def _header(source: Source, i: int, size_bytes: int) -> Path | io.BytesIO:
    """What Pillow reads a header from: the file itself, or all that is packed of the picture."""
    if source.packed is None:
        assert source.paths is not None
        return source.paths[i]
    require_bytes(source.ids[i], size_bytes, source.limits.max_bytes)
    return io.BytesIO(source.packed.read(i))


def _lies_on_its_side(picture: Image.Image, kind: str) -> bool:
    """Whether EXIF swaps width and height. Not asked of a PNG: Pillow would decode it for the answer."""
    if kind == "PNG":
        return False
    try:
        return picture.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
    except Exception:  # a broken block is ignored, as when decoding
        return False


def _ends(source: Source, i: int) -> tuple[int, bytes, bytes]:
    """Bytes of the picture's file, and the first and last 64 KiB of it."""
    if source.packed is not None:
        size = source.packed.size(i)
        return size, source.packed.read(i, 0, _ENDS_BYTES), source.packed.read(i, max(0, size - _ENDS_BYTES))
    assert source.paths is not None
    size = source.paths[i].stat().st_size
    with source.paths[i].open("rb") as file:
        first = file.read(_ENDS_BYTES)
        file.seek(max(0, size - _ENDS_BYTES))
        return size, first, file.read(_ENDS_BYTES)


def reason(error: Exception, source: Source, i: int) -> str:
    """What `error` says of picture `i`, on one line, without its name and the full stop."""
    said = " ".join(str(error).split()).removesuffix(".")
    path = source.paths[i] if source.paths is not None else source.ids[i]
    for name in (source.ids[i], path, repr(source.ids[i])):
        said = said.removeprefix(f"{name}: ")
    return said


def _check_share(source: Source, bad: dict[int, str], looked: int, allowed: float) -> None:
    if len(bad) <= allowed * looked and len(bad) < looked:
        return
    first = "; ".join(f"{source.ids[i]} ({why})" for i, why in list(bad.items())[:3])
    raise BadData(
        f"{source.name}: {len(bad)} of {looked} pictures cannot be read, more than data.max_bad_share = "
        f"{allowed:g} allows: {first}{'; ...' if len(bad) > 3 else ''}. Mend or remove them; in training the share "
        "may be raised."
    )


def fingerprint(source: Source, hashes: Digests, members: Int64[np.ndarray, " m"] | None = None) -> str:
    """One hash over names, classes and contents of all pictures or of `members`, whatever their order."""
    numbered = range(len(source)) if members is None else map(int, members)
    lines = (
        f"{source.ids[i]}\t{'|'.join(source.classes_of(i))}\t{hashed.hex()}"
        for i, hashed in zip(numbered, hashes, strict=True)
    )
    return content_hash("\n".join(sorted(lines)).encode("utf-8", "surrogateescape"))
