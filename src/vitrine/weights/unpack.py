"""What runs in the child process that reads a stranger's archive: tensors out of it, into a plain safetensors file.

`quarantine.py` starts this file by its path, alone, in an empty folder, with a request as JSON in its argument; the
answer is one line of JSON on stdout. Nothing of Vitrine is imported, and torch only for torch's own files. Here
stands the only `torch.load` of the project, always with `weights_only=True`, which reads tensors and plain values
and refuses whatever would call a function.
"""

from __future__ import annotations

import ast
import contextlib
import errno
import json
import math
import re
import shutil
import struct
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

Array = tuple[str, str, tuple[int, ...], int, Callable[[], memoryview]]
"""A tensor on its way: name, type as safetensors has it, shape, number of bytes, and what gives them."""

NUMPY = {
    "f8": "F64", "f4": "F32", "f2": "F16", "i8": "I64", "i4": "I32", "i2": "I16", "i1": "I8", "u1": "U8", "b1": "BOOL",
    "u2": "I32", "u4": "I64", "V2": "BF16",
}  # fmt: skip
"""Types of numpy and what they are written as; V2 is how JAX's bfloat16 is saved."""

WRAPPERS = (
    "state_dict",
    "model",
    "teacher",
    "module",
    "network",
    "net",
    "params",
    "state_dict_ema",
    "model_ema",
    "ema",
)
"""Entries of training files that hold weights, in the order in which one is taken unless it is named."""

TORCH = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16",
    "int64": "I64", "int32": "I32", "int16": "I16", "int8": "I8", "uint8": "U8", "bool": "BOOL",
}  # fmt: skip
WIDTHS = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}

MAX_NPY_HEADER = 10_000
MAX_TEXT = 4_000
MAX_DEPTH = 3


class RefusedError(Exception):
    """The file is not read; the text says why."""


def limit(memory: int, seconds: int, written: int) -> list[str]:
    """Bound what this process may take from now on; gives what this system cannot bound."""
    try:
        import resource
    except ImportError:
        return ["memory, processor time and processes"]
    missing = []
    try:
        held = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (held + memory, held + memory))
    except (OSError, ValueError):
        missing.append("memory")
    for name, most in (("RLIMIT_CPU", seconds), ("RLIMIT_FSIZE", written), ("RLIMIT_CORE", 0), ("RLIMIT_NPROC", 0)):
        try:
            resource.setrlimit(getattr(resource, name), (most, most))
        except (AttributeError, OSError, ValueError):
            missing.append(name)
    return missing


def from_npz(path: Path) -> tuple[list[Array], dict[str, str]]:
    """The arrays of a .npz and its short texts. Nothing but numbers and texts is read."""
    import numpy as np

    archive = zipfile.ZipFile(path)
    found: list[Array] = []
    texts: dict[str, str] = {}
    for info in archive.infolist():
        name = info.filename.removesuffix(".npy")
        with archive.open(info) as file:
            descr, fortran, shape = npy_header(file, name)
            try:
                kind = np.dtype(descr)
            except (TypeError, ValueError):
                raise RefusedError(f"{name} is of type {descr[:80]!r}, which is not read") from None
            size, at = math.prod(shape) * kind.itemsize, file.tell()
            if size != info.file_size - at:
                raise RefusedError(f"{name} of shape {shape} does not fill its {info.file_size:,} bytes")
            if kind.kind in "US" and size <= MAX_TEXT:
                texts[name] = ", ".join(map(str, np.frombuffer(file.read(), kind).tolist()))[:MAX_TEXT]
                continue
        code = kind.str.lstrip("<>|=")
        if code not in NUMPY:
            raise RefusedError(f"{name} is of type {kind}, which is not read")
        wide = np.dtype({"u2": "<i4", "u4": "<i8"}.get(code, kind.newbyteorder("<")))

        def load(info: Any = info, at: int = at, kind: Any = kind, fortran: bool = fortran, wide: Any = wide,
                 shape: tuple[int, ...] = shape) -> memoryview:  # fmt: skip
            with archive.open(info) as file:
                file.read(at)
                plain = np.frombuffer(file.read(), kind).reshape(shape, order="F" if fortran else "C")
            return np.ascontiguousarray(plain, wide).reshape(-1).view(np.uint8).data

        found.append((name, NUMPY[code], shape, math.prod(shape) * wide.itemsize, load))
    return found, texts


