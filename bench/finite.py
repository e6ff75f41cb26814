"""What it costs to refuse steps that are not finite: training steps with and without, interleaved.

    python bench/finite.py --model vit_tiny_patch16_224 --batch-size 2 --rounds 60

`without` is the same step with the decision taken out: the optimiser steps whatever it was given. Processor time,
which neighbours disturb least. JSON on stdout.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from dataclasses import replace
from statistics import median

import numpy as np
import torch

from vitrine.config.models import named
from vitrine.config.options import Config, PreprocessConfig
from vitrine.data.loader import Batch
from vitrine.machine.device import versions
from vitrine.models.networks import network
from vitrine.train import step as stepping
from vitrine.train.finite import Refused
from vitrine.train.meter import Meter
from vitrine.train.objective import classify
from vitrine.train.optim import Average, optimizer
from vitrine.train.state import Progress


def main() -> None:
    """Measure the model named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="vit_tiny_patch16_224")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=30)
    asked = parser.parse_args()
    own = named(asked.model)
    config = Config(model=own, preprocess=PreprocessConfig(size=own.size), batch_size=asked.batch_size)
    model = network(own).train()
    made, average = optimizer(model, config.optim), Average(model, 0.999)
    rng, B = np.random.default_rng(0), asked.batch_size
    batch = Batch(
        images=torch.from_numpy(rng.integers(0, 256, (B, own.in_chans, *own.size), dtype=np.uint8)),
        labels=torch.arange(B) % own.num_classes, weights=torch.ones(B), index=torch.arange(B),
        draws=torch.from_numpy(rng.random((B, 16))),
    )  # fmt: skip
    aim, meter, refused = classify(config), Meter(Progress(epochs=1), torch.device("cpu"), 1.0), Refused(0)
    fine, update, refusal = torch.zeros(()), stepping.update, stepping.refusal
    seconds: dict[str, list[float]] = {"with": [], "without": []}
    for number in range(asked.rounds + 3):
        for way in ("with", "without"):
            plain = way == "without"
            stepping.refusal = (lambda loss, norm: fine) if plain else refusal  # type: ignore[assignment]
            stepping.update = (lambda optimiser, kind: optimiser.step()) if plain else update  # type: ignore[assignment]
            began = time.process_time()
            result = stepping.train_step(
                model, made, batch, config, step=number, num_steps=10_000, dtype=None, objective=aim
            )
            average.update(number, None if plain else result.refused)
            meter.add(replace(result, refused=fine) if plain else result)
            if not plain:
                refused.add(result.refused)
            seconds[way].append(time.process_time() - began)
    kept = {way: times[3:] for way, times in seconds.items()}
    more = median(a - b for a, b in zip(kept["with"], kept["without"], strict=True)) / median(kept["without"])
    found = {
        "model": asked.model, "batch_size": B, "n": asked.rounds, "median_ms": {
            way: round(1000 * median(times), 3) for way, times in kept.items()
        }, "median_of_differences": f"{more:+.2%}", "threads": torch.get_num_threads(), "load": os.getloadavg()[0],
        "versions": versions(),
    }  # fmt: skip
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
