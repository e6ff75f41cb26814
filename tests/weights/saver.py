"""Saves bundles without end in a child, kills it at a random moment, and looks at what is left; fifty times.

Run as a program: it forks, which a process with threads must not do. Prints one JSON object.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch

from tests.made import bundle
from vitrine.results import Provenance
from vitrine.weights.bundle import Bundle, open_bundle, save


def numbered(made: Bundle, number: int) -> Bundle:
    """`made` with every tensor and the provenance saying `number`."""
    tensors = {name: torch.full_like(tensor, number) for name, tensor in made.tensors.items()}
    return replace(made, tensors=tensors, provenance=Provenance(steps=number))


def save_on(made: Bundle, path: Path, number: int) -> None:
    """Save until killed."""
    while True:
        number += 1
        save(numbered(made, number), path)


def main(folder: Path, kills: int = 50) -> None:
    torch.set_num_threads(1)
    made, path = bundle(embed_dim=64, depth=2), folder / "model.safetensors"
    save(numbered(made, 0), path)
    found, leftovers, rng = [0], 0, random.Random(0)
    for _ in range(kills):
        child = os.fork()
        if child == 0:
            save_on(made, path, found[-1])
        time.sleep(rng.uniform(0.002, 0.04))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        leftovers += len(list(folder.glob(".*.part")))
        opened = open_bundle(path)
        assert all(bool((tensor == opened.provenance.steps).all()) for tensor in opened.tensors.values())
        found.append(opened.provenance.steps)
    save(numbered(made, found[-1]), path)
    names = sorted(entry.name for entry in folder.iterdir())
    print(json.dumps({"found": found, "leftovers": leftovers, "names": names}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
