"""A plan past one machine: hours, bytes and lost work of a large pre-training, from a rate and a failure rate.

    python bench/cluster.py                                   # the table of docs/cluster.md
    python bench/cluster.py --rate vit-b/16=1800 --gpus 32 --gpu-hours-between-failures 12000

`--rate MODEL=PICTURES` is what one GPU was measured to train a second (`pictures_per_s` in metrics.jsonl); without it
the rate is `--share` of `--peak` over the arithmetic of a step. Failures are a Poisson process over all GPUs; a run
goes back to its newest complete state and trains the lost steps again. Each row is simulated `--trials` times at an
interval of `--save-every-s` between saves, and at Young's (doi 10.1145/361147.361115): mean hours and the 95 % range,
and the work that was lost. `--json` prints what the table is made of.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from vitrine.config.models import named
from vitrine.models.cost import macs, num_parameters

PLANS = (
    ("vit-b/16", "ImageNet-21k", 14_197_122, 21_843, 90, 4096),
    ("vit-l/16", "ImageNet-21k", 14_197_122, 21_843, 90, 4096),
    ("vit-b/16", "JFT-300M", 303_000_000, 18_291, 7, 4096),
    ("vit-l/16", "JFT-300M", 303_000_000, 18_291, 14, 4096),
    ("vit-h/14", "JFT-300M", 303_000_000, 18_291, 14, 4096),
)
"""Model, data, pictures, classes, passes, batch: Table 3 of arXiv:2010.11929; sizes of the data: section 4.1."""

STATE_BYTES = 4 * 3
"""A parameter in a saved state: the weight and AdamW's two moments, in float32."""


@dataclass(frozen=True, kw_only=True)
class Site:
    """What a cluster offers. Seconds, bytes a second, hours."""

    gpus: int
    gpu_hours_between_failures: float
    write_bytes_s: float
    read_bytes_s: float
    detect_s: float
    start_s: float
    copy_bytes_s: float

    @property
    def mean_between_s(self) -> float:
        """Seconds between failures of any GPU."""
        return 3600 * self.gpu_hours_between_failures / self.gpus


@dataclass(frozen=True, kw_only=True)
class Saves:
    """What a save costs: the step waits `blocked_s` for a copy; `write_s` later the state is complete on disk."""

    every_s: float
    blocked_s: float
    write_s: float


def young(blocked_s: float, between_s: float) -> float:
    """The interval that costs least to first order: sqrt(2 cost M), M the mean time between failures."""
    return math.sqrt(2 * blocked_s * between_s)


def simulate(
    work_s: float, saves: Saves, *, between_s: float, back_s: float, trials: int, seed: int = 0
) -> dict[str, np.ndarray]:
    """Seconds, failures and seconds of lost work of `trials` runs of `work_s` seconds, each a row.

    A save begins after every `every_s` seconds of work. A failure loses what was done since the copy of the newest
    save that was complete by then, and `back_s` seconds pass until work goes on. Going back may fail as well.
    """
    random = np.random.default_rng(seed)
    span = saves.every_s + saves.blocked_s
    found: dict[str, list[float]] = {"seconds": [], "failures": [], "lost_s": []}
    for _ in range(trials):
        clock = done = lost = 0.0
        failures = 0
        while True:
            left = work_s - done
            whole = left + saves.blocked_s * max(0, math.ceil(left / saves.every_s) - 1)
            until = random.exponential(between_s)
            if until >= whole:
                clock += whole
                break
            # Saves complete `write_s` after their copy; work goes on meanwhile.
            complete = max(0, math.floor((until - saves.write_s) / span)) if until > saves.write_s else 0
            kept = complete * saves.every_s
            worked = until - math.floor(until / span) * saves.blocked_s
            lost += max(0.0, worked - kept)
            done += kept
            clock += until
            failures += 1
            while True:
                again = random.exponential(between_s)
                if again >= back_s:
                    clock += back_s
                    break
                clock += again
                failures += 1
        found["seconds"].append(clock)
        found["failures"].append(failures)
        found["lost_s"].append(lost)
    return {name: np.array(values) for name, values in found.items()}


