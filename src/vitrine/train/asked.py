"""What signals ask of a run: to stop, at once or as soon as all is kept, or to save and go on.

SIGINT, SIGTERM and SIGUSR1 (which batch systems send before a time slot ends) stop, SIGUSR2 saves. A second one that
stops leaves at once.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from vitrine.errors import Stopped

STOPPING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))
SAVING = tuple(getattr(signal, name) for name in ("SIGUSR2",) if hasattr(signal, name))


class Asked:
    """What has been asked so far: to `save`, to `stop`, and that `how_often`. Once all is `over` nothing is heard."""

    def __init__(self, out: Path = Path()) -> None:
        self.out = out
        self.how_often = 0
        self.save = self.over = False
        self._noted = False

    @property
    def stop(self) -> bool:
        """Whether to stop."""
        return self.how_often > 0

    def look(self) -> None:
        """Raise `Stopped` where it was asked for: the place to leave from is here."""
        if self.stop:
            raise Stopped(f"{self.out}: stopped, all is kept; the same command goes on.")

    @contextlib.contextmanager
    def noted(self) -> Iterator[None]:
        """Inside, a first signal is only noted: something is under way that knows where it may stop."""
        before, self._noted = self._noted, True
        try:
            yield
        finally:
            self._noted = before

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Take note of a signal; raise `KeyboardInterrupt` where it is the second, or nothing is under way."""
        if number in SAVING:
            self.save = True
            return
        if self.over:
            return
        self.how_often += 1
        if self.how_often > 1 or not self._noted:
            raise KeyboardInterrupt(*[number][: number != signal.SIGINT])


@contextlib.contextmanager
def heard(out: Path) -> Iterator[Asked]:
    """What signals ask of the run in `out` while the block lasts; their handlers are put back after.

    The first one that finds nothing under way raises `Stopped` from the block, a second one `KeyboardInterrupt`.
    Threads but the main one hear no signals.
    """
    asked = Asked(out)
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = {number: signal.signal(number, asked.handle) for number in (*STOPPING, *SAVING)}
    try:
        yield asked
    except KeyboardInterrupt:
        if asked.how_often != 1:
            raise
        raise Stopped(f"{out}: stopped before it trained; the same command begins again, or goes on.") from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
