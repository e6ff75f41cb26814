"""One process a run: a folder that is being trained in is refused to a second one."""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from vitrine.errors import CannotCreate

LOCK_FILE = ".lock"


@contextlib.contextmanager
def claimed(out: Path) -> Iterator[None]:
    """The run folder `out`, made if need be, for this process alone until the block ends.

    The lock goes with the process, however it dies. Systems without `fcntl` have no such lock, and get none.
    Raises `CannotCreate` where another process has the folder.
    """
    out.mkdir(parents=True, exist_ok=True)
    if importlib.util.find_spec("fcntl") is None:
        yield
        return
    with _locked(out) as path:
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def _locked(out: Path) -> Iterator[Path]:
    """The lock file of `out`, held until the block ends."""
    path = out / LOCK_FILE
    while True:
        with path.open("w", encoding="ascii") as file:
            _take(file, out)
            if _is_still(file, path):
                yield path
                return


def _take(file: TextIO, out: Path) -> None:
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise CannotCreate(f"{out}: another process is training here. Wait for it, or choose another --out.") from error


def _is_still(file: TextIO, path: Path) -> bool:
    """Whether the locked file still has its name: its last holder may have removed it after we opened it."""
    with contextlib.suppress(FileNotFoundError):
        return path.stat().st_ino == os.fstat(file.fileno()).st_ino
    return False
