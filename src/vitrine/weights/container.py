"""Tensors and facts in one safetensors file that notices every flipped bit.

The layout is safetensors' own, so any reader of that format opens it: an eight-byte length, a JSON header,
the tensors' bytes. Header metadata has two entries: `vitrine`, the facts as JSON, and `sha256`.

Definition of the hash: take the whole file with the 64 digits of `sha256` replaced by the character 0; cut
it into chunks of 4 MiB, the last one shorter; take the SHA-256 of each; `sha256` is the SHA-256 of those
32-byte digests joined in order. The chunks can be hashed on all cores. Keys and tensors are written in a
fixed order, so equal content gives equal bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import mmap
import os
import struct
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vitrine.errors import BadData
from vitrine.files import read_error, whole

CHUNK = 4 << 20
MARK = b'"sha256":"'
DIGITS = 64
MAX_HEADER = 32 << 20

DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


def write(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Write `tensors` and `facts` (anything JSON holds) to `path`, whole or not at all.

    Raises `DiskError` or `CannotCreate`, or `BadData` for a tensor of a type that the file cannot hold; what
    stood at `path` before is then still there.
    """
    for name, tensor in tensors.items():
        if tensor.dtype not in DTYPES:
            kinds = ", ".join(str(kind).removeprefix("torch.") for kind in DTYPES)
            raise BadData(f"{path}: {name} is of type {tensor.dtype}, which the file cannot hold. It holds {kinds}.")
    # Wider types first: every tensor then begins at a multiple of its item size.
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))
    with whole(path) as file:
        file.write(_header(ordered, facts))
        for _, tensor in ordered:
            flat = tensor.detach().to("cpu").contiguous().reshape(-1).view(torch.uint8)
            file.write(flat.numpy().data)
        file.flush()
        with _mapped(file, path) as content:
            at = _digits_at(content, path)
            digest = _digest(content, at)
        file.seek(at)
        file.write(digest)


def _header(ordered: list[tuple[str, Tensor]], facts: Mapping[str, Any]) -> bytes:
    entries: dict[str, Any] = {
        "__metadata__": {
            "sha256": "0" * DIGITS,
            "vitrine": json.dumps(facts, sort_keys=True, allow_nan=False),
        }
    }
    offset = 0
    for name, tensor in ordered:
        end = offset + tensor.numel() * tensor.element_size()
        entries[name] = {
            "dtype": DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def read(path: Path, device: str | torch.device = "cpu") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and facts of a file that `write` made, after its hash was checked.

    Raises `BadData` naming the file where a single bit is off, or `NotFound`.
    """
    facts = read_facts(path)
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            return {name: file.get_tensor(name) for name in file.keys()}, facts  # noqa: SIM118 - not a dict
    except SafetensorError as error:
        raise BadData(f"{path}: not a readable safetensors file ({error}). Take another copy of it.") from error


def read_facts(path: Path) -> dict[str, Any]:
    """The facts alone; the hash of the whole file is checked all the same."""
    try:
        with path.open("rb") as file, _mapped(file, path) as content:
            metadata = _metadata(content, path)
            at = _digits_at(content, path)
            if content[at : at + DIGITS] != _digest(content, at):
                raise BadData(
                    f"{path}: the file is damaged: its content does not match its own SHA-256. Take another copy."
                )
    except OSError as error:
        raise read_error(error, path) from error
    try:
        facts = json.loads(metadata["vitrine"])
    except (ValueError, TypeError) as error:
        raise BadData(f"{path}: a safetensors file, but not one that Vitrine wrote.") from error
    if not isinstance(facts, dict):
        raise BadData(f"{path}: a safetensors file, but not one that Vitrine wrote.")
    return facts


def _metadata(content: mmap.mmap, path: Path) -> dict[str, str]:
    """The header's metadata, its length checked before anything is parsed."""
    size = len(content)
    length = struct.unpack("<Q", content[:8])[0] if size >= 8 else 0
    if not 2 <= length <= min(MAX_HEADER, size - 8):
        raise BadData(f"{path}: not a safetensors file, or cut off ({size:,} bytes). Take another copy of it.")
    try:
        metadata = json.loads(content[8 : 8 + length]).get("__metadata__", {})
    except (ValueError, AttributeError, RecursionError) as error:
        raise BadData(f"{path}: not a safetensors file, or damaged in its header. Take another copy of it.") from error
    if not isinstance(metadata, dict) or "vitrine" not in metadata:
        raise BadData(f"{path}: a safetensors file, but not one that Vitrine wrote.")
    return metadata


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


@contextlib.contextmanager
def _mapped(file: BinaryIO, path: Path) -> Iterator[mmap.mmap]:
    """A read-only view of a file's bytes, closed at the end of the block."""
    if os.fstat(file.fileno()).st_size == 0:
        raise BadData(f"{path}: the file is empty. Take another copy of it.")
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        yield content
