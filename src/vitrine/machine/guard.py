"""Ranks that end together: an error of one is told once and ends all, and one that hangs is noticed by the others.

Each rank counts how often it met the others, and its signs of life since; a thread of its own publishes both in the
store at which the ranks met first, and looks there for an error of another. A process that is stopped or gone publishes
nothing; of those that wait for each other, the one that hangs is behind.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
from typing import Any, NoReturn

import torch.distributed as dist

from vitrine.errors import Stopped, Unavailable, VitrineError

LOOK_S = 0.5
"""Seconds between two looks into the store."""

GRACE_S = 5.0
"""Seconds in which a rank may end by itself once another has told an error, or the store is gone."""

SILENT_S = 3.0
"""Seconds without a published count after which a process counts as gone where a connection broke."""


class Guard:
    """Watches over one rank of `world` until `stop`. `names` are the ranks as they are told to people."""

    def __init__(self, store: Any, rank: int, world: int, limit_s: float) -> None:
        self.names = [f"rank {number}" for number in range(world)]
        self._store, self._own = store, store
        self._rank, self._world, self._limit_s = rank, world, limit_s
        self._met = self._beats = 0
        self._changed = time.monotonic()
        self._looks = 0
        self._seen: dict[int, tuple[str, float]] = {}
        self._ended, self._telling = threading.Event(), False
        self._thread = threading.Thread(target=self._watch, name="guard", daemon=True)

    def start(self) -> None:
        """Begin to watch."""
        self._publish()
        self._thread.start()

    def stop(self) -> None:
        """Watch no more."""
        self._ended.set()

    def beat(self) -> None:
        """One sign of life more."""
        self._beats += 1
        self._changed = time.monotonic()

    def meet(self) -> None:
        """This rank comes to where all ranks meet: from here on their counts are comparable."""
        self._met, self._beats = self._met + 1, 0
        self._changed = time.monotonic()

    def tell(self, error: BaseException) -> None:
        """Tell the other ranks of `error`, which ends this one. Raises `SystemExit` with the exit code of the first
        error where that is of another rank, so that one rank speaks; `Unavailable` where another rank is gone."""
        self._telling = True
        lost = isinstance(error, RuntimeError) and not isinstance(error, VitrineError) and _of_connection(error)
        # torchrun sees itself which process died, and ends the others.
        alone = lost and "TORCHELASTIC_RUN_ID" not in os.environ
        patience = SILENT_S + 2 * LOOK_S if alone else LOOK_S * (self._rank > 0)
        earlier = self._wait_for_error(patience)
        gone = self._silent(SILENT_S) if lost and earlier is None else []
        said = Unavailable(
            f"{self._some(gone) if gone else 'another rank'} is gone: the run ends here too. The same command goes on "
            "from the last save."
        )
        code = said.exit_code if lost else _code_of(error)
        earlier = earlier or self._claim(code, str(said if lost else error))
        self.stop()
        self.leave()
        if earlier is not None:
            raise SystemExit(int(earlier["code"])) from error
        if lost:
            raise said from error
        if self._rank and isinstance(error, VitrineError) and not isinstance(error, Stopped):
            error.args = (f"{self.names[self._rank]}: {error}",)

    def leave(self) -> None:
        """Say that this rank needs the store no more; rank 0, with which it goes unless torchrun has it, waits a while
        for all to say so."""
        with contextlib.suppress(Exception):
            self._own.set(f"left/{self._rank}", "")
            end = time.monotonic() + 2 * GRACE_S
            others = [
                f"left/{rank}" for rank in range(self._world) if rank not in (self._rank, *self._silent(SILENT_S))
            ]
            keeps = self._rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
            while keeps and not self._own.check(others) and time.monotonic() < end:
                time.sleep(0.05)

    def _claim(self, code: int, said: str) -> dict[str, Any] | None:
        """The error of another rank if there is one by now, else None, and this one's stands."""
        mine = json.dumps({"rank": self._rank, "code": code, "said": said[:2000]})
        with contextlib.suppress(Exception):
            found = json.loads(self._own.compare_set("error", "", mine))
            return found if found["rank"] != self._rank else None
        return None

    def _error(self) -> dict[str, Any] | None:
        """What another rank told."""
        if self._own.check(["error"]):
            found: dict[str, Any] = json.loads(self._own.get("error"))
            return found if found["rank"] != self._rank else None
        return None

    def _wait_for_error(self, seconds: float) -> dict[str, Any] | None:
        end = time.monotonic() + seconds
        while True:
            with contextlib.suppress(Exception):
                if (found := self._error()) is not None:
                    return found
            if time.monotonic() >= end:
                return None
            time.sleep(0.05)

    def _publish(self) -> None:
        """Write this rank's count, and how often it has written, which changes while the process lives."""
        self._looks += 1
        self._own.set(f"life/{self._rank}", f"{self._met} {self._beats} {self._looks}")

    def _read(self) -> None:
        """Take note of what the others wrote, and when that changed."""
        for rank in range(self._world):
            if rank != self._rank and self._own.check([f"life/{rank}"]):
                word = self._own.get(f"life/{rank}").decode()
                if self._seen.get(rank, ("", 0.0))[0] != word:
                    self._seen[rank] = word, time.monotonic()

    def _silent(self, seconds: float) -> list[int]:
        """The ranks whose processes have written nothing for so long."""
        return [rank for rank, (_, at) in self._seen.items() if time.monotonic() - at > seconds]

    def _watch(self) -> None:
        with contextlib.suppress(Exception):
            self._own = self._store.clone()  # a connection of its own: the other one may be waiting
        unreachable = told = 0.0
        while not self._ended.wait(LOOK_S):
            now = time.monotonic()
            try:
                self._publish()
                self._read()
                error = self._error()
            except (RuntimeError, dist.DistError):
                unreachable = unreachable or now
                if now - unreachable > 2 * GRACE_S:
                    self._end(69, f"{self.names[0]} or the launcher is gone: the run ends here too.")
                continue
            unreachable = 0.0
            told = (told or now) if error else 0.0
            if error and now - told > GRACE_S:
                self._end(int(error["code"]), "")
            if now - self._changed > self._limit_s and not self._telling:
                self._hung()

    def _hung(self) -> None:
        """End this rank, which waits in vain, and say for which one."""
        behind = self._silent(max(SILENT_S, 4 * LOOK_S))
        if not behind:
            counts = {rank: tuple(map(int, word.split()[:2])) for rank, (word, _) in self._seen.items()}
            counts[self._rank] = self._met, self._beats
            behind = [rank for rank, count in counts.items() if count < max(counts.values())]
        which = self._some(behind) if behind else "one of the ranks"
        said = (
            f"{which} gave no sign of life for {self._limit_s:.0f} seconds (--parallel.timeout-s): the run ends. The "
            "same command goes on from the last save."
        )
        earlier = self._claim(69, said)
        self._end(int(earlier["code"]) if earlier else 69, "" if earlier else said)

    def _some(self, ranks: list[int]) -> str:
        """These ranks as they are told to people."""
        return ", ".join(self.names[rank] for rank in sorted(ranks)[:4]) + (", ..." if len(ranks) > 4 else "")

    def _end(self, code: int, said: str) -> NoReturn:
        """End this process, whose main thread may be waiting where nothing reaches it."""
        if said:
            print(f"vitrine: {said}", file=sys.stderr, flush=True)
        self.leave()
        os._exit(code)


def _of_connection(error: RuntimeError) -> bool:
    """Whether torch says that another rank could not be reached."""
    words = ("Connection closed by peer", "Connection reset", "timeout", "Timed out", "NCCL", "Broken pipe", "gloo")
    return isinstance(error, dist.DistError) or any(word in str(error) for word in words)


def _code_of(error: BaseException) -> int:
    """The exit code that the command line gives for an error."""
    if isinstance(error, VitrineError):
        return error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return 143 if error.args else 130
    return 1
