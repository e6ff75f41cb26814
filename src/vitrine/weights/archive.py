"""The directory of a zip archive, checked before anyone unpacks it.

Weights come in two kinds of zip: numpy's .npz, one .npy a tensor, and torch's, a program of data.pkl and one file a
storage. What unpacks them does so in a child process; this page looks at the directory alone, and refuses what no
honest writer makes: entries that overlap, stand twice, are encrypted or leave the archive, and sizes far beyond
the file's own. The layout is that of PKWARE's APPNOTE.TXT, sections 4.3 and 4.5.3.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass

from vitrine.errors import BadData

MAX_ENTRIES, MAX_DIRECTORY = 20_000, 4 << 20
MOST_RATIO, MOST_SPARE = 20, 64 << 20
"""How large all entries may be when unpacked: times the file, and bytes more. Trained weights hardly shrink."""

STORED, DEFLATED = 0, 8

_END, _END64, _LOCATOR = b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07"
_ENTRY, _LOCAL = b"PK\x01\x02", b"PK\x03\x04"


@dataclass(frozen=True, kw_only=True)
class Member:
    """One entry: its name, how it is packed, its bytes as packed and as unpacked, and where its header begins."""

    name: str
    method: int
    packed: int
    size: int
    at: int


def directory(content: mmap.mmap, where: str) -> list[Member]:
    """The entries of the archive whose bytes are `content`, in the order in which they lie. Raises `BadData`."""
    try:
        members = _members(content, where)
        _require_order(content, members, where)
    except struct.error as error:
        raise BadData(f"{where}: the directory of the archive is cut off. Take another copy of it.") from error
    total, most = sum(member.size for member in members), MOST_RATIO * len(content) + MOST_SPARE
    if total > most:
        raise BadData(
            f"{where}: {len(content):,} bytes that unpack to {total:,}. Trained weights do not shrink so far."
        )
    return sorted(members, key=lambda member: member.at)


def _end(content: mmap.mmap, where: str) -> tuple[int, int, int, int]:
    """Number of entries, size and place of the directory, and where the end record begins."""
    at = content.rfind(_END, max(0, len(content) - 65_557))
    if at < 0 or at + 22 + struct.unpack_from("<H", content, at + 20)[0] != len(content):
        raise BadData(f"{where}: an archive without its end: cut off, or something was added. Take another copy of it.")
    disk, start, here, count, size, begin = struct.unpack_from("<HHHHII", content, at + 4)
    if at >= 20 and content[at - 20 : at - 16] == _LOCATOR:
        (at,) = struct.unpack_from("<Q", content, at - 12)
        if content[at : at + 4] != _END64:
            raise BadData(f"{where}: the archive's end record is not where it should be. Take another copy of it.")
        disk, start, here, count, size, begin = struct.unpack_from("<IIQQQQ", content, at + 16)
    if disk or start or here != count:
        raise BadData(f"{where}: an archive in several volumes, which is not read.")
    if count > MAX_ENTRIES or size > MAX_DIRECTORY:
        raise BadData(f"{where}: an archive of {count:,} entries; at most {MAX_ENTRIES:,} are read.")
    if begin + size != at:
        raise BadData(f"{where}: the directory of the archive is not where its end says. Take another copy of it.")
    return count, size, begin, at


def _members(content: mmap.mmap, where: str) -> list[Member]:
    count, _, at, end = _end(content, where)
    members: dict[str, Member] = {}
    for _ in range(count):
        if content[at : at + 4] != _ENTRY or at + 46 > end:
            raise BadData(f"{where}: the directory of the archive is damaged. Take another copy of it.")
        flags, method = struct.unpack_from("<HH", content, at + 8)
        sizes = struct.unpack_from("<II", content, at + 20)
        name_length, extra_length, comment_length = struct.unpack_from("<HHH", content, at + 28)
        (place,) = struct.unpack_from("<I", content, at + 42)
        raw = content[at + 46 : at + 46 + name_length]
        extra = content[at + 46 + name_length : at + 46 + name_length + extra_length]
        packed, size, place = _wide(extra, sizes[0], sizes[1], place)
        name = _name(raw, where)
        if name in members:
            raise BadData(f"{where}: {name!r} stands twice in the archive. Take another copy of it.")
        if flags & 1 or method not in (STORED, DEFLATED) or (method == STORED and packed != size):
            raise BadData(f"{where}: {name!r} is packed in a way that is not read (method {method}, flags {flags}).")
        members[name] = Member(name=name, method=method, packed=packed, size=size, at=place)
        at += 46 + name_length + extra_length + comment_length
    if at != end:
        raise BadData(f"{where}: the directory of the archive has other entries than it says. Take another copy of it.")
    return list(members.values())


def _wide(extra: bytes, packed: int, size: int, place: int) -> tuple[int, int, int]:
    """The sizes and the place, those of 64 bits taken from the extra field where the 32 are all ones."""
    at, full = 0, 0xFFFFFFFF
    while at + 4 <= len(extra):
        tag, length = struct.unpack_from("<HH", extra, at)
        if tag == 1:
            numbers = iter(struct.unpack_from(f"<{length // 8}Q", extra, at + 4))
            size = next(numbers, size) if size == full else size
            packed = next(numbers, packed) if packed == full else packed
            place = next(numbers, place) if place == full else place
        at += 4 + length
    return packed, size, place


def _name(raw: bytes, where: str) -> str:
    """A name that stays inside the archive."""
    try:
        name = raw.decode()
    except UnicodeDecodeError as error:
        raise BadData(f"{where}: an entry of the archive has a name that is no text ({raw[:80]!r}).") from error
    parts = name.split("/")
    if not name or "\\" in name or "\0" in name or ":" in parts[0] or ".." in parts or name.startswith("/"):
        raise BadData(f"{where}: an entry of the archive is named {name[:200]!r}, which leads out of it.")
    return name


def _require_order(content: mmap.mmap, members: list[Member], where: str) -> None:
    """Raise `BadData` unless every entry lies before the next and has the header that the directory promises."""
    _, _, begin, _ = _end(content, where)
    after = 0
    for member in sorted(members, key=lambda member: member.at):
        name_length, extra_length = struct.unpack_from("<HH", content, member.at + 26) if member.at < begin else (0, 0)
        data = member.at + 30 + name_length + extra_length
        named = content[member.at + 30 : member.at + 30 + name_length]
        if content[member.at : member.at + 4] != _LOCAL or named != member.name.encode():
            raise BadData(f"{where}: {member.name!r} is not where the archive's directory says. Take another copy.")
        if member.at < after or data + member.packed > begin:
            raise BadData(f"{where}: {member.name!r} overlaps another entry of the archive. Take another copy of it.")
        after = data + member.packed
