"""One process a run: a folder that is being trained in is refused to a second one."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path

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
    import fcntl

    with (out / LOCK_FILE).open("w", encoding="ascii") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise CannotCreate(
                f"{out}: another process is training here. Wait for it, or choose another --out."
            ) from error
        # The empty file stays: removing it would let a third process lock a new one beside a waiting second.
        yield
