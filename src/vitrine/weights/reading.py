"""A path to a stranger's tensors: a file or a folder to `Raw`, told by its first bytes and never by its name.

safetensors files are checked and mapped here. Archives, which need unpacking, go to the process of
`quarantine.py` after their directory was checked. Everything else is refused with what it is.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from vitrine.errors import BadData, NotFound, UsageError
from vitrine.files import read_error
from vitrine.weights.archive import STORED, Member, directory
from vitrine.weights.foreign import Raw
from vitrine.weights.header import MAX_HEADER, mapped, read_header, strict_json, tensors_of
from vitrine.weights.quarantine import unpack

MAX_SHARDS = 200

STANDARD = (
    "model.safetensors", "model.safetensors.index.json", "open_clip_model.safetensors",
    "pytorch_model.bin", "open_clip_pytorch_model.bin",
)  # fmt: skip
"""Names of the weights in a folder, in the order of preference: what runs no code comes first."""

OTHERS = (".safetensors", ".npz", ".pth", ".pt", ".bin", ".pth.tar")
FACTS = ("config.json", "open_clip_config.json", "preprocessor_config.json")

PREFIXES = ("module.", "_orig_mod.")
"""Put before every name by torch's data-parallel wrappers and by its compiler."""

_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_STRANGERS = {
    b"\x89HDF\r\n\x1a\n": "an HDF5 file, as Keras writes it. Convert it to safetensors or .npz",
    b"\x93NUMPY": "a single array of numpy's, where a table of tensors by name is needed (.npz)",
    b"GGUF": "a GGUF file, which holds quantised weights",
    b"\x1f\x8b": "compressed by gzip. Unpack it first",
    b"BZh": "compressed by bzip2. Unpack it first",
    b"\xfd7zXZ\0": "compressed by xz. Unpack it first",
    b"version https://git-lfs": "a pointer of Git LFS, not the file itself. Fetch it with `git lfs pull`",
}
_PAGE = re.compile(rb"\s*<(!doctype|html|\?xml)", re.IGNORECASE)


def read_raw(path: str | Path, given: Mapping[str, Any] | None = None, *, entry: str = "") -> Raw:
    """The tensors and facts at `path`, a file or a folder, as they are there; `given` is handed on.

    Where a training file holds several tables of weights the plain one is taken, not the running average, unless
    `entry` names another, such as `model_ema`. Raises `NotFound`, `DiskError`, or `BadData` with the reason.
    """
    place = Path(path)
    given = given or {}
    try:
        mode = place.stat().st_mode
    except OSError as error:
        raise read_error(error, place) from error
    except ValueError as error:
        raise NotFound(f"{str(path)!r}: no path can be so ({error}).") from error
    if stat.S_ISDIR(mode):
        name = choose(
            [child.name if child.is_file() else f"{child.name}/" for child in sorted(place.iterdir())], str(place)
        )
        return _in_folder(place, name, given, entry, str(path))
    if place.name in STANDARD:
        return _in_folder(place.parent, place.name, given, entry, str(path))
    return _single(place, given, entry, str(path))


def choose(names: list[str], where: str) -> str:
    """The file among `names` that holds the weights. Raises `NotFound`, or `UsageError` where several might."""
    for name in STANDARD:
        if name in names:
            return name
    found = [name for name in names if name.endswith(OTHERS) and not name.startswith(".")]
    if not found:
        seen = ", ".join(names[:8]) or "nothing"
        raise NotFound(f"{where}: there are no weights here. It has {seen}; wanted is {STANDARD[0]} "
                       f"or one file ending in {', '.join(OTHERS)}.")  # fmt: skip
    if len(found) > 1:
        raise UsageError(f"{where}: several files hold weights: {', '.join(found[:8])}. Name one of them.")
    return found[0]


def _in_folder(folder: Path, name: str, given: Mapping[str, Any], entry: str, told: str) -> Raw:
    """The weights `name` of a folder, with the facts beside them."""
    if name.endswith(".index.json"):
        if entry:
            raise no_parts(entry, told)
        tensors, metadata = _shards(folder, name)
        raw = Raw(path=told, kind="safetensors", tensors=tensors, metadata=metadata, given=given)
    else:
        raw = _single(folder / name, given, entry, told)
    there = [fact for fact in FACTS if (folder / fact).is_file()]
    # open_clip writes its own config beside weights of its own name; a transformers config may lie there too.
    if name.startswith("open_clip") and "open_clip_config.json" in there and "config.json" in there:
        there.remove("config.json")
    facts = {fact: _facts(folder / fact) for fact in there}
    config = facts.get("config.json") or facts.get("open_clip_config.json") or {}
    return replace(raw, config=config, preprocessor=facts.get("preprocessor_config.json", {}))


def _facts(path: Path) -> dict[str, Any]:
    """The JSON object in a small file."""
    with opened(path) as content:
        return strict_json(content[: MAX_HEADER + 1], str(path))


