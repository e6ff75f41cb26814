"""The beginning of a safetensors file, checked before anything is allocated for it, and written.

The layout: eight bytes with the length of a JSON header, the header, and the tensors' bytes. The header names for
each tensor its type, shape and first and last byte (https://github.com/huggingface/safetensors, "Format").
A hostile header is refused by its size and its number of parts before it is parsed: parsed JSON takes many times
the memory of its text.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import IO, Any, NoReturn

import torch
from torch import Tensor

from vitrine.errors import BadData

MAX_HEADER = 4 << 20
MAX_DIMS = 16

DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
TORCH = {name: dtype for dtype, name in DTYPES.items()}

# How often a sign may stand in JSON that is parsed: each stands for an object of its own in memory.
SIGNS = {b"{": 60_000, b"[": 200_000, b",": 600_000}


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One tensor of a file: its type, its shape, and where its bytes begin and end in the file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True, kw_only=True)
class Header:
    """What a safetensors file says of itself: an entry a tensor, and free text by name."""

    entries: Mapping[str, Entry]
    metadata: Mapping[str, str]


def strict_json(data: bytes, what: str, most: int = MAX_HEADER) -> dict[str, Any]:
    """The object in JSON `data`. `what` names it in errors.

    Raises `BadData` for more than `most` bytes or more parts than any weight file has, for what is no JSON object
    in UTF-8, for a name given twice, and for numbers that JSON does not have.
    """
    if len(data) > most:
        raise BadData(f"{what} has {len(data):,} bytes; at most {most:,} are read. Take another copy of it.")
    for sign, limit in SIGNS.items():
        if data.count(sign) > limit:
            raise BadData(f"{what} has more than {limit:,} parts; no weight file has. Take another copy of it.")
    try:
        value = json.loads(data.decode(), object_pairs_hook=_once, parse_constant=_no_number)
    except RecursionError as error:
        raise BadData(f"{what} is nested too deeply. Take another copy of it.") from error
    except ValueError as error:
        raise BadData(f"{what} is not JSON that can be read ({error}). Take another copy of it.") from error
    if not isinstance(value, dict):
        raise BadData(f"{what} is no JSON object. Take another copy of it.")
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in made if names.count(name) > 1)
        raise ValueError(f"the name {twice[:80]!r} stands twice")
    return made


def _no_number(word: str) -> NoReturn:
    raise ValueError(f"{word} is no number of JSON")


def read_header(content: bytes | mmap.mmap, where: str, most: int = MAX_HEADER) -> Header:
    """The header of the safetensors file whose bytes are `content`, wholly checked.

    Raises `BadData` unless every tensor has a known type, a shape that fills its bytes, and bytes that follow those
    of the tensor before it without a gap up to the end of the file.
    """
    size = len(content)
    length = struct.unpack("<Q", content[:8])[0] if size >= 8 else 0
    if not 2 <= length <= size - 8:
        raise BadData(f"{where}: not a safetensors file, or cut off ({size:,} bytes). Take another copy of it.")
    if length > most:
        raise BadData(
            f"{where}: not a safetensors file that is read: its header has {length:,} bytes, at most {most:,} may be."
        )
    parsed = strict_json(content[8 : 8 + length], f"{where}: the header", most)
    metadata = parsed.pop("__metadata__", {})
    if not isinstance(metadata, dict) or any(not isinstance(value, str) for value in metadata.values()):
        raise BadData(f"{where}: the __metadata__ of its header is no table of texts. Take another copy of it.")
    start = 8 + length
    entries = {name: _entry(f"{where}: {name[:200]}", value, start) for name, value in parsed.items()}
    at = start
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != at:
            fault = "overlaps the one before it" if entry.begin < at else "leaves a gap before it"
            raise BadData(f"{where}: {name[:200]} {fault} (byte {entry.begin:,}, not {at:,}). Take another copy of it.")
        at = entry.end
    if at != size:
        fault = "cut off" if at > size else "longer than its header says"
        raise BadData(f"{where}: the file is {fault} ({size:,} bytes, not {at:,}). Take another copy of it.")
    return Header(entries=entries, metadata=metadata)


def _entry(what: str, value: object, start: int) -> Entry:
    """One entry of a header, its shape held against its bytes."""
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise BadData(f"{what} has not exactly dtype, shape and data_offsets in the header. Take another copy of it.")
    kind, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(kind, str) or kind not in TORCH:
        raise BadData(f"{what} is of type {str(kind)[:80]}, which is not read. Those that are: {', '.join(TORCH)}.")
    if not _counts(shape) or len(shape) > MAX_DIMS or not _counts(offsets) or len(offsets) != 2:
        raise BadData(f"{what} has no shape and offsets that a tensor can have. Take another copy of it.")
    dtype = TORCH[kind]
    begin, end = offsets
    if math.prod(shape) * dtype.itemsize != end - begin:
        raise BadData(f"{what} of shape {tuple(shape)} does not fill its {end - begin:,} bytes. Take another copy.")
    return Entry(dtype=dtype, shape=tuple(shape), begin=start + begin, end=start + end)


def _counts(value: object) -> bool:
    """Whether `value` is a list of numbers from 0 up that fit in 63 bits."""
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 2**63 for n in value)


def mapped(file: IO[bytes], where: str) -> mmap.mmap:
    """The bytes of an open file without reading them: pages come in when they are used.

    The view is private: what is written to it never reaches the file. Raises `BadData` for an empty file.
    """
    if os.fstat(file.fileno()).st_size == 0:
        raise BadData(f"{where}: the file is empty. Take another copy of it.")
    return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)


def tensors_of(content: mmap.mmap, header: Header) -> dict[str, Tensor]:
    """The tensors in `content`, none of them copied (but where the file has them at odd places)."""
    return {name: _tensor(content, entry) for name, entry in header.entries.items()}


def _tensor(content: mmap.mmap, entry: Entry) -> Tensor:
    length = entry.end - entry.begin
    if length == 0:
        return torch.empty(entry.shape, dtype=entry.dtype)
    if entry.begin % entry.dtype.itemsize:
        odd = torch.frombuffer(content, dtype=torch.uint8, count=length, offset=entry.begin)
        return odd.clone().view(entry.dtype).reshape(entry.shape)
    count = length // entry.dtype.itemsize
    return torch.frombuffer(content, dtype=entry.dtype, count=count, offset=entry.begin).reshape(entry.shape)


def in_order(tensors: Mapping[str, Tensor]) -> list[tuple[str, Tensor]]:
    """The tensors as they are laid out in a file: wider types first, so that each begins at a multiple of its size."""
    return sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))


def laid_out(ordered: Iterable[tuple[str, Tensor]], metadata: Mapping[str, str], where: str) -> bytes:
    """Length and header of a file with these tensors one after another. Raises `BadData` for a type it cannot hold."""
    entries: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for name, tensor in ordered:
        if tensor.dtype not in DTYPES:
            kinds = ", ".join(str(kind).removeprefix("torch.") for kind in DTYPES)
            raise BadData(f"{where}: {name} is of type {tensor.dtype}, which the file cannot hold. It holds {kinds}.")
        end = offset + tensor.numel() * tensor.element_size()
        entries[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def bytes_of(tensor: Tensor) -> memoryview:
    """The numbers of a tensor as they stand in a file."""
    return tensor.detach().to("cpu").contiguous().reshape(-1).view(torch.uint8).numpy().data
