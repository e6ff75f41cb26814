"""Sends runs a signal in each of their phases and at random moments, and looks at how they end and what they leave.

Run as a program: it forks, which a process with threads must not do. Prints one JSON object.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.train.forked import at_call, begun, ended, pictures, program, warm, words
from vitrine.errors import Stopped
from vitrine.files import content_hash
from vitrine.train import answers, course, fit, report, run, states
from vitrine.train.keep import Keeper
from vitrine.weights import container
from vitrine.weights.bundle import LAST_FILE, MODEL_FILE

STEPS = 12
"""In two epochs of 72 pictures; 24 are for validation, 24 for the test."""

PHASES: dict[str, tuple[Any, str, int]] = {
    "opening": (run.sources, "open_source", 0),
    "scanning": (run.scan, "scan", 0),
    "parting": (run.splits, "split", 0),
    "measuring the pace": (run, "best_threads", 0),
    "building": (course.start, "initialise", 0),
    "loading": (course.store, "store", 0),
    "first step": (fit, "train_step", 0),
    "mid-epoch": (fit, "train_step", STEPS // 2 + 1),
    "validation": (answers, "collect", 0),
    "last validation": (answers, "collect", 1),
    "saving": (container, "write", 1),
    "last step": (fit, "train_step", STEPS - 1),
    "judging": (Keeper, "judge", 1),
    "writing the model": (course, "save_bundle", 0),
    "writing the report": (report, "write_text", 0),
}
"""Where a signal is sent: just before that call of that function."""

DONE = ("writing the model", "writing the report")
NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


def weights(out: Path) -> str:
    """A hash of the tensors of both models of a finished run."""
    found = b""
    for name in (MODEL_FILE, LAST_FILE):
        tensors, facts = container.read(out / name)
        assert facts["finished"]
        found += b"".join(tensor.contiguous().numpy().tobytes() for _, tensor in sorted(tensors.items()))
    return content_hash(found)


def options(workers: int) -> dict[str, Any]:
    return {"num-workers": workers, "batch-size": 12, "save.every-steps": 5, "ema-decay": 0.9, "model.drop-rate": 0.1}


def group(number: int, times: int) -> Callable[[], None]:
    """Sends the whole group of this process a signal; it is there when this comes back."""

    def send() -> None:
        for _ in range(times):
            os.killpg(os.getpgid(0), number)

    return send


class Trials:
    """Runs that are sent signals, beside one that is not."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.data, self.count = folder, folder / "data", 0
        self.slowest = 0.0
        out = folder / "straight"
        began = time.monotonic()
        assert self.run(out, 0) == 0, self.said()
        self.length_s, self.wanted = time.monotonic() - began, weights(out)

    def said(self) -> str:
        return (self.folder / "said").read_text()

    def start(self, out: Path, workers: int, before: Callable[[], None] = lambda: None) -> int:
        typed = words(self.data, out, **options(workers))

        def work() -> int:
            before()
            return program(typed)

        return begun(work, self.folder / "said")

    def run(self, out: Path, workers: int, before: Callable[[], None] = lambda: None) -> int:
        return ended(self.start(out, workers, before))

    def new(self) -> Path:
        self.count += 1
        return self.folder / f"r{self.count}"

    def in_phase(self, phase: str, number: int, workers: int, times: int = 1) -> int:
        """The exit code of a run that is sent a signal in a phase; what it left is looked at, and it goes on."""
        out = self.new()
        module, name, call = PHASES[phase]
        code = self.run(out, workers, lambda: at_call(module, name, call, group(number, times)))
        self.look(out, workers, code, f"{phase}, signal {number}")
        return code

    def at_random(self, number: int, workers: int, rng: random.Random) -> int:
        """As `in_phase`, at a random moment."""
        out = self.new()
        child = self.start(out, workers)
        time.sleep(rng.uniform(0.02, 1.1) * self.length_s)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, number)
        sent = time.monotonic()
        code = ended(child)
        self.slowest = max(self.slowest, time.monotonic() - sent)
        self.look(out, workers, code, f"at random, signal {number}")
        return code

    def look(self, out: Path, workers: int, code: int, what: str) -> None:
        left = [str(path) for path in out.rglob(".*")] if out.exists() else []
        assert not left or code in (130, 143), f"{what}: left {left}"
        if code == 0:
            assert weights(out) == self.wanted, what
            return
        try:
            found = states.newest(out)
        except Stopped:
            found = None
        assert found is None or found[3] == [], f"{what}: {found}"
        assert self.run(out, workers) == 0, f"{what}: {self.said()}"
        assert weights(out) == self.wanted, f"{what}: other weights"


def main(folder: Path, every: int, at_random: int) -> None:
    """Phases and signals, one in `every` of them all, and so many random moments."""
    warm(*words(pictures(folder / "data", 120), folder / "warm", **options(0)))
    trials, rng = Trials(folder), random.Random(0)
    found: dict[str, list[int]] = {}
    pairs = [(phase, number) for phase in PHASES for number in NUMBERS]
    for place, (phase, number) in enumerate(pairs):
        if place % every == 0:
            found.setdefault(phase, []).append(trials.in_phase(phase, number, 2 if place % 4 == 0 else 0))
    for place in range(at_random):
        number = NUMBERS[place % 3]
        found.setdefault("random", []).append(trials.at_random(number, 2 if place % 4 == 0 else 0, rng))
    twice = [trials.in_phase("mid-epoch", number, 2, times=2) for number in NUMBERS]
    print(json.dumps({"codes": found, "twice": twice, "slowest_s": trials.slowest, "length_s": trials.length_s}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