def npy_header(file: Any, name: str) -> tuple[str, bool, tuple[int, ...]]:
    """Type, order and shape at the beginning of a .npy (numpy's NEP 1), leaving the file at its first number."""
    start = file.read(8)
    wide = start[6:7] in (b"\x02", b"\x03")
    if start[:6] != b"\x93NUMPY" or start[6:7] not in (b"\x01", b"\x02", b"\x03"):
        raise RefusedError(f"{name} is no array of numpy's")
    raw = file.read(4 if wide else 2)
    (length,) = struct.unpack("<I" if wide else "<H", raw) if len(raw) == (4 if wide else 2) else (0,)
    if not 0 < length <= MAX_NPY_HEADER:
        raise RefusedError(f"the header of {name} has {length:,} bytes")
    try:
        header = ast.literal_eval(file.read(length).decode("latin1"))
        descr, fortran, shape = header["descr"], header["fortran_order"], header["shape"]
    except (ValueError, SyntaxError, KeyError, TypeError, MemoryError, RecursionError):
        raise RefusedError(f"the header of {name} cannot be read") from None
    fits = isinstance(shape, tuple) and len(shape) <= 16 and all(type(n) is int and 0 <= n < 2**48 for n in shape)
    if not isinstance(descr, str) or "O" in descr or not isinstance(fortran, bool) or not fits:
        raise RefusedError(f"{name} holds objects of Python or a structure, not numbers; only numbers are read")
    return descr, fortran, shape


def from_torch(path: Path, entry: str, most: int) -> tuple[list[Array], str, list[str]]:
    """The tensors of a file that `torch.save` made, the entry they stood in, and the other entries that hold some."""
    import argparse

    import torch

    torch.set_num_threads(1)
    zipped = zipfile.is_zipfile(path)
    known: list[Any] = [argparse.Namespace]  # training files hold their options in one
    script = zipped and is_script(path)
    if script:
        path = without_program(path)
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        known += [(Shell, name) for name in names if name.startswith("__torch__.")]
        known += [(as_it_is, name) for name in names if name.startswith("torch.jit._pickle.build_")]
    with torch.serialization.safe_globals(known):
        made = torch.load(path, map_location="cpu", weights_only=True, mmap=True if zipped and not script else None)
    state, wrapper, others = unwrapped(dict(parameters(made)) if script else made, entry)
    found: list[Array] = []
    for name, tensor in state.items():
        kind = str(tensor.dtype).removeprefix("torch.")
        if tensor.layout != torch.strided or tensor.device.type != "cpu" or kind not in TORCH:
            raise RefusedError(f"{name} is of type {kind} ({tensor.layout}, {tensor.device}), which is not read")

        def load(tensor: Any = tensor) -> memoryview:
            flat = tensor.detach().resolve_neg().contiguous().reshape(-1).view(torch.uint8)
            return flat.numpy().data

        found.append((name, TORCH[kind], tuple(tensor.shape), tensor.numel() * tensor.element_size(), load))
    total = sum(size for _, _, _, size, _ in found)
    if total > most:
        raise RefusedError(f"its tensors would take {total:,} bytes, far more than the file")
    return found, wrapper, others


class Shell:
    """What stands for a module of a TorchScript program: its attributes, and no code."""


def as_it_is(value: Any) -> Any:
    """What stands for TorchScript's makers of typed lists."""
    return value


def is_script(path: Path) -> bool:
    """Whether an archive is a TorchScript program with its weights, such as OpenAI's CLIP files."""
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def without_program(path: Path) -> Path:
    """The archive anew, with the weights and their table but none of the code; it lies in the folder of the child."""
    bare = Path("bare")
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(bare, "w", zipfile.ZIP_STORED) as kept:
        for info in archive.infolist():
            name = info.filename.partition("/")[2]
            if name in ("data.pkl", "version", "byteorder") or name.startswith("data/"):
                with archive.open(info) as source, kept.open(zipfile.ZipInfo(info.filename), "w") as target:
                    shutil.copyfileobj(source, target, 1 << 20)
    return bare


