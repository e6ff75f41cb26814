"""A stranger's archive, read in a child process of its own under limits; what comes back is plain tensors.

The child (`unpack.py`) gets no environment, no open file and an empty folder; it may use memory, processor time and
disk in proportion to the file, and it writes one safetensors file, which is checked here like any other. Linux
bounds all of it; where a system lacks a bound (macOS memory, Windows all but the time), a sentence says so.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from vitrine.errors import BadData, DiskError, Unavailable
from vitrine.weights.header import mapped, read_header, strict_json, tensors_of

MEMORY, MEMORY_TIMES = 512 << 20, 3
"""What the child may take beyond its libraries: bytes, and times the file."""

WRITTEN, WRITTEN_TIMES = 64 << 20, 4
"""What it may write: bytes, and times the file. Compressed weights are smaller than their numbers, by half at most."""

SECONDS, BYTES_A_SECOND = 60, 5 << 20
"""How long it may take: seconds, and one more for so many bytes."""

CHILD = Path(__file__).with_name("unpack.py")


@dataclass(frozen=True, kw_only=True)
class Unpacked:
    """Tensors by name, the `entry` of the file they stood in, short `texts` beside them, and sentences to tell."""

    tensors: Mapping[str, Tensor]
    entry: str = ""
    texts: Mapping[str, str]
    said: tuple[str, ...] = ()


def unpack(path: Path, kind: Literal["npz", "torch"], entry: str = "") -> Unpacked:
    """The tensors of the archive at `path`, read by a child process; of the `entry` named, where it has several.

    Raises `BadData` with the reason for a file that is not read, needs more memory or time than its size allows,
    or brings the child down; `Unavailable` where no process can be started.
    """
    size = path.stat().st_size
    seconds = SECONDS + size // BYTES_A_SECOND
    request = {
        "path": str(path.resolve()), "kind": kind, "entry": entry, "packages": _packages(),
        "memory": MEMORY + MEMORY_TIMES * size, "written": WRITTEN + WRITTEN_TIMES * size, "seconds": seconds,
    }  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="vitrine-", ignore_cleanup_errors=True) as folder:
        answer = _ask(request, Path(folder), path, seconds)
        if answer.get("full"):
            raise DiskError(f"{folder}: no space left on the disk to unpack {path}. Free some, or name another folder "
                            "for temporary files by TMPDIR.")  # fmt: skip
        if "refused" in answer:
            raise BadData(f"{path}: not read: {answer['refused']}.")
        with (Path(folder) / "tensors").open("rb") as file:
            content = mapped(file, f"{path} as unpacked")
        tensors = tensors_of(content, read_header(content, f"{path} as unpacked"))
    return Unpacked(
        tensors=tensors, entry=answer["wrapper"], texts=answer["texts"], said=_said(answer, entry)
    )  # fmt: skip


def _packages() -> list[str]:
    """Where the child finds numpy and torch: where this process does, but not in the folder it was started in."""
    return [place for place in sys.path if Path(place).is_absolute()]


def _ask(request: Mapping[str, Any], folder: Path, path: Path, seconds: int) -> dict[str, Any]:
    """The child's answer. Raises `BadData` where it gives none."""
    command = [sys.executable, "-I", "-S", "-B", str(CHILD), json.dumps(request)]
    kept = ("SYSTEMROOT", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")
    clean = {name: os.environ[name] for name in kept if name in os.environ}
    clean |= {"OMP_NUM_THREADS": "1", "TMPDIR": str(folder), "TEMP": str(folder), "HOME": str(folder)}
    try:
        done = subprocess.run(
            command, cwd=folder, env=clean, stdin=subprocess.DEVNULL, capture_output=True, timeout=seconds,
            check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise BadData(f"{path}: reading it took more than {seconds} seconds; it was given up.") from error
    except OSError as error:
        raise Unavailable(f"{path}: no process could be started to read it ({error.strerror}).") from error
    if done.returncode:
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:] or ["no word of it"]
        how = f"by signal {-done.returncode}" if done.returncode < 0 else f"with {last[0][:200]!r}"
        raise BadData(
            f"{path}: the process that read it ended {how}; it may take {request['memory'] >> 20:,} MiB and "
            f"{seconds} seconds. Take another copy of the file."
        )
    return strict_json(done.stdout, f"{path}: the answer of the process that read it")


def _said(answer: Mapping[str, Any], entry: str) -> tuple[str, ...]:
    said = []
    others = ", ".join(map(str, answer["others"][:8]))
    if answer["wrapper"] and not entry:
        said.append(
            f"weights: the entry {answer['wrapper']!r} of the file" + (f"; it also has {others}" if others else "")
        )
    if answer["unbounded"]:
        said.append(f"the process that read the file could not be held to a limit on {', '.join(answer['unbounded'])}")
    return tuple(said)
