"""Weight files as strangers send them: honest ones, and some two hundred that are not. None is kept in the tree."""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch


def tensors() -> dict[str, torch.Tensor]:
    """A small state dict of several types and shapes."""
    generator = torch.Generator().manual_seed(0)
    return {
        "w": torch.randn(3, 4, generator=generator),
        "b": torch.randn(4, generator=generator).half(),
        "x": torch.randn(2, 2, generator=generator).bfloat16(),
        "n": torch.tensor(7),
        "empty": torch.empty(0, 3),
    }


def safetensors(entries: dict[str, Any] | str | bytes, data: bytes = b"", length: int | None = None) -> bytes:
    """A file with this header, whatever it says."""
    text = entries if isinstance(entries, bytes) else entries.encode() if isinstance(entries, str) else b""
    text = text or json.dumps(entries).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(begin: int, end: int, shape: Any = None, dtype: Any = "F32") -> dict[str, Any]:
    """One entry of a header; a vector of float32 that fills its bytes unless `shape` says otherwise."""
    return {"dtype": dtype, "shape": [(end - begin) // 4] if shape is None else shape, "data_offsets": [begin, end]}


def npy(descr: str = "'<f4'", shape: str = "(2,)", data: bytes = bytes(8), fortran: str = "False") -> bytes:
    """A .npy with this header."""
    text = f"{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + data


def zipped(members: dict[str, bytes] | list[tuple[str, bytes]], method: int = zipfile.ZIP_STORED) -> bytes:
    """A zip archive of `members`."""
    pairs = list(members.items()) if isinstance(members, dict) else members
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in pairs:
            archive.writestr(zipfile.ZipInfo(name), data, method)
    return buffer.getvalue()


def torch_zip(program: bytes, **others: bytes) -> bytes:
    """An archive as `torch.save` makes it, with this data.pkl."""
    return zipped({"archive/data.pkl": program, "archive/version": b"3\n", **others})


def saved(value: Any, **options: Any) -> bytes:
    """What `torch.save` writes for `value`."""
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


class Evil:
    """Pickled, it calls `function` with `arguments` when it is read."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def named_call(module: str, name: str, *arguments: str) -> bytes:
    """A pickle, protocol 2, that calls module.name(*arguments), written by hand."""
    words = b"".join(b"X" + struct.pack("<I", len(word.encode())) + word.encode() for word in arguments)
    return b"\x80\x02" + f"c{module}\n{name}\n".encode() + b"(" + words + b"tR."


def programs(canary: Path) -> Iterator[tuple[str, bytes]]:
    """Pickles that would make the file `canary` if anyone ran them."""
    touch = f"touch {canary}"
    code = f"open({str(canary)!r}, 'w').close()"
    for module, name in [
        ("os", "system"), ("posix", "system"), ("nt", "system"), ("os", "popen"), ("subprocess", "getoutput"),
        ("subprocess", "check_output"), ("pty", "spawn"), ("commands", "getoutput"),
    ]:  # fmt: skip
        yield f"{module}.{name}", named_call(module, name, touch)
    for module, name in [
        ("builtins", "eval"), ("builtins", "exec"), ("__builtin__", "eval"), ("__builtin__", "exec"),
        ("timeit", "timeit"), ("cProfile", "run"), ("pdb", "run"), ("code", "interact"),
        ("torch.jit._script", "eval"), ("numpy.testing._private.utils", "runstring"), ("bdb", "Bdb.run"),
        ("torch.serialization", "os.system"), ("torch._inductor.codecache", "eval"), ("doctest", "debug_script"),
    ]:  # fmt: skip
        yield f"{module}.{name}", named_call(module, name, code)
    for module, name, *words in [
        ("builtins", "open", str(canary), "w"),
        ("io", "open", str(canary), "w"),
        ("pathlib", "Path.touch", str(canary)),
        ("os", "mkdir", str(canary)),
        ("shutil", "copy", "/etc/hostname", str(canary)),
        ("os", "link", "/etc/hostname"),
        ("importlib", "import_module", "antigravity"),
        ("builtins", "__import__", "os"),
        ("torch.hub", "load", "x/y"),
        ("builtins", "getattr", "os", "system"),
        ("operator", "attrgetter", "system"),
        ("torch", "load", "x"),
        ("webbrowser", "open", "http://localhost"),
        ("urllib.request", "urlopen", "http://localhost"),
        ("runpy", "run_path", str(canary)),
        ("pickle", "loads", "x"),
        ("_pickle", "loads", "x"),
        ("socket", "create_connection", "x"),
        ("sys", "exit", "0"),
        ("os", "_exit", "0"),
        ("os", "abort"),
    ]:
        yield f"{module}.{name}({', '.join(words)[:10]})", named_call(module, name, *words)
    inner = pickle.dumps(Evil(eval, code), protocol=2)
    yield "a pickle inside a pickle", pickle.dumps({"model": Evil(pickle.loads, inner)}, protocol=2)
    for protocol in range(6):
        yield f"protocol {protocol}", pickle.dumps({"w": Evil(eval, code)}, protocol=protocol)
    yield "in a tuple", pickle.dumps([(Evil(exec, code),)], protocol=2)
    yield "as a key", pickle.dumps({Evil(eval, code): 1}, protocol=2)


def headers() -> Iterator[tuple[str, bytes]]:
    """safetensors files whose header lies, or is a bomb."""
    one = {"w": entry(0, 8)}
    data = bytes(8)
    for length in (0, 1, 2**31, 2**40, 2**63, 2**64 - 1, 9, 10_000):
        yield f"header of {length}", safetensors(one, data, length)
    for text in (
        "[]", "{", "null", "5", '"x"', "{}x", "{'w': 1}", '{"w": NaN}', '{"w": Infinity}', '{"w": -Infinity}', "",
        '{"w": 1e999}', '{"w": 1' + "0" * 5000 + "}", '{"w": {}}', '{"w": null}', '{"w": []}', '{"w": "x"}',
        '{"__metadata__": []}', '{"__metadata__": {"a": 1}}', '{"__metadata__": {"a": {}}}', '{"__metadata__": null}',
        '{"w": {"dtype": "F32"}}', "\ufeff{}", "[" * 100_000, '{"a":' * 100_000, '{"w":' + "[" * 50_000 + "}",
    ):  # fmt: skip
        yield f"header {text[:24]}", safetensors(text or "{", data)
    same = json.dumps(entry(0, 8))
    yield "a name twice", safetensors(f'{{"w": {same}, "w": {same}}}', data)
    yield (
        "a field twice",
        safetensors('{"w": {"dtype": "F32", "dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}', data),
    )
    yield "metadata twice", safetensors('{"__metadata__": {}, "__metadata__": {}}')
    for kind in ("f32", "F31", "OBJECT", "C64", "F8_E4M3", "", None, 4, ["F32"], "U64"):
        yield f"type {kind}", safetensors({"w": entry(0, 8, dtype=kind)}, data)
    for shape in (
        [3], [], [2, 0], [-2], [-1, -2], [2.0], ["2"], [True, True], [None], None, 2, "2", {"0": 2}, [2**62, 2**62],
        [2**63], [1] * 40, [[2]], [2**32, 2**32],
    ):  # fmt: skip
        made = entry(0, 8)
        yield f"shape {str(shape)[:24]}", safetensors({"w": {**made, "shape": shape}}, data)
    for offsets in (
        [0, 7], [8, 0], [-8, 0], [0, 2**63], [2**64, 2**64 + 8], [0], [], [0, 8, 16], ["0", "8"], [0.0, 8.0], None,
        [False, 8], [4, 12], [-4, 4], [0, 16],
    ):  # fmt: skip
        yield f"offsets {offsets}", safetensors({"w": {**entry(0, 8), "data_offsets": offsets}}, data)
    yield "overlap", safetensors({"a": entry(0, 8), "b": entry(4, 12)}, bytes(12))
    yield "the same bytes", safetensors({"a": entry(0, 8), "b": entry(0, 8)}, data)
    yield "a gap", safetensors({"a": entry(0, 8), "b": entry(12, 20)}, bytes(20))
    yield "bytes left over", safetensors(one, bytes(12))
    yield "a field more", safetensors({"w": {**entry(0, 8), "code": "x"}}, data)
    yield "the bytes of 80 MB of header", safetensors(b'{"a":[' + b"0," * (5 << 20) + b"0]}")
    yield "many brackets", safetensors(b'{"a":[' + b"[]," * 300_000 + b"0]}")
    yield "many braces", safetensors(b'{"a":[' + b"{}," * 300_000 + b"0]}")
    yield "many numbers", safetensors(b'{"a":[' + b"1000," * 800_000 + b"0]}")
    yield "a long text", safetensors(b'{"a":"' + b"x" * (5 << 20) + b'"}')
    many = ",".join(f'"{i}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}' for i in range(70_000))
    yield "many tensors", safetensors("{" + many + "}")


def cut_off() -> Iterator[tuple[str, bytes]]:
    """Honest files that end too early."""
    whole = safetensors({"w": entry(0, 400)}, bytes(400))
    for length in (1, 7, 8, 9, 20, 60, len(whole) - 400, len(whole) - 1):
        yield f"safetensors cut off at {length}", whole[:length]
    buffer = io.BytesIO()
    np.savez(buffer, a=np.ones(50, np.float32), b=np.ones(3))
    for name, data in (("npz", buffer.getvalue()), ("torch", saved({"w": torch.ones(50)}))):
        for share in (0.1, 0.3, 0.5, 0.7, 0.9, 0.99):
            yield f"{name} cut off at {share}", data[: int(len(data) * share)]
        yield f"{name} with more behind it", data + b"x"


def archives() -> Iterator[tuple[str, bytes]]:
    """Zip archives that are refused by their directory."""
    array = npy()
    plain = zipped({"a.npy": array, "b.npy": array})
    for name in ("../a.npy", "/a.npy", "x/../../a.npy", "C:/a.npy", "x/..", "x\\..\\a.npy"):
        packed = zipped({"q" * len(name): array})
        yield f"an entry {name}", packed.replace(b"q" * len(name), name.encode())
    yield "a name twice", plain.replace(b"b.npy", b"a.npy")
    yield "a name with a zero", plain.replace(b"b.npy", b"b\0npy")
    yield "a name in no code", plain.replace(b"b.npy", b"\xff.npy")
    yield "no entries", zipped({})
    yield "texts", zipped({"a.txt": b"x", "b.py": b"import os"})
    yield "arrays and more", zipped({"a.npy": array, "b.py": b"import os"})
    yield "two programs", zipped({"a/data.pkl": b"\x80\x02}.", "b/data.pkl": b"\x80\x02}."})
    yield "a compressed program", zipped({"a/data.pkl": b"\x80\x02}." * 90}, zipfile.ZIP_DEFLATED)
    yield "a bomb", zipped({"a.npy": npy(shape="(20000000,)", data=bytes(80_000_000))}, zipfile.ZIP_DEFLATED)
    yield "a bomb for torch", zipped({"a/data.pkl": bytes(80_000_000)}, zipfile.ZIP_DEFLATED)
    end = plain.rindex(b"PK\x05\x06")
    for what, at, value in [
        ("entries", end + 10, struct.pack("<H", 60_000)), ("entries here", end + 8, struct.pack("<H", 1)),
        ("size", end + 12, struct.pack("<I", 2**31)), ("place", end + 16, struct.pack("<I", 4)),
        ("disk", end + 4, struct.pack("<H", 3)), ("comment", end + 20, struct.pack("<H", 9)),
    ]:  # fmt: skip
        yield f"another {what} at the end", plain[:at] + value + plain[at + len(value) :]
    first = plain.index(b"PK\x01\x02")
    second = plain.index(b"PK\x01\x02", first + 4)
    for what, at, value in [
        ("method", first + 10, struct.pack("<H", 14)), ("encrypted", first + 8, struct.pack("<H", 1)),
        ("size", first + 24, struct.pack("<I", 2**31)), ("packed size", first + 20, struct.pack("<II", 2**31, 2**31)),
        ("place", first + 42, struct.pack("<I", 2**31)), ("overlapping place", second + 42, struct.pack("<I", 0)),
        ("name length", first + 28, struct.pack("<H", 60_000)), ("sign", first, b"XX"),
        ("larger than the file", first + 20, struct.pack("<II", 900, 900)),
    ]:  # fmt: skip
        yield f"another {what} in the directory", plain[:at] + value + plain[at + len(value) :]
    yield "another name inside", plain.replace(b"a.npy", b"c.npy", 1)
    locator = b"PK\x06\x07" + struct.pack("<IQI", 0, 2**40, 1)
    yield "a lying place of the large end", plain[:end] + locator + plain[end:]


def strangers() -> Iterator[tuple[str, bytes]]:
    """Files that are something else."""
    yield from {
        "empty": b"",
        "one byte": b"P",
        "text": b"hello, this is no model\n",
        "HDF5": b"\x89HDF\r\n\x1a\n" + bytes(99),
        "a single array": npy(),
        "gzip": b"\x1f\x8b" + bytes(99),
        "bzip2": b"BZh9" + bytes(99),
        "xz": b"\xfd7zXZ\0" + bytes(9),
        "GGUF": b"GGUF" + bytes(99),
        "a pointer of LFS": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
        "a web page": b"<!DOCTYPE html><html></html>",
        "a page": b"<html><body></body></html>",
        "zeros": bytes(5000),
        "an ELF": b"\x7fELF" + bytes(200),
        "a picture": b"\x89PNG\r\n\x1a\n" + bytes(99),
        "a script": b"#!/bin/sh\ntouch x\n",
        "JSON": b'{"w": [1, 2, 3]}',
        "random": np.random.default_rng(0).bytes(4000),
    }.items()


def arrays() -> Iterator[tuple[str, bytes]]:
    """.npz files whose directory is in order and whose arrays are not: the child process has to refuse them."""
    for name, member in {
        "huge shape": npy(shape="(1000000000000,)"),
        "huge square": npy(shape="(10000000, 10000000)"),
        "negative shape": npy(shape="(-2,)"),
        "shape of texts": npy(shape="('2',)"),
        "shape True": npy(shape="(True,)"),
        "too short": npy(shape="(3,)"),
        "too long": npy(shape="(1,)"),
        "objects": npy("'|O'", data=b"\x80\x02cos\nsystem\n."),
        "a structure": npy("[('a', '<f4'), ('b', '|O')]"),
        "complex": npy("'<c8'", "(1,)"),
        "dates": npy("'<M8[s]'", "(1,)"),
        "void": npy("'|V8'", "(1,)"),
        "nonsense type": npy("'<q9'"),
        "type 4": npy("4"),
        "code as type": npy("__import__('os')"),
        "a call in the header": b"\x93NUMPY\x01\x00\x20\x00" + b"exit()".ljust(32),
        "no header": b"\x93NUMPY\x01\x00",
        "version 9": b"\x93NUMPY\x09\x00" + npy()[8:],
        "a long header": b"\x93NUMPY\x02\x00\xff\xff\xff\x7f" + bytes(99),
        "nested header": b"\x93NUMPY\x01\x00\x88\x13" + b"(" * 5000,
        "no array": b"hello",
        "nothing": b"",
        "a pickle": named_call("os", "system", "touch canary"),
        "many dimensions": npy(shape=str((1,) * 40), data=bytes(4)),
        "no field": b"\x93NUMPY\x01\x00\x14\x00" + b"{'descr': '<f4'}".ljust(20),
        "fortran 2": npy(fortran="2"),
    }.items():
        yield name, zipped({"a.npy": npy(), "b.npy": member})
    sound = zipped({"a.npy": npy(data=b"\x01\x02\x03\x04abcd")})
    yield "a wrong checksum", sound.replace(b"\x01\x02\x03\x04abcd", b"\x01\x02\x03\x04abcX")
