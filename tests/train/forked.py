"""Children forked from a warm process, which has imported torch and has no threads: a death costs little time.

For programs that tests start. Each child has a process group of its own, and ends without what the parent would do at
its end.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from vitrine.train import pace

LONGEST_S = 60.0


def warm(*typed: str) -> None:
    """Make this process ready to be forked: one thread, no time lost to measuring the pace; with words, all that such a
    run imports is there."""
    torch.set_num_threads(1)
    pace.LONGEST_S = 0.01
    if typed:
        with contextlib.redirect_stdout(sys.stderr):
            assert program(list(typed)) == 0
    assert threading.active_count() == 1


def begun(work: Callable[[], Any], told: Path) -> int:
    """The number of a child that does `work` and ends with what it gives as its exit code; it writes to `told`."""
    child = os.fork()
    if child:
        return child
    os.setsid()
    out = os.open(told, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(out, 1)
    os.dup2(out, 2)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    code = 1
    try:
        code = int(work() or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def ended(child: int) -> int:
    """The exit code of a child, below 0 the number of the signal that killed it. It has a minute."""
    until = time.monotonic() + LONGEST_S
    while time.monotonic() < until:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    raise TimeoutError(f"child {child} did not end within {LONGEST_S:.0f} seconds")


def at_call(module: Any, name: str, number: int, act: Callable[[], None]) -> None:
    """From now on `act` just before the call with that number, from 0, of `module.name`."""
    plain, calls = getattr(module, name), [0]

    def wrapped(*args: Any, **how: Any) -> Any:
        if calls[0] == number:
            act()
        calls[0] += 1
        return plain(*args, **how)

    setattr(module, name, wrapped)


def pictures(folder: Path, count: int, side: int = 16) -> Path:
    """A class folder of so many pictures of noise, dark or bright."""
    rng = np.random.default_rng(0)
    for i in range(count):
        path = folder / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        low = 100 * (i % 2)
        Image.fromarray(rng.integers(low, low + 156, (side, side, 3), dtype=np.uint8)).save(path)
    return folder


def words(data: Path, out: Path, **options: Any) -> list[str]:
    """`vitrine train` of a tiny model, as it is typed."""
    given = {
        "model.depth": 1, "model.embed-dim": 16, "model.num-heads": 2, "model.mlp-ratio": 2.0, "model.img-size": 16,
        "model.patch-size": 8, "device": "cpu", "precision": "fp32", "threads": 1, "batch-size": 8, "epochs": 2,
        "init": "none", **options,
    }  # fmt: skip
    typed = [word for name, value in given.items() for word in (f"--{name}", str(value))]
    return ["vitrine", "train", str(data), "--out", str(out), "--quiet", *typed]


def program(typed: list[str]) -> int:
    """What the program itself would do when started so."""
    from vitrine.__main__ import main

    sys.argv = typed
    return main()
