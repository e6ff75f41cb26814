"""The index of shards that `vitrine shards` wrote: all that is known of each picture, in one compact file beside them.

The file is safetensors' layout (eight bytes with the length of a JSON header, the header, the arrays), so any reader of
that format shows it. `sha256` in its metadata is that of the whole file with those 64 digits replaced by zeros.
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64, Shaped, UInt8

from vitrine.data.packed import Digests, Known, Names
from vitrine.data.tar import BLOCK, FILE, header_at
from vitrine.data.tarred import Descriptor, Tarred
from vitrine.errors import BadData
from vitrine.files import read_error, whole

INDEX_FILE = "index.safetensors"
FORMAT = 1
PARTS = ("", "train", "val", "test")

MOST_HEADER = 8 << 20
DTYPES: dict[str, np.dtype[Any]] = {
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "U32": np.dtype("<u4"),
    "U8": np.dtype("u1"),
}
_MARK = b'"sha256":"'
_REMEDY = "Take another copy of the folder, or remove the index: the shards are then read without it."


@dataclass(frozen=True, kw_only=True)
class File:
    """One shard: its name in the folder, its bytes, and their SHA-256."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True, eq=False)
class Index:
    """What the index of a folder of shards tells, as `data.sources.Source` wants it."""

    class_names: tuple[str, ...]
    labels: Int64[np.ndarray, " n"] | UInt8[np.ndarray, "n K"]
    ids: Names
    given: Shaped[np.ndarray, " n"]
    packed: Tarred
    known: Known


def has_index(folder: Path) -> bool:
    """Whether shards of ours lie there."""
    return (folder / INDEX_FILE).is_file()


def write_index(folder: Path, index: Index, files: list[File], origin: Mapping[str, Any]) -> None:
    """Write what is known of the shards in `folder`; `origin` says how they were made."""
    sums = index.packed.sums
    assert sums is not None
    arrays = {
        "offsets": index.packed.offsets.astype("<i8"),
        "name_ends": index.ids.ends.astype("<i8"),
        "lengths": index.packed.lengths.astype("<i8"),
        "sizes": index.known.sizes.astype("<i4"),
        "file": index.packed.file.astype("<i4"),
        "labels": index.labels.astype("u1" if index.labels.ndim == 2 else "<i4"),
        "sums": sums.astype("<u4"),
        "hashes": index.known.hashes.table,
        "names": index.ids.text,
        "parts": sum((index.given == part) * number for number, part in enumerate(PARTS)).astype("u1"),
    }
    facts = {
        "class_names": list(index.class_names), "files": [vars(file) for file in files], "format": FORMAT,
        "fingerprint": index.known.fingerprint, "grey": index.known.grey, "origin": dict(origin),
    }  # fmt: skip
    header, at = _laid_out(arrays, facts)
    digest = hashlib.sha256(header)
    for array in arrays.values():
        digest.update(np.ascontiguousarray(array).data)
    with whole(folder / INDEX_FILE) as file:
        file.write(header[:at] + digest.hexdigest().encode() + header[at + 64 :])
        for array in arrays.values():
            file.write(np.ascontiguousarray(array).data)


