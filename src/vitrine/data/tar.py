"""The headers of a plain tar file, read one by one: what lies where. Nothing is unpacked.

The layout is POSIX's (pax, section "ustar Interchange Format") with GNU's long names and large numbers. The standard
library's reader ends without a word at a damaged header; this one says where the damage is.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from vitrine.errors import BadData

BLOCK = 512
MOST_EXTENSION = 1 << 20
"""Bytes of a long name or of pax records that are read: they stand in memory."""

FILE, LINK, SPARSE, OTHER = "file", "link", "sparse", "other"

_ZEROS = bytes(BLOCK)
_AGAIN = "Get the file again."
_COMPRESSED = {
    b"\x1f\x8b": "gunzip", b"BZh": "bunzip2", b"\xfd7zXZ\0": "unxz", b"\x28\xb5\x2f\xfd": "unzstd",
    b"\x04\x22\x4d\x18": "unlz4",
}  # fmt: skip
_NO_DATA = b"123456"  # links, devices, folders, pipes: whatever size they claim, no bytes follow
_FILES = b"\x000\x377"


class Member(NamedTuple):
    """One member: its name, where its bytes begin, how many they are, and what it is."""

    name: str
    offset: int
    size: int
    kind: str


def require_plain(path: Path) -> None:
    """Raise `BadData` for a compressed file, with the remedy."""
    with path.open("rb") as file:
        head = file.read(8)
    for begins, undo in _COMPRESSED.items():
        if head.startswith(begins):
            raise BadData(
                f"{path}: is compressed, and pictures are read at random places. Undo it with `{undo} {path.name}` and "
                "give the plain .tar: pictures are compressed already, so it is hardly larger."
            )


def looks_like_tar(path: Path) -> bool:
    """Whether the file's first block is a tar header by its mark."""
    with path.open("rb") as file:
        return file.read(BLOCK)[257:262] == b"ustar"


def members(path: Path) -> Iterator[Member]:
    """Every member in order, with the names that tar would give them.

    Raises `BadData`, with the byte, where a header is damaged, the file is cut off, or a name would take more memory
    than it is worth.
    """
    with path.open("rb", buffering=1 << 14) as file:
        whole = os.fstat(file.fileno()).st_size
        at, more = 0, dict[str, str]()
        while at < whole:
            file.seek(at)
            block = file.read(BLOCK)
            if block == _ZEROS:
                break
            kind, name, size = _header(block, path, at)
            begin = at + BLOCK
            if kind in b"xgLK":
                text = _extension(file, size, path, at)
                at = _end(begin, size, whole, path)
                if kind in b"xL":
                    more |= _records(text, path, at) if kind == b"x" else {"path": _text(text)}
                continue
            sparse = kind == b"S" or any(word.startswith("GNU.sparse.") for word in more)
            size, name = _number_said(more, size, path, at), more.get("path", name)
            at = begin if kind in _NO_DATA else _end(begin, size, whole, path)
            yield Member(name, begin, size, _kind(kind, name, sparse))
            more = {}
        else:
            if more or not whole:
                raise BadData(f"{path}: the file is {'cut off' if whole else 'empty'}. {_AGAIN}")


def header_at(block: bytes, path: Path, at: int) -> Member:
    """The member whose header is `block`, at byte `at` of the file; long names and records before it are not known.

    Raises `BadData` where it is damaged.
    """
    kind, name, size = _header(block, path, at)
    return Member(name, at + BLOCK, size, _kind(kind, name, kind == b"S"))


def _kind(kind: bytes, name: str, sparse: bool) -> str:
    if sparse:
        return SPARSE
    if kind in b"12":
        return LINK
    return FILE if kind in _FILES and not name.endswith("/") else OTHER


def _end(begin: int, size: int, whole: int, path: Path) -> int:
    """Where the next header stands. The padding of the last member may be missing, its bytes may not."""
    if begin + size > whole:
        raise BadData(
            f"{path}: the file is cut off: {begin + size:,} bytes are announced, there are {whole:,}. {_AGAIN}"
        )
    return begin + -(-size // BLOCK) * BLOCK


def _header(block: bytes, path: Path, at: int) -> tuple[bytes, str, int]:
    """Type, name and size in one header, once its sum was found right."""
    if len(block) < BLOCK:
        raise BadData(f"{path}: the file is cut off in a header (byte {at:,}). {_AGAIN}")
    told, total = block[148:156], sum(block) - sum(block[148:156]) + 8 * 32
    said = _octal(told)
    if said != total and said != total - 256 * _high(block):
        what = "a header is damaged" if at else "this is no tar file, or its first header is damaged"
        raise BadData(f"{path}: {what} (byte {at:,}). {_AGAIN}")
    size = _octal(block[124:136])
    if size is None or size < 0:
        raise BadData(f"{path}: a header has no size that can be (byte {at:,}). {_AGAIN}")
    name = _text(block[:100])
    if block[257:263] == b"ustar\0" and (prefix := _text(block[345:500])):
        name = f"{prefix}/{name}"
    return block[156:157], name, size


def _high(block: bytes) -> int:
    """How many summed bytes of a header are above 127: some old writers took them for negative."""
    return sum(byte > 127 for byte in block[:148] + block[156:])


def _octal(field: bytes) -> int | None:
    """The number in a field: octal digits, or with the highest bit set big-endian bytes (GNU); None if neither."""
    if field[0] & 0x80:
        return int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big") if field[0] == 0x80 else None
    digits = field.split(b"\0", 1)[0].strip()
    try:
        return int(digits or b"0", 8) if b"_" not in digits and digits[:1] not in b"+-" else None
    except ValueError:
        return None


def _text(field: bytes) -> str:
    return field.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")


def _extension(file: BinaryIO, size: int, path: Path, at: int) -> bytes:
    if size > MOST_EXTENSION:
        raise BadData(
            f"{path}: a name or its records take {size:,} bytes (byte {at:,}); at most {MOST_EXTENSION:,} are read."
        )
    return file.read(size)


def _records(text: bytes, path: Path, at: int) -> dict[str, str]:
    """pax records: each is its own length in digits, a space, a word, an equals sign, a value, a line break."""
    found = dict[str, str]()
    while text.strip(b"\0"):
        digits, _, _ = text.partition(b" ")
        length = int(digits) if digits.isdigit() and len(digits) < 8 else 0
        word, equals, value = text[len(digits) + 1 : length - 1].partition(b"=")
        if not len(digits) + 3 <= length <= len(text) or not equals:
            raise BadData(f"{path}: the records before byte {at:,} are damaged. {_AGAIN}")
        found[word.decode("utf-8", "surrogateescape")] = value.decode("utf-8", "surrogateescape")
        text = text[length:]
    return found


def _number_said(more: dict[str, str], size: int, path: Path, at: int) -> int:
    """The size that pax records give, or else the header's."""
    said = more.get("size", "")
    if not said:
        return size
    if not (said.isascii() and said.isdigit() and len(said) < 19):
        raise BadData(f"{path}: a size of {said[:40]!r} is none (byte {at:,}). {_AGAIN}")
    return int(said)