def _shards(folder: Path, name: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a model cut into several safetensors files, which the index names."""
    index = folder / name
    table = _facts(index).get("weight_map")
    if not isinstance(table, dict) or not all(isinstance(shard, str) for shard in table.values()):
        raise BadData(f"{index}: it has no weight_map of file names. Take another copy of it.")
    shards = sorted(set(table.values()))
    if len(shards) > MAX_SHARDS:
        raise BadData(f"{index}: it names {len(shards):,} files; at most {MAX_SHARDS} are read.")
    tensors: dict[str, Tensor] = {}
    metadata: dict[str, str] = {}
    for shard in shards:
        if not re.fullmatch(r"[\w][\w.\-]*\.safetensors", shard):
            raise BadData(f"{index}: it names {shard[:200]!r}, which is no safetensors file of this folder.")
        found, texts = _safetensors(folder / shard)
        metadata |= texts
        wanted = {tensor for tensor, place in table.items() if place == shard}
        if wanted != found.keys():
            wrong = ", ".join(sorted(wanted ^ found.keys())[:8])
            raise BadData(f"{folder / shard}: it does not hold the tensors that {name} says: {wrong}.")
        tensors |= found
    return tensors, metadata


def _single(path: Path, given: Mapping[str, Any], entry: str, told: str) -> Raw:
    """One file, told by its first bytes."""
    with opened(path) as content:
        kind = _kind(content, path)
        if entry and kind != "torch":
            raise no_parts(entry, told)
        if kind == "safetensors":
            header = read_header(content, str(path))
            tensors, prefix = _bare(tensors_of(content, header))
            return Raw(
                path=told, kind=kind, tensors=tensors, metadata=header.metadata, given=given, said=_told(prefix)
            )  # fmt: skip
    found = unpack(path, kind, entry)
    tensors, prefix = _bare(found.tensors)
    return Raw(
        path=told, kind=kind, tensors=tensors, metadata=found.texts, given=given, wrapper=found.entry,
        said=found.said + _told(prefix),
    )  # fmt: skip


def no_parts(entry: str, told: str) -> UsageError:
    """The error for an `entry` that is asked of a file other than torch's, which alone have several."""
    return UsageError(f"--entry {entry}: {told} has no parts, as training files of torch do. Leave --entry out.")


def _bare(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """The tensors without what a wrapper has put before all their names, and what that was."""
    prefix = ""
    while cut := next((word for word in PREFIXES if tensors and all(name.startswith(word) for name in tensors)), ""):
        tensors = {name.removeprefix(cut): tensor for name, tensor in tensors.items()}
        prefix += cut
    return dict(tensors), prefix


def _told(prefix: str) -> tuple[str, ...]:
    return (f"names: {prefix!r} taken from the beginning of each",) if prefix else ()


def _safetensors(path: Path) -> tuple[dict[str, Tensor], Mapping[str, str]]:
    with opened(path) as content:
        header = read_header(content, str(path))
        return tensors_of(content, header), header.metadata


@contextlib.contextmanager
def opened(path: Path) -> Iterator[mmap.mmap]:
    """The bytes of a regular file, mapped. A pipe or a device is refused and not waited for.

    Raises `NotFound`, `DiskError`, or `BadData` for what is no file or empty.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise BadData(f"{path}: is no regular file (a pipe, a device or a socket). Give a file.")
            yield mapped(file, str(path))
    except OSError as error:
        raise read_error(error, path) from error


def _kind(content: mmap.mmap, path: Path) -> Literal["npz", "safetensors", "torch"]:
    """What the file is, by its first bytes. Raises `BadData` for what is not read, saying what it is."""
    start = content[:64]
    if start[:4] in (b"PK\x03\x04", b"PK\x05\x06"):
        return _kind_of_zip(directory(content, str(path)), path)
    if start.startswith(_LEGACY):
        return "torch"
    if start[:1] == b"\x80" and start[5:9] != b"\0\0\0{":  # or the length of a safetensors header, 0x80 its low byte
        raise BadData(f"{path}: not read: it is a stream of Python objects, which only running it could read. "
                      "Save the tensors alone, as safetensors.")  # fmt: skip
    if start[8:9] == b"{":
        return "safetensors"
    if _PAGE.match(start):
        raise BadData(f"{path}: not read: it is a web page, not a weight file. Download the file itself.")
    for magic, what in _STRANGERS.items():
        if start.startswith(magic):
            raise BadData(f"{path}: not read: it is {what}.")
    raise BadData(f"{path}: not a safetensors file, nor numpy's .npz, nor a file of torch.save ({len(content):,} "
                  f"bytes, beginning {start[:8]!r}). Take another copy of it, or another file.")  # fmt: skip


def _kind_of_zip(members: list[Member], path: Path) -> Literal["npz", "torch"]:
    names = [member.name for member in members]
    if names and all(name.endswith(".npy") for name in names):
        return "npz"
    if sum(name.endswith("/data.pkl") or name == "data.pkl" for name in names) == 1:
        # A TorchScript program has compressed code beside its weights, which is left alone.
        packed = next((one.name for one in members if one.method != STORED and "/code/" not in one.name), None)
        if packed:
            raise BadData(f"{path}: {packed!r} is compressed, which torch never does. Take another copy of it.")
        return "torch"
    raise BadData(f"{path}: not read: a zip archive, but neither numpy's .npz nor of torch.save. It holds "
                  f"{', '.join(names[:6]) or 'nothing'}.")  # fmt: skip