def parameters(module: object, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The tensors of a tree of shells by dotted name, as `state_dict` gives them."""
    for name, value in vars(module).items() if isinstance(module, Shell) else ():
        if is_tensor(value):
            yield prefix + name, value
        else:
            yield from parameters(value, f"{prefix}{name}.")


def is_tensor(value: object) -> bool:
    """Whether `value` is a tensor of torch's, without importing torch."""
    return all(hasattr(value, name) for name in ("element_size", "layout", "dtype", "numel"))


def is_state(value: object) -> bool:
    """Whether `value` is a table of tensors by name; single plain values beside them do no harm."""
    if not isinstance(value, Mapping) or not value or not all(isinstance(name, str) for name in value):
        return False
    count = sum(map(is_tensor, value.values()))
    plain = sum(isinstance(part, int | float | str | None) for part in value.values())
    return count > 0 and count + plain == len(value) and 2 * count >= len(value)


def unwrapped(made: object, entry: str) -> tuple[dict[str, Any], str, list[str]]:
    """The table of tensors inside `made`, the entry it stood in (dotted), and other entries that hold one."""
    tables: dict[str, Mapping[str, Any]] = {}

    def look(value: object, name: str, depth: int) -> None:
        if is_state(value):
            tables[name] = value  # type: ignore[assignment]
        elif isinstance(value, Mapping) and depth < MAX_DEPTH:
            for key, part in value.items():
                if isinstance(key, str):
                    look(part, f"{name}.{key}" if name else key, depth + 1)

    look(made, "", 0)
    if entry and entry not in tables:
        raise RefusedError(f"it has no entry {entry!r} with tensors. It has: {', '.join(map(repr, tables)) or 'none'}")
    known = [name for word in WRAPPERS for name in tables if name.rpartition(".")[2] == word and "optim" not in name]
    chosen = entry or next(iter(known if len(tables) > 1 else tables), None)
    if chosen is None and tables:
        raise RefusedError(f"it has several tables of tensors, {', '.join(map(repr, tables))}: name one as the entry")
    if chosen is None:
        what = f"a {type(made).__name__}"
        if isinstance(made, Mapping) and made:
            what += f" of {', '.join(repr(name)[:80] for name in list(made)[:8])}"
        raise RefusedError(f"it holds {what}, and no table of tensors by name (a state dict)")
    values = {name: value for name, value in tables[chosen].items() if is_tensor(value)}
    return values, chosen, [name for name in tables if name != chosen]


def write(arrays: list[Array], file: BinaryIO) -> None:
    """A safetensors file of `arrays`, the wider types first, so that each can be read in place."""
    arrays = sorted(arrays, key=lambda array: (-WIDTHS[array[1]], array[0]))
    entries: dict[str, Any] = {}
    offset = 0
    for name, kind, shape, size, _ in arrays:
        entries[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    file.write(struct.pack("<Q", len(text)) + text)
    for *_, load in arrays:
        file.write(load())


def reason(error: BaseException) -> str:
    """Why the file is not read, in words for its owner."""
    text = str(error)
    if isinstance(error, RefusedError):
        return text
    if isinstance(error, MemoryError) or "alloc" in text or "Cannot allocate" in text:
        return "it needs far more memory than its size allows"
    if named := re.search(r"(?:GLOBAL|Unsupported class|Trying to load unsupported GLOBAL) ([\w.]+)", text):
        return (
            f"it holds an object of {named[1]}, which only running code could make; tensors and plain "
            "values are read. Save the model's state_dict alone where the file was made"
        )
    return f"{type(error).__name__}: {' '.join(text.split())[:300]}"


def refusal(error: BaseException) -> dict[str, Any]:
    """The answer for an error: why, and whether it is the disk that is `full`, which is no fault of the file."""
    return {"refused": reason(error), "full": isinstance(error, OSError) and error.errno == errno.ENOSPC}


def main(request: dict[str, Any]) -> dict[str, Any]:
    """Do what is asked: {path, kind, entry, memory, seconds, written}; the answer holds `refused` or `wrapper`."""
    path = Path(request["path"])
    if request["kind"] == "npz":
        import numpy as np  # noqa: F401 - before the limits, which are for the file
    else:
        import torch  # noqa: F401
    answer: dict[str, Any] = {"wrapper": "", "others": [], "texts": {}}
    answer["unbounded"] = limit(request["memory"], request["seconds"], request["written"])
    with contextlib.suppress(OSError):  # torch.load goes by the ending of a name, so the file gets one without
        Path("given").symlink_to(path)
        path = Path("given")
    try:
        if request["kind"] == "npz":
            arrays, answer["texts"] = from_npz(path)
        else:
            arrays, answer["wrapper"], answer["others"] = from_torch(path, request["entry"], request["written"])
        with Path("tensors").open("xb") as file:
            write(arrays, file)
    except Exception as error:
        return refusal(error)
    return answer


if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    sys.path[:] = asked["packages"]
    with contextlib.redirect_stdout(sys.stderr):
        told = main(asked)
    print(json.dumps(told))
