"""Tensors and facts in one safetensors file that notices every flipped bit.

The layout is safetensors' own, so any reader of that format opens it: an eight-byte length, a JSON header,
the tensors' bytes. Header metadata has two entries: `vitrine`, the facts as JSON, and `sha256`.

Definition of the hash: take the whole file with the 64 digits of `sha256` replaced by the character 0; cut
it into chunks of 4 MiB, the last one shorter; take the SHA-256 of each; `sha256` is the SHA-256 of those
32-byte digests joined in order. The chunks can be hashed on all cores. Keys and tensors are written in a
fixed order, so equal content gives equal bytes.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import struct
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vitrine.errors import BadData
from vitrine.files import read_error, whole
from vitrine.weights.header import (
    DTYPES,
    Header,
    bytes_of,
    in_order,
    laid_out,
    mapped,
    read_header,
    strict_json,
    tensors_of,
)

__all__ = ["CHUNK", "DIGITS", "DTYPES", "MARK", "is_ours", "read", "read_facts", "write"]

CHUNK = 4 << 20
MARK = b'"sha256":"'
DIGITS = 64
MAX_HEADER = 16 << 20


def write(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Write `tensors` and `facts` (anything JSON holds) to `path`, whole or not at all.

    Raises `DiskError`, with the bytes needed and free, or `CannotCreate`, or `BadData` for a tensor of a type that the
    file cannot hold; what stood at `path` before is then still there.
    """
    ordered = in_order(tensors)
    metadata = {"sha256": "0" * DIGITS, "vitrine": json.dumps(facts, sort_keys=True, allow_nan=False)}
    header = laid_out(ordered, metadata, str(path))
    with whole(path, len(header) + sum(tensor.numel() * tensor.element_size() for _, tensor in ordered)) as file:
        file.write(header)
        for _, tensor in ordered:
            file.write(bytes_of(tensor))
        file.flush()
        with mapped(file, str(path)) as content:
            at = _digits_at(content, path)
            digest = _digest(content, at)
        file.seek(at)
        file.write(digest)


def is_ours(path: Path) -> bool:
    """Whether a file begins as those that `write` makes, be it damaged in a bit."""
    try:
        with path.open("rb") as file:
            start = file.read(256)
    except OSError as error:
        raise read_error(error, path) from error
    return MARK in start or b'"vitrine":"' in start


def read(path: Path, device: str | torch.device = "cpu") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and facts of a file that `write` made, after its hash was checked. The tensors are mapped, not copied.

    Raises `BadData` naming the file where a single bit is off, or `NotFound`.
    """
    try:
        with path.open("rb") as file:
            content = mapped(file, str(path))
    except OSError as error:
        raise read_error(error, path) from error
    header, facts = _checked(content, path)
    return {name: tensor.to(device) for name, tensor in tensors_of(content, header).items()}, facts


def read_facts(path: Path) -> dict[str, Any]:
    """The facts alone; the hash of the whole file is checked all the same."""
    try:
        with path.open("rb") as file, mapped(file, str(path)) as content:
            return _checked(content, path)[1]
    except OSError as error:
        raise read_error(error, path) from error


def _checked(content: mmap.mmap, path: Path) -> tuple[Header, dict[str, Any]]:
    """The header and the facts, once both and the hash were found to be whole."""
    header = read_header(content, str(path), MAX_HEADER)
    if "vitrine" not in header.metadata:
        raise BadData(f"{path}: a safetensors file, but not one that Vitrine wrote.")
    at = _digits_at(content, path)
    if content[at : at + DIGITS] != _digest(content, at):
        raise BadData(f"{path}: the file is damaged: its content does not match its own SHA-256. Take another copy.")
    try:
        return header, strict_json(header.metadata["vitrine"].encode(), "facts", MAX_HEADER)
    except (BadData, UnicodeEncodeError) as error:
        raise BadData(f"{path}: a safetensors file, but not one that Vitrine wrote.") from error


def _digits_at(content: mmap.mmap, path: Path) -> int:
    """Where the digits of the hash begin. A quote inside a JSON string is escaped, so the mark is unique."""
    end = 8 + struct.unpack("<Q", content[:8])[0]
    at = content.find(MARK, 8, end)
    if at < 0 or content.find(MARK, at + 1, end) >= 0 or at + len(MARK) + DIGITS > end:
        raise BadData(f"{path}: the header is damaged: it must hold one sha256. Take another copy of the file.")
    return at + len(MARK)


def _digest(content: mmap.mmap, at: int) -> bytes:
    """The hash defined above, as 64 hexadecimal digits."""
    view = memoryview(content)

    def chunk(start: int) -> bytes:
        piece = view[start : start + CHUNK]
        low, high = max(at, start), min(at + DIGITS, start + CHUNK)
        if low >= high:
            return hashlib.sha256(piece).digest()
        blanked = bytearray(piece)
        blanked[low - start : high - start] = b"0" * (high - low)
        return hashlib.sha256(blanked).digest()

    starts = range(0, len(view), CHUNK)
    try:
        if len(starts) < 2:
            return hashlib.sha256(b"".join(map(chunk, starts))).hexdigest().encode()
        with ThreadPoolExecutor(min(len(starts), os.cpu_count() or 1)) as pool:
            return hashlib.sha256(b"".join(pool.map(chunk, starts))).hexdigest().encode()
    finally:
        view.release()
