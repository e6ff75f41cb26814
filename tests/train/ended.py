"""Ends runs at random steps, in the middle of an accumulation, by SIGTERM or SIGKILL, and goes on with them.

By number of worker processes and precision. Run as a program: it forks, which a process with threads must not do.
Prints one JSON object.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

from tests.train.forked import at_call, begun, ended, pictures, program, warm, words
from tests.train.signalled import weights
from vitrine.train import step

EPOCHS, PARTS = 3, 2

RANDOM: dict[str, Any] = {
    "epochs": EPOCHS, "accumulate": PARTS, "seed": 7, "ema-decay": 0.9, "model.drop-rate": 0.1, "batch-size": 12,
    "model.drop-path-rate": 0.1, "augment.mixup": 0.3, "augment.cutmix": 0.5, "augment.rotate-deg": 10.0,
    "augment.crop-min-area": 0.4, "augment.policy": "rand-m9-mstd0.5-inc1", "augment.erase": 0.25,
    "save.every-steps": 3, "model.depth": 2,
}  # fmt: skip
"""All that is random or remembered in a run."""


def main(folder: Path, stops: int) -> None:
    """So many stops, over the combinations of workers and precision in turn; each run is ended once."""
    data, rng = pictures(folder / "data", 120, side=20), random.Random(1)
    warm(*words(data, folder / "warm", **{**RANDOM, "epochs": 1}))
    steps = EPOCHS * (72 // RANDOM["batch-size"])  # 24 pictures are for validation, 24 for the test
    wanted = dict[str, str]()
    for precision in ("fp32", "bf16"):
        typed = words(data, folder / precision, **{**RANDOM, "precision": precision})
        assert ended(begun(lambda: program(typed), folder / "said")) == 0, (folder / "said").read_text()  # noqa: B023
        wanted[precision] = weights(folder / precision)
    combinations = [(workers, precision) for workers in (0, 1, 2) for precision in ("fp32", "bf16")]
    equal, ways = 0, {"SIGTERM": 0, "SIGKILL": 0}
    began = time.monotonic()
    for number in range(stops):
        workers, precision = combinations[number % len(combinations)]
        how = signal.SIGKILL if (number + number // len(combinations)) % 2 else signal.SIGTERM
        out = folder / f"r{number}"
        typed = words(data, out, **{**RANDOM, "precision": precision, "num-workers": workers})
        call = rng.randrange(1, steps * PARTS)

        def ending(call: int = call, how: int = how, typed: list[str] = typed) -> int:
            at_call(step, "weighted_mean", call, lambda: os.kill(os.getpid(), how))
            return program(typed)

        code = ended(begun(ending, folder / "said"))
        assert code == (75 if how == signal.SIGTERM else -signal.SIGKILL), (code, (folder / "said").read_text())
        code = ended(begun(lambda: program(typed), folder / "said"))  # noqa: B023
        assert code == 0, (folder / "said").read_text()
        assert weights(out) == wanted[precision], (number, workers, precision, call, how)
        equal += 1
        ways[how.name] += 1
    spent = time.monotonic() - began
    print(
        json.dumps({"equal": equal, "ways": ways, "seconds": round(spent, 1), "different": len(set(wanted.values()))})
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
