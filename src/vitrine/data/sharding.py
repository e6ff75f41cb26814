"""Any source written as tar shards in WebDataset's layout, with an index that makes every later look at them free.

Equal pictures and options give equal bytes. The folder appears at once, whole and read back, or not at all.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import tarfile
import zlib
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from vitrine.config.options import DataConfig
from vitrine.data.ahead import by_threads
from vitrine.data.index import PARTS, File, Index, open_index, write_index
from vitrine.data.packed import Digests, Known, Names
from vitrine.data.scan import Look, fingerprint, looked_at, reason
from vitrine.data.sources import Source
from vitrine.data.tar import BLOCK, members
from vitrine.data.tarred import Tarred
from vitrine.data.tarsets import CLASS_NAMES_FILE
from vitrine.errors import BadData, CannotCreate, DiskError, VitrineError
from vitrine.files import disk_error, sweep, sync_folder, write_text
from vitrine.images.decode import decode, sniff

RECORD = 20 * BLOCK
"""A tar file is a multiple of this."""

_ENDINGS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "GIF": "gif", "BMP": "bmp", "TIFF": "tif"}


@dataclass(frozen=True, kw_only=True)
class Shape:
    """How pictures are written: copied, or where `side` is set those with a longer shorter side made smaller."""

    side: int | None = None
    quality: int = 90
    shard_bytes: int = 256 << 20


@dataclass(frozen=True, kw_only=True)
class Written:
    """What was written, and the pictures that were left out with the reason, by id."""

    out: Path
    shards: int
    pictures: int
    bytes: int
    shrunk: int
    parts: dict[str, int]
    left_out: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class _Piece:
    """One picture as it goes into a shard."""

    number: int
    content: bytes = b""
    ending: str = ""
    look: Look
    shrunk: bool = False


@dataclass(kw_only=True, eq=False)
class _Kept:
    """What the index will say of the pictures so far, in the order of the shards."""

    numbers: list[int] = field(default_factory=list)
    places: list[tuple[int, int, int, int]] = field(default_factory=list)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    hashes: list[bytes] = field(default_factory=list)
    grey: bool = True
    shrunk: int = 0
    files: list[File] = field(default_factory=list)


def write_shards(
    source: Source,
    out: Path,
    shape: Shape,
    settings: DataConfig,
    *,
    progress: Callable[[int, int], None] | None = None,
    on_bad: Callable[[str, str], None] | None = None,
) -> Written:
    """Write the pictures of `source` as shards into the new folder `out`, under the limits of `settings`.

    Each part has shards of its own. In them the pictures stand in a random order, the same each time; the index has
    the order of the source, so that training on the shards sees what training on the source would. Pictures that cannot
    be read are told to `on_bad(id, reason)` and left out. Raises `CannotCreate` where `out` exists, `BadData` where
    more than `settings.max_bad_share` are damaged, `DiskError` where there is no space.
    """
    if os.path.lexists(out):
        raise CannotCreate(f"{out}: exists already. Choose another place, or remove it first.")
    out = out.absolute()
    part = out.with_name(f".{out.name}.{os.getpid()}.part")
    source = source.within(settings)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        sweep(out)
        part.mkdir()
        left_out, kept = dict[str, str](), _Kept()
        with contextlib.closing(_write_all(part, source, shape, kept)) as pieces:
            for done, (name, why) in pieces:
                if progress is not None:
                    progress(done, len(source))
                if why:
                    left_out[name] = why
                    if on_bad is not None:
                        on_bad(name, why)
                    _check_share(source, left_out, settings.max_bad_share)
        if not kept.numbers:
            raise BadData(f"{source.name}: no picture can be read; there is nothing to write.")
        index = _index(part, source, kept)
        write_index(part, index, kept.files, {"source": source.name, "side": shape.side, "quality": shape.quality})
        if _one_a_line(source.class_names):
            write_text(part / CLASS_NAMES_FILE, "".join(f"{name}\n" for name in source.class_names))
        _read_back(part, kept.files)
        if os.path.lexists(out):
            raise CannotCreate(f"{out}: has been made meanwhile. Choose another place.")
        part.rename(out)
        sync_folder(out.parent)
    except OSError as error:
        raise disk_error(error, out) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    counts = {part: int((index.given == part).sum()) for part in PARTS if part in index.given}
    return Written(
        out=out, shards=len(kept.files), pictures=len(kept.numbers), bytes=sum(file.bytes for file in kept.files),
        shrunk=kept.shrunk, parts=counts, left_out=left_out,
    )  # fmt: skip


def _write_all(
    folder: Path, source: Source, shape: Shape, kept: _Kept
) -> Generator[tuple[int, tuple[str, str]], None, None]:
    """Write every picture; yields how many are done, and the id of the last with the reason if it cannot be read."""
    done = 0
    for part in PARTS:
        mine = np.flatnonzero(source.given == part)
        keys = np.random.Generator(np.random.Philox(key=0)).random(len(mine))
        pieces = by_threads(lambda i: _piece(source, i, shape), map(int, mine[np.argsort(keys, kind="stable")]))
        with contextlib.closing(pieces), contextlib.ExitStack() as stack:
            shard, number = None, 0
            for piece in pieces:
                done += 1
                if not piece.look.reason:
                    if shard is None or not shard.has_room(len(piece.content), shape.shard_bytes):
                        stack.close()
                        shard = stack.enter_context(_shard(folder / f"{part or 'pictures'}-{number:06d}.tar", kept))
                        number += 1
                    shard.add(piece, source, kept)
                yield done, (source.ids[piece.number], piece.look.reason)


def _piece(source: Source, i: int, shape: Shape) -> _Piece:
    """Picture `i` as it is to be written, and what a look at it shows."""
    limits, name = source.limits, source.ids[i]
    try:
        if not source.encoded:
            picture = source.picture(i)
            return _Piece(number=i, content=_encoded(picture, "PNG", shape), ending="png", look=_look(picture))
        content = source.content(i)
        picture = decode(content, name=name, max_pixels=limits.max_pixels, max_bytes=limits.max_bytes)
        kind = sniff(content, name)
        if shape.side is None or min(picture.size) <= shape.side:
            return _Piece(number=i, content=content, ending=_ENDINGS[kind], look=_look(picture))
        kind = "JPEG" if kind in ("JPEG", "WEBP") else "PNG"
        content = _encoded(_smaller(picture, shape.side), kind, shape)
        look = _look(decode(content, name=name))
        return _Piece(number=i, content=content, ending=_ENDINGS[kind], look=look, shrunk=True)
    except VitrineError as error:
        return _Piece(number=i, look=Look(reason=reason(error, source, i)))


def _smaller(picture: Image.Image, side: int) -> Image.Image:
    shorter = min(picture.size)
    W, H = (max(1, round(length * side / shorter)) for length in picture.size)
    return picture.resize((W, H), Image.Resampling.BICUBIC)


def _encoded(picture: Image.Image, kind: str, shape: Shape) -> bytes:
    into = io.BytesIO()
    picture.save(into, kind, **({"quality": shape.quality} if kind == "JPEG" else {}))
    return into.getvalue()


def _look(picture: Image.Image) -> Look:
    pixels = np.asarray(picture)
    return looked_at(pixels[..., None] if pixels.ndim == 2 else pixels)


@dataclass(kw_only=True, eq=False)
class _Shard:
    """A tar file under way."""

    number: int
    file: BinaryIO
    digest: hashlib._Hash = field(default_factory=hashlib.sha256)
    size: int = 0

    def has_room(self, more: int, most: int) -> bool:
        """Whether a picture of so many bytes leaves the file within `most`."""
        return self.size + more + 5 * BLOCK <= most

    def add(self, piece: _Piece, source: Source, kept: _Kept) -> None:
        """The picture and its label, and what the index will say of it."""
        key = f"{len(kept.numbers):09d}"
        at = self._member(f"{key}.{piece.ending}", piece.content)
        if source.multi_label:
            self._member(f"{key}.json", json.dumps({"labels": source.classes_of(piece.number)}).encode())
        else:
            self._member(f"{key}.cls", str(int(source.labels[piece.number])).encode())
        kept.numbers.append(piece.number)
        kept.places.append((self.number, at, len(piece.content), zlib.crc32(piece.content)))
        kept.sizes.append(piece.look.size)
        kept.hashes.append(piece.look.hash)
        kept.grey &= piece.look.grey
        kept.shrunk += piece.shrunk

    def _member(self, name: str, content: bytes) -> int:
        """Where its bytes begin, once it is written: of nobody, at no time, so that equal content gives equal bytes."""
        about = tarfile.TarInfo(name)
        about.size = len(content)
        self.write(about.tobuf(tarfile.USTAR_FORMAT))
        at = self.size
        self.write(content + bytes(-len(content) % BLOCK))
        return at

    def write(self, content: bytes) -> None:
        """These bytes too."""
        self.file.write(content)
        self.digest.update(content)
        self.size += len(content)


@contextlib.contextmanager
def _shard(path: Path, kept: _Kept) -> Iterator[_Shard]:
    """A shard to be filled; when the block ends well it is closed as tar wants it, synced, and noted."""
    with path.open("xb") as file:
        shard = _Shard(number=len(kept.files), file=file)
        kept.files.append(File(name=path.name, bytes=0, sha256=""))
        yield shard
        shard.write(bytes(-(shard.size + 2 * BLOCK) % RECORD + 2 * BLOCK))
        file.flush()
        os.fsync(file.fileno())
        kept.files[shard.number] = File(name=path.name, bytes=shard.size, sha256=shard.digest.hexdigest())


def _index(folder: Path, source: Source, kept: _Kept) -> Index:
    """What is known of the pictures, in the order of the source."""
    numbers = np.array(kept.numbers, np.int64)
    order = np.argsort(numbers)
    numbers, places = numbers[order], np.array(kept.places, np.int64)[order]
    hashes = Digests(Digests.of(kept.hashes).table[order])
    return Index(
        class_names=source.class_names,
        labels=source.labels[numbers],
        ids=Names.of(source.ids[int(i)] for i in numbers),
        given=source.given[numbers],
        packed=Tarred(
            files=tuple(folder / file.name for file in kept.files),
            file=places[:, 0].astype(np.int32),
            offsets=places[:, 1],
            lengths=places[:, 2],
            sums=places[:, 3].astype(np.uint32),
        ),
        known=Known(
            sizes=np.array(kept.sizes, np.int64)[order],
            grey=kept.grey,
            hashes=hashes,
            fingerprint=fingerprint(source, hashes, numbers),
        ),
    )


def _read_back(folder: Path, files: list[File]) -> None:
    """Hold what lies on the disk against what was meant: the bytes of each shard, and the place of each picture."""
    index = open_index(folder).packed
    for number, file in enumerate(files):
        path = folder / file.name
        with path.open("rb") as opened:
            digest = hashlib.file_digest(opened, "sha256").hexdigest()
        places = {(member.offset, member.size) for member in members(path)}
        mine = index.file == number
        told = set(zip(index.offsets[mine].tolist(), index.lengths[mine].tolist(), strict=True))
        if digest != file.sha256 or not told <= places:
            raise DiskError(f"{path.name}: what was read back is not what was written. Check the disk.")


def _one_a_line(names: tuple[str, ...]) -> bool:
    """Whether class names can stand in a text file, one a line."""
    return all(name.isprintable() and name.strip() == name != "" for name in names)


def _check_share(source: Source, left_out: dict[str, str], allowed: float) -> None:
    if len(left_out) > allowed * len(source):
        first = "; ".join(f"{name} ({why})" for name, why in list(left_out.items())[:3])
        raise BadData(
            f"{source.name}: {len(left_out)} of {len(source)} pictures cannot be read so far, more than "
            f"--max-bad-share {allowed:g} allows: {first}. Mend or remove them, or allow more."
        )
