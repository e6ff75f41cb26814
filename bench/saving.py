"""How long a save keeps the training waiting, and how long the write takes beside it; torch.save as the peer.

    python bench/saving.py --model vit_base_patch16_224 --rounds 7 --out saving.json

The state of a model in float32 with AdamW's two moments; between two saves every tensor changes, as a step would do.
`blocked` is the time until the training goes on, `written` until the state and the last weights are on the disk and
synced; `torch.save` writes the same tensors to one file without a hash and without a sync, and `with sync` adds one.
`verified` is reading the state back with its hash. A table goes to stderr, JSON to stdout or the file.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from bench.report import surroundings, write  # noqa: E402

from vitrine.config.models import named  # noqa: E402
from vitrine.config.options import OptimConfig, PreprocessConfig  # noqa: E402
from vitrine.config.saving import SaveConfig  # noqa: E402
from vitrine.models.networks import network  # noqa: E402
from vitrine.train import state, states  # noqa: E402
from vitrine.train.optim import optimizer  # noqa: E402
from vitrine.train.saver import Saver  # noqa: E402
from vitrine.train.state import Progress  # noqa: E402
from vitrine.weights import container  # noqa: E402
from vitrine.weights.bundle import Bundle  # noqa: E402
from vitrine.weights.bundle import save as save_bundle  # noqa: E402


def timed(begin: float) -> float:
    return time.perf_counter() - begin


def measured(name: str, rounds: int, folder: Path) -> dict[str, Any]:
    """Seconds of each round by what was done."""
    config = named(name)
    torch.manual_seed(0)
    model = network(config)
    made = optimizer(model, OptimConfig())
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    made.step()
    classes = tuple(map(str, range(config.num_classes)))

    def save_model(path: Path, model: torch.nn.Module, progress: Progress) -> None:
        tensors = dict(model.state_dict())
        save_bundle(
            Bundle(model=config, preprocess=PreprocessConfig(size=config.size), class_names=classes, tensors=tensors),
            path,
        )

    seconds: dict[str, list[float]] = {key: [] for key in ("blocked", "written", "torch.save", "with sync", "verified")}
    with Saver(folder / "r", SaveConfig(keep_last=1), model, made, None, save_model) as saver:
        saver.due(1)  # after the first step: buffers are made in the thread
        saver.wait()
        for number in range(1, rounds + 1):
            made.step()
            begin = time.perf_counter()
            saver.state(Progress(epochs=1, step=number))
            seconds["blocked"].append(timed(begin))
            saver.wait()
            seconds["written"].append(timed(begin))
            begin = time.perf_counter()
            container.read_facts(states.found(folder / "r")[0])
            seconds["verified"].append(timed(begin))
            tensors = state.tensors_of(model, made, None)
            begin = time.perf_counter()
            torch.save(tensors, folder / "peer.pt")
            seconds["torch.save"].append(timed(begin))
            with (folder / "peer.pt").open("rb+") as file:
                os.fsync(file.fileno())
            seconds["with sync"].append(timed(begin))
    size = states.found(folder / "r")[0].stat().st_size
    return {"model": name, "bytes": size, "rounds": rounds, "seconds": seconds}


def main() -> None:
    """Measure and tell."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="vit_base_patch16_224")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--folder", type=Path, help="where to write; a temporary one by default")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
        found = measured(asked.model, asked.rounds, Path(folder))
    print(f"{found['model']}: {found['bytes'] / 1e9:.2f} GB, n = {found['rounds']}", file=sys.stderr)
    for key, times in found["seconds"].items():
        line = f"{key:>12}  median {1000 * median(times):7.0f} ms  worst {1000 * max(times):7.0f} ms"
        print(line, file=sys.stderr)
    per_mb = 1000 * min(found["seconds"]["verified"]) / (found["bytes"] / 1e6)
    print(f"   verifying  {per_mb:.3f} ms a MB at best", file=sys.stderr)
    write({**surroundings(), **found}, asked.out)


if __name__ == "__main__":
    main()