def _laid_out(arrays: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> tuple[bytes, int]:
    """The header with a hash of zeros, and where its digits stand. Wider types come first, so all are aligned."""
    kinds = {dtype: name for name, dtype in DTYPES.items()}
    metadata = {"sha256": "0" * 64, "vitrine_shards": json.dumps(facts, sort_keys=True)}
    parts: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name, array in arrays.items():
        begin, end = end, end + array.nbytes
        parts[name] = {"dtype": kinds[array.dtype], "shape": list(array.shape), "data_offsets": [begin, end]}
    text = json.dumps(parts, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text, 8 + text.index(_MARK) + len(_MARK)


def open_index(folder: Path) -> Index:
    """What is known of the shards in `folder`, held against their files.

    Raises `BadData` for an index that is damaged, that belongs to other shards, or that says what cannot be: places
    outside of a file or on top of each other, labels without a class.
    """
    path = folder / INDEX_FILE
    try:
        with path.open("rb") as file:
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except ValueError as error:
        raise BadData(f"{path}: is empty. {_REMEDY}") from error
    except OSError as error:
        raise read_error(error, path) from error
    try:
        arrays, facts = _read(content)
        return _checked(folder, arrays, facts)
    except (KeyError, TypeError, ValueError, RecursionError, UnicodeError) as error:
        raise BadData(
            f"{path}: is damaged or no index of shards ({' '.join(str(error).split())}). {_REMEDY}"
        ) from error


def _read(content: mmap.mmap) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays and the facts; the whole file is held against its own hash first."""
    length = struct.unpack("<Q", content[:8].ljust(8, b"\0"))[0]
    if not 2 <= length <= min(len(content) - 8, MOST_HEADER):
        raise ValueError("its header has no length that can be")
    begin = 8 + length
    at = content.find(_MARK, 8, begin) + len(_MARK)
    digest = hashlib.sha256(content[:at] + b"0" * 64)
    digest.update(memoryview(content)[at + 64 :])
    if content[at : at + 64] != digest.hexdigest().encode():
        raise ValueError("its content does not match its own SHA-256")
    header = json.loads(content[8:begin])
    facts = json.loads(header.pop("__metadata__")["vitrine_shards"])
    arrays, end = {}, begin
    for name, entry in header.items():
        dtype, shape, (first, last) = DTYPES[entry["dtype"]], tuple(entry["shape"]), entry["data_offsets"]
        if begin + first != end or math.prod(shape) * dtype.itemsize != last - first or min(shape, default=0) < 0:
            raise ValueError(f"{name} does not fill its bytes")
        end = begin + last
        arrays[name] = np.frombuffer(content, dtype, math.prod(shape), begin + first).reshape(shape)
    if end != len(content):
        raise ValueError("the file is not as long as its header says")
    return arrays, facts


def _checked(folder: Path, arrays: dict[str, np.ndarray], facts: dict[str, Any]) -> Index:
    if facts["format"] != FORMAT:
        raise BadData(f"{folder / INDEX_FILE}: is of format {facts['format']!r}; this version reads {FORMAT}. Update.")
    names = tuple(facts["class_names"])
    if not all(isinstance(name, str) for name in names) or len(set(names)) < len(names):
        raise ValueError("its class names are not all different texts")
    n = len(arrays["offsets"])
    shapes = {
        "offsets": (n,), "name_ends": (n,), "lengths": (n,), "sizes": (n, 2), "file": (n,), "sums": (n,),
        "hashes": (n, 32), "parts": (n,), "names": arrays["names"].shape[:1],
        "labels": (n, len(names)) if arrays["labels"].ndim == 2 else (n,),
    }  # fmt: skip
    wrong = [name for name, shape in shapes.items() if arrays[name].shape != shape]
    if wrong or not n or arrays["names"].dtype != np.uint8 or arrays["hashes"].dtype != np.uint8:
        raise ValueError(f"{', '.join(wrong) or 'an array'} is of another shape than the pictures")
    labels, ends = arrays["labels"], arrays["name_ends"]
    most = 1 if labels.ndim == 2 else len(names) - 1
    ordered = bool((np.diff(ends, prepend=0) >= 0).all()) and int(ends[-1]) == len(arrays["names"])
    for fine, what in (
        (labels.min() >= 0 and labels.max() <= most, "a label has no class"),
        (ordered, "its names do not follow each other"),
        (arrays["parts"].max() < len(PARTS), "a part has no name"),
        (arrays["sizes"].min() >= 1, "a picture has no size"),
        (isinstance(facts["fingerprint"], str) and isinstance(facts["grey"], bool), "its facts are none"),
    ):
        if not fine:
            raise ValueError(what)
    return Index(
        class_names=names,
        labels=np.array(labels, np.uint8 if labels.ndim == 2 else np.int64),
        ids=Names(arrays["names"], ends),
        given=np.array(PARTS)[arrays["parts"]],
        packed=_packed(folder, arrays, [File(**file) for file in facts["files"]]),
        known=Known(
            sizes=arrays["sizes"].astype(np.int64),
            grey=facts["grey"],
            hashes=Digests(arrays["hashes"]),
            fingerprint=facts["fingerprint"],
        ),
    )


def _packed(folder: Path, arrays: dict[str, np.ndarray], files: list[File]) -> Tarred:
    """The places of the pictures, held against the files that are there."""
    file, offsets, lengths = arrays["file"], arrays["offsets"], arrays["lengths"]
    far = max(offsets.max(), lengths.max()) >= 1 << 60  # sums of them could overflow
    if far or offsets.min() < BLOCK or lengths.min() < 1 or file.min() < 0 or file.max() >= len(files):
        raise ValueError("a picture has no place")
    if any(not isinstance(one.name, str) or Path(one.name).name != one.name for one in files):
        raise ValueError("a shard has a name that leads elsewhere")
    order = np.lexsort((offsets, file))
    inside = file[order][1:] == file[order][:-1]
    if (inside & (offsets[order][1:] < (offsets + lengths)[order][:-1] + BLOCK)).any():
        raise ValueError("two pictures lie on top of each other")
    begins = np.searchsorted(file[order], np.arange(len(files) + 1))
    for number, one in enumerate(files):
        path = folder / one.name
        there = path.stat().st_size if path.is_file() else -1
        if there != one.bytes:
            raise BadData(
                f"{path}: {'is missing' if there < 0 else f'has {there:,} bytes'}, and {INDEX_FILE} was written for "
                f"{one.bytes:,}. {_REMEDY}"
            )
        mine = order[begins[number] : begins[number + 1]]
        if len(mine) and int(offsets[mine[-1]]) + int(lengths[mine[-1]]) > there:
            raise ValueError(f"a picture lies behind the end of {one.name}")
        reader = Descriptor(path)
        for i in mine[[0, -1]] if len(mine) else ():
            found = header_at(reader.at(int(offsets[i]) - BLOCK, BLOCK), path, int(offsets[i]) - BLOCK)
            if found.size != lengths[i] or found.kind != FILE:
                raise BadData(f"{path}: another member stands where {INDEX_FILE} tells of a picture. {_REMEDY}")
    return Tarred(
        files=tuple(folder / one.name for one in files),
        file=file,
        offsets=offsets,
        lengths=lengths,
        sums=arrays["sums"],
    )
