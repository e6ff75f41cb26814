"""Whether pre-training pays on few photographs: fine-tuned at a higher resolution, against as many passes from scratch.

    python bench/transfer.py --source PICTURES --data PHOTOS [PHOTOS ...] --out OUT

One model is trained on PICTURES with their labels (`labels`) and one without, by masked patch prediction (`masked`),
both at `--source-side` pixels for `--source-epochs`; a third sees only the training pictures of the target, without
labels, for `--own-epochs` (`own`). Then each of PHOTOS is learnt at `--side` pixels for `--epochs`, a run a seed and
arm, arms interleaved: begun from each of the three, its positions resized, and from scratch. Budgets are passes and not
minutes, so that a busy machine changes nothing. One JSON line a run, with the share of test pictures right and its 95 %
interval; then a summary: each arm's mean over the seeds and its difference to `scratch` seed by seed, with Student's
intervals over the seeds. Runs that are in OUT already are read and not done again.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from bench.runs import learnt  # noqa: E402

from vitrine.machine.device import versions  # noqa: E402

MODEL: dict[str, Any] = {
    "patch_size": 8, "embed_dim": 96, "depth": 4, "num_heads": 3, "class_token": False, "global_pool": "norm_then_avg",
    "pos_embed": "learn",
}  # fmt: skip


def begin(data: Path, out: Path, asked: argparse.Namespace, **options: Any) -> Path:
    """A model trained at the side of the source, seed 0; its folder."""
    learnt(
        data, out, quiet=asked.quiet, threads=asked.threads, init="none",
        model={**MODEL, "img_size": asked.source_side}, **options,
    )  # fmt: skip
    return out


def run(data: Path, out: Path, seed: int, start: Path | None, asked: argparse.Namespace) -> dict[str, Any]:
    """One run on the target; what it gets right of the test part."""
    model = {"img_size": asked.side} if start else {**MODEL, "img_size": asked.side}
    found = learnt(
        data, out, quiet=asked.quiet, threads=asked.threads, init=str(start or "none"), model=model, seed=seed,
        epochs=asked.epochs,
    )  # fmt: skip
    return {"top1": found.metrics["test"]["top1"].as_json(), "seconds": found.provenance.seconds}


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Each arm over its seeds, and its difference to scratch, by target."""
    told: dict[str, Any] = {}
    for data in dict.fromkeys(row["data"] for row in rows):
        arms: dict[str, list[float]] = {}
        for row in rows:
            if row["data"] == data:
                arms.setdefault(row["arm"], []).append(row["top1"]["value"])
        told[data] = {arm: over_seeds(of) for arm, of in arms.items()}
        for arm in arms.keys() - {"scratch"}:
            told[data][f"{arm} - scratch"] = over_seeds(np.subtract(arms[arm], arms["scratch"]))
    return told


def over_seeds(of: Any) -> dict[str, float]:
    """Mean and Student's 95 % interval."""
    interval = stats.ttest_1samp(of, 0).confidence_interval()
    return {"mean": float(np.mean(of)), "low": float(interval.low), "high": float(interval.high), "seeds": len(of)}


def main() -> None:
    """Pre-train, then run every arm on every target."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True)
    parser.add_argument("--data", type=Path, nargs="+", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--source-epochs", type=int, default=20)
    parser.add_argument("--own-epochs", type=int, default=300)
    parser.add_argument("--side", type=int, default=96)
    parser.add_argument("--source-side", type=int, default=64)
    parser.add_argument("--arms", default="scratch,labels,masked,own")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quiet", action="store_true")
    asked = parser.parse_args()
    arms, rows = asked.arms.split(","), []
    starts: dict[str, Path | None] = {"scratch": None}
    if "labels" in arms:
        starts["labels"] = begin(asked.source, asked.out / "labels", asked, epochs=asked.source_epochs)
    hidden: dict[str, Any] = {"task": "masked_patches"}
    if "masked" in arms:
        starts["masked"] = begin(asked.source, asked.out / "masked", asked, **hidden, epochs=asked.source_epochs)
    for data in asked.data:
        if "own" in arms:
            starts["own"] = begin(data, asked.out / f"own-{data.name}", asked, **hidden, epochs=asked.own_epochs)
        for seed in range(asked.seeds):
            for arm in arms:
                found = run(data, asked.out / f"{data.name}-{arm}-{seed}", seed, starts[arm], asked)
                rows.append({"data": data.name, "arm": arm, "seed": seed, **found})
                print(json.dumps(rows[-1]), flush=True)
    print(json.dumps({"summary": summary(rows), "versions": versions()}, indent=1))


if __name__ == "__main__":
    main()
