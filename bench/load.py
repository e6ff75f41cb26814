"""Times opening a ViT against reading the bytes of its file: a public safetensors file, and our own with its hash.

    python bench/load.py --rounds 9 --out load.json

Every way opens a file that the page cache holds, in one process, in turn. `open` ends with a network that could run;
`use` adds one sum over each weight, so that every mapped page has come in. A table goes to stderr, JSON to stdout or
the file. The random weights are written to a temporary folder first.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from bench.report import surroundings, write  # noqa: E402
from bench.train_step import FOREIGN_LIMIT, cpu_seconds, foreign_cores  # noqa: E402
from tests.parity.peers import timm_vit  # noqa: E402

from vitrine.config.models import named  # noqa: E402
from vitrine.config.options import PreprocessConfig  # noqa: E402
from vitrine.models.networks import network  # noqa: E402
from vitrine.weights import bundle as bundles  # noqa: E402
from vitrine.weights.bundle import Bundle  # noqa: E402
from vitrine.weights.opening import open_model  # noqa: E402

REFERENCE = "read the bytes"


def files(folder: Path, name: str) -> tuple[Path, Path]:
    """A timm state dict in safetensors and our bundle, of the same random weights."""
    config = named(name)
    torch.manual_seed(0)
    tensors = dict(network(config).state_dict())
    foreign, ours = folder / "foreign.safetensors", folder / "ours.safetensors"
    save_file(tensors, foreign, metadata={"format": "pt"})
    names = tuple(map(str, range(config.num_classes)))
    bundles.save(
        Bundle(model=config, preprocess=PreprocessConfig(size=config.size), class_names=names, tensors=tensors), ours
    )
    return foreign, ours


def ways(name: str, foreign: Path, ours: Path) -> dict[str, Callable[[], object]]:
    """What is timed, by name."""
    size = named(name).size

    def use(path: Path) -> float:
        model = bundles.build(open_model(path).bundle)
        return sum(float(parameter.detach().sum()) for parameter in model.parameters())

    def peer() -> object:
        config = named(name)
        model = timm_vit(
            img_size=size, patch_size=config.patch_size, embed_dim=config.embed_dim, depth=config.depth,
            num_heads=config.num_heads, mlp_ratio=config.mlp_ratio, num_classes=config.num_classes, weight_init="skip",
        )  # fmt: skip
        model.load_state_dict(load_file(foreign), strict=True)
        return model

    return {
        REFERENCE: foreign.read_bytes,
        "open, foreign": lambda: bundles.build(open_model(foreign).bundle),
        "use, foreign": lambda: use(foreign),
        "open, ours": lambda: bundles.build(open_model(ours).bundle),
        "use, ours": lambda: use(ours),
        "timm's model, then load_file": peer,
    }


def measure(timed: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[tuple[float, float | None]]]:
    """Seconds of each way and the cores that others used meanwhile, `rounds` times in turn, after one round unseen."""
    samples: dict[str, list[tuple[float, float | None]]] = {way: [] for way in timed}
    for turn in range(rounds + 1):
        for way, run in timed.items():
            before, start = cpu_seconds(), time.perf_counter()
            run()
            seconds = time.perf_counter() - start
            if turn:
                samples[way].append((seconds, foreign_cores(before, seconds)))
    return samples


def rows(samples: dict[str, list[tuple[float, float | None]]]) -> list[dict[str, Any]]:
    """One row a way. The ratio is the median over the turns of its time over that of the reference in the same turn."""
    reference = [seconds for seconds, _ in samples[REFERENCE]]
    found = []
    for way, taken in samples.items():
        times = [seconds for seconds, _ in taken]
        found.append(
            {
                "way": way, "n": len(times), "median_s": median(times), "low_s": min(times), "high_s": max(times),
                "times_reading": median(one / other for one, other in zip(times, reference, strict=True)),
                "foreign_cores": [None if foreign is None else round(foreign, 2) for _, foreign in taken],
            }
        )  # fmt: skip
    return found


def main() -> None:
    """Measure, show, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="vit_base_patch16_224", help="a named model")
    parser.add_argument("--rounds", type=int, default=9, help="samples of each way")
    parser.add_argument("--folder", type=Path, help="where the files are written; by default the temporary folder")
    parser.add_argument("--out", type=Path, help="file for the JSON; by default stdout")
    asked = parser.parse_args()
    if asked.rounds < 1:
        parser.error("--rounds must be at least 1")
    with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
        foreign, ours = files(Path(folder), asked.model)
        size = foreign.stat().st_size
        found = rows(measure(ways(asked.model, foreign, ours), asked.rounds))
    facts = {"foreign_limit_cores": FOREIGN_LIMIT, "model": asked.model, "bytes": size}
    report = {**surroundings(), **facts, "rows": found}
    print(f"{asked.model}: {size / 1e6:.1f} MB\n{'way':<30}{'median s':>10}{'low':>9}{'high':>9}{'x reading':>11}",
          file=sys.stderr)  # fmt: skip
    for row in found:
        times = f"{row['median_s']:>10.3f}{row['low_s']:>9.3f}{row['high_s']:>9.3f}{row['times_reading']:>11.2f}"
        print(f"{row['way']:<30}{times}", file=sys.stderr)
    write(report, asked.out)


if __name__ == "__main__":
    main()