def plan(row: tuple[str, str, int, int, int, int], site: Site, asked: argparse.Namespace) -> dict[str, Any]:
    """One row: what the training needs of the cluster, and what failures make of it."""
    name, data, pictures, classes, epochs, batch = row
    model = named(name, num_classes=classes)
    rates = dict(asked.rate)
    rate = rates.get(name, asked.share * asked.peak / (6 * macs(model)))
    parameters = num_parameters(model)
    state = STATE_BYTES * parameters
    work_s = pictures * epochs / (rate * site.gpus)
    back_s = site.detect_s + site.start_s + state / site.read_bytes_s
    copy_s, write_s = state / site.gpus / site.copy_bytes_s, state / site.write_bytes_s
    told: dict[str, Any] = {
        "model": name, "data": data, "steps": pictures * epochs // batch, "pictures_s_gpu": rate,
        "measured": name in rates,
        "hours_without_failures": work_s / 3600, "gpu_hours": work_s * site.gpus / 3600,
        "stored_bytes": pictures * asked.picture_bytes, "read_bytes_s": rate * site.gpus * asked.picture_bytes,
        "decode_cores": rate * site.gpus / asked.decoded_s_core, "state_bytes": state, "copy_s": copy_s,
        "write_s": write_s, "exchange_s": 2 * 4 * parameters / asked.link_bytes_s, "step_s": batch / (rate * site.gpus),
    }  # fmt: skip
    for word, every in (("young", young(copy_s, site.mean_between_s)), ("asked", asked.save_every_s)):
        saves = Saves(every_s=max(every, write_s), blocked_s=copy_s, write_s=write_s)
        ran = simulate(work_s, saves, between_s=site.mean_between_s, back_s=back_s, trials=asked.trials)
        low, high = np.percentile(ran["seconds"], [2.5, 97.5]) / 3600
        told[word] = {
            "save_every_s": saves.every_s, "hours": ran["seconds"].mean() / 3600, "low": low, "high": high,
            "failures": ran["failures"].mean(), "lost_share": ran["lost_s"].mean() / work_s,
            "over": ran["seconds"].mean() / work_s - 1,
        }  # fmt: skip
    return told


def pair(word: str) -> tuple[str, float]:
    """`MODEL=PICTURES` of the command line."""
    name, _, value = word.partition("=")
    return name, float(value)


def table(rows: list[dict[str, Any]]) -> Table:
    """The rows as people read them."""
    shown = Table(box=None)
    for head in (
        "model, data", "pictures/s a GPU", "hours", "GPU hours", "stored", "read", "cores to decode",
        "exchange / step", "state", "copy / write", "saves every", "failures", "lost work", "hours with failures",
    ):  # fmt: skip
        shown.add_column(head)
    for row in rows:
        ran = row["asked"]
        shown.add_row(
            f"{row['model']}, {row['data']}", f"{row['pictures_s_gpu']:,.0f}", f"{row['hours_without_failures']:,.1f}",
            f"{row['gpu_hours']:,.0f}", f"{row['stored_bytes'] / 1e12:.2f} TB", f"{row['read_bytes_s'] / 1e9:.2f} GB/s",
            f"{row['decode_cores']:,.0f}", f"{1000 * row['exchange_s']:.0f} / {1000 * row['step_s']:.0f} ms",
            f"{row['state_bytes'] / 1e9:.1f} GB",
            f"{1000 * row['copy_s']:.0f} ms / {row['write_s']:.1f} s", f"{ran['save_every_s']:,.0f} s",
            f"{ran['failures']:.2f}", f"{ran['lost_share']:.3%}",
            f"{ran['hours']:,.1f} ({ran['low']:,.1f} to {ran['high']:,.1f})",
        )  # fmt: skip
    return shown


def main() -> None:
    """Print the plan."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpus", type=int, default=64)
    parser.add_argument("--rate", type=pair, action="append", default=[], metavar="MODEL=PICTURES")
    parser.add_argument("--share", type=float, default=0.225, help="of the peak, where no rate is given")
    parser.add_argument("--peak", type=float, default=989e12, help="nominal FLOP/s of a GPU in bfloat16")
    parser.add_argument("--picture-bytes", type=float, default=22_000, help="at 256 px and quality 90")
    parser.add_argument("--decoded-s-core", type=float, default=700)
    parser.add_argument("--write-bytes-s", type=float, default=1e9, help="to the shared disk, all ranks together")
    parser.add_argument("--read-bytes-s", type=float, default=2e9)
    parser.add_argument("--copy-bytes-s", type=float, default=10e9, help="from a GPU to its host")
    parser.add_argument("--link-bytes-s", type=float, default=50e9, help="of a GPU's link to other nodes")
    parser.add_argument("--detect-s", type=float, default=60.0)
    parser.add_argument("--start-s", type=float, default=120.0)
    parser.add_argument("--save-every-s", type=float, default=60.0)
    parser.add_argument("--gpu-hours-between-failures", type=float, default=50_676.0)
    parser.add_argument("--trials", type=int, default=2_000)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    names = list(Site.__dataclass_fields__)
    site = Site(**{name: getattr(asked, name) for name in names})
    rows = [plan(row, site, asked) for row in PLANS]
    if asked.json:
        print(json.dumps({"site": asdict(site), "plans": rows}, indent=1))
    else:
        Console(width=220).print(table(rows))


if __name__ == "__main__":
    main()
