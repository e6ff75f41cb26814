"""A large set in tar shards: time to the first batch, memory, and whether loading keeps up with a training run.

    python bench/shards.py CIFAR --folder FOLDER --out shards.json             # 200,000 pictures
    python bench/shards.py CIFAR --folder FOLDER --pictures 20000 --read 10000  # a smaller check

CIFAR has train/CLASS/*.png, as `unpack_cifar10.py` leaves it; its pictures are taken several times over under new
names. FOLDER gets the tar they are packed into and the shards that `vitrine shards` makes of it; what is there is used
again. A smaller number of pictures is treated as a large one: decoded as they are needed.

- `start_s`: from the opening of the data to the first batch (opened, looked at, parted, checked, stored, one batch of
  128), in a new process that has imported torch; median of five.
- `memory`: of the process and its workers together, resident, after 1,000 pictures and after `--read`.
- `share_of_ceiling`: pictures a second of a training run over the smaller of two ceilings. The step and one loading
  process have a core each, so that neither can take time from the other, as on a machine whose steps run on an
  accelerator. The loader's ceiling is what that process gives when nobody trains (batches are thrown away); the step's
  is what training does on one batch again and again. Measured in turns, `--rounds` of them, for a model as slow as the
  loader and for one that outruns it; the share is the median over the turns.
- `resume_exact`: the batches of a loader that begins at several steps amid an epoch are those of one that came there,
  pixels, labels and draws, with 0, 1 and 2 workers.

A table goes to stderr, JSON to stdout or the file.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from vitrine.config.architecture import ModelConfig  # noqa: E402
from vitrine.config.options import AugmentConfig, Config, DataConfig  # noqa: E402
from vitrine.data import checks, loader, scan, sources, splits, store  # noqa: E402
from vitrine.models.networks import network  # noqa: E402
from vitrine.train.objective import objective_of  # noqa: E402
from vitrine.train.optim import optimizer  # noqa: E402
from vitrine.train.step import train_step  # noqa: E402

BATCH = 128
AUGMENT = AugmentConfig(flip=True, crop_min_area=0.5)
MODELS = {"light": (48, 1), "heavy": (192, 4)}
"""Width and depth: one whose step is faster than one loading process here, one whose step is slower."""


def packed(cifar: Path, to: Path, count: int) -> Path:
    """A tar of class folders with `count` pictures, CIFAR-10's several times over."""
    path = to / f"cifar-{count}.tar"
    if path.is_file():
        return path
    files = sorted(cifar.glob("train/*/*.png"))
    part = path.with_suffix(".part")
    with tarfile.open(part, "w") as made:
        for i in range(count):
            file = files[i % len(files)]
            about = tarfile.TarInfo(f"{file.parent.name}/{i // len(files)}-{file.name}")
            content = file.read_bytes()
            about.size = len(content)
            made.addfile(about, io.BytesIO(content))
    part.rename(path)
    return path


def shards(source: Path, to: Path) -> tuple[Path, float | None]:
    """The shards of a tar, and the seconds that `vitrine shards` took for them, None where they were there."""
    if to.is_dir():
        return to, None
    began = time.perf_counter()
    subprocess.run([sys.executable, "-m", "vitrine", "shards", str(source), str(to)], check=True, stdout=sys.stderr)
    return to, time.perf_counter() - began


class Opened:
    """The data of a run, up to what batches are made of."""

    def __init__(self, data: Path) -> None:
        settings = DataConfig(source=str(data))
        self.source = sources.open_source(settings)
        store.LARGE = min(store.LARGE, len(self.source) - 1)
        found = scan.scan(self.source, settings)
        parts = splits.split(self.source, found.bad, settings)
        self.lines = checks.report(self.source, found, parts).lines()
        self.train = parts.train
        self.store = store.store(self.source, found, channels=3, keep_side=43, budget_bytes=6 << 30)

    def batches(self, first: int, last: int, workers: int) -> Iterator[loader.Batch]:
        """Those of training."""
        return loader.training(
            self.store, self.source, self.train, size=(32, 32), batch_size=BATCH, seed=0, augment=AUGMENT,
            first_step=first, last_step=last, num_workers=workers, on_bad=_never,
        )  # fmt: skip


def _never(name: str, reason: str) -> None:
    raise AssertionError(f"{name}: {reason}")


def start(data: Path) -> dict[str, float]:
    """Seconds from opening the data to the first batch, by stage, in this process."""
    began = time.perf_counter()
    opened = Opened(data)
    ready = time.perf_counter()
    next(iter(opened.batches(0, 8, 0)))
    return {"ready_s": ready - began, "start_s": time.perf_counter() - began}


def memory(data: Path, read: int, workers: int) -> dict[str, Any]:
    """Resident bytes of this process and its workers as pictures go by, and pictures a second meanwhile."""
    opened = Opened(data)
    found: dict[str, Any] = {}
    began, seen = time.perf_counter(), 0
    for seen, _ in enumerate(opened.batches(0, read // BATCH, workers), start=1):
        if seen == 1000 // BATCH + 1:
            found["after_1000"] = resident()
    found[f"after_{seen * BATCH}"] = resident()
    found["pictures_a_second"] = seen * BATCH / (time.perf_counter() - began)
    return found


def resident() -> int:
    """Bytes of this process and its children: each page counted once, shared ones in part (PSS)."""
    total = 0
    for process in (str(os.getpid()), *Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()):
        for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += 1024 * int(line.split()[1])
    return total


def pinned(core: int) -> None:
    """Every thread of this process to one core."""
    for thread in Path("/proc/self/task").iterdir():
        os.sched_setaffinity(int(thread.name), {core})


def training(data: Path, rounds: int, seconds: float) -> dict[str, Any]:
    """Rates of the loader alone, of the step alone, and of both together, in turns."""
    first, second = sorted(os.sched_getaffinity(0))[:2]
    torch.set_num_threads(1)
    opened = Opened(data)
    found: dict[str, Any] = {}
    for name, (width, depth) in MODELS.items():
        model = ModelConfig(
            img_size=32, patch_size=8, num_classes=10, embed_dim=width, depth=depth, num_heads=width // 16
        )
        config = Config(model=model, batch_size=BATCH, augment=AUGMENT)
        turns = [_turn(opened, config, seconds, (first, second)) for _ in range(rounds)]
        shares = [turn["together"] / min(turn["loader"], turn["step"]) for turn in turns]
        found[name] = {"turns": turns, "share_of_ceiling": median(shares), "low": min(shares), "high": max(shares)}
    return found


def _turn(opened: Opened, config: Config, seconds: float, cores: tuple[int, int]) -> dict[str, float]:
    model = network(config.model)
    optimiser, objective = optimizer(model, config.optim), objective_of(config)

    def step(batch: loader.Batch, number: int) -> None:
        train_step(model, optimiser, batch, config, step=number, num_steps=10**6, dtype=None, objective=objective)

    pinned(cores[1])  # what the process for loading inherits
    batches = opened.batches(0, 10**6, 1)
    one = next(iter(batches))
    pinned(cores[0])
    rates = {"loader": _rate(batches, lambda *_: None, seconds)}
    rates["together"] = _rate(batches, step, seconds)
    batches.close()  # type: ignore[attr-defined]
    rates["step"] = _rate(iter(lambda: one, None), step, seconds)  # type: ignore[arg-type]
    return rates


def _rate(batches: Iterator[loader.Batch], use: Any, seconds: float) -> float:
    """Pictures a second, after the batches that were waiting."""
    for number in range(8):
        use(next(batches), number)
    began, count = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        use(next(batches), count)
        count += 1
    return BATCH * count / (time.perf_counter() - began)


def resume(data: Path) -> dict[str, Any]:
    """Whether a loader that begins amid an epoch gives what one that came there gave."""
    opened = Opened(data)
    steps = loader.steps_per_epoch(len(opened.train), BATCH)
    firsts = [steps // 3, steps - 2, steps + 5]
    wanted = {
        number: digest(batch)
        for number, batch in enumerate(opened.batches(firsts[0], firsts[2] + 3, 0), start=firsts[0])
    }
    exact = all(
        [digest(batch) for batch in opened.batches(first, first + 3, workers)] == [wanted[first + k] for k in range(3)]
        for first in firsts
        for workers in (0, 1, 2)
    )
    return {"resume_exact": exact, "steps_an_epoch": steps, "from": firsts}


def digest(batch: loader.Batch) -> str:
    """One hash of all that a batch holds."""
    assert batch.draws is not None
    parts = (batch.images, batch.labels, batch.index, batch.draws)
    return hashlib.sha256(b"".join(part.numpy().tobytes() for part in parts)).hexdigest()


def apart(what: str, data: Path, *more: object) -> dict[str, Any]:
    """A measurement in a process of its own."""
    words = [sys.executable, __file__, str(data), "--part", what, *map(str, more)]
    done = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True)
    return dict(json.loads(done.stdout))


def main() -> None:
    """Make, measure, show, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("cifar", type=Path)
    parser.add_argument("--folder", type=Path, default=Path("runs/bench"), help="where the tar and the shards go")
    parser.add_argument("--pictures", type=int, default=200_000)
    parser.add_argument("--read", type=int, default=100_000, help="pictures after which memory is asked again")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=8.0, help="of each rate")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--part", choices=("start", "memory", "training", "resume"), help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help="file for the JSON; by default stdout")
    asked = parser.parse_args()
    if asked.part:
        found = {
            "start": lambda: start(asked.cifar),
            "memory": lambda: memory(asked.cifar, asked.read, asked.workers),
            "training": lambda: training(asked.cifar, asked.rounds, asked.seconds),
            "resume": lambda: resume(asked.cifar),
        }[asked.part]()
        print(json.dumps(found))
        return
    from bench.report import surroundings, write

    asked.folder.mkdir(parents=True, exist_ok=True)
    source = packed(asked.cifar, asked.folder, asked.pictures)
    data, took = shards(source, asked.folder / f"shards-{asked.pictures}")
    begins = [apart("start", data) for _ in range(5)]
    report = {
        **surroundings(),
        "pictures": asked.pictures,
        "writing_s": took,
        "start_s": median(one["start_s"] for one in begins),
        "starts": begins,
        "memory": {workers: apart("memory", data, "--read", asked.read, "--workers", workers) for workers in (0, 1, 2)},
        "training": apart("training", data, "--rounds", asked.rounds, "--seconds", asked.seconds),
        **apart("resume", data),
    }
    show(report)
    write(report, asked.out)


def show(report: dict[str, Any]) -> None:
    """The figures on stderr."""
    lines = [f"{report['pictures']:,} pictures: first batch after {report['start_s']:.2f} s"]
    for workers, one in report["memory"].items():
        told = ", ".join(f"{name} {value / 1e6:.0f} MB" for name, value in one.items() if name.startswith("after"))
        lines.append(f"{workers} workers: {told}; {one['pictures_a_second']:,.0f} pictures a second")
    for name, one in report["training"].items():
        rates = {what: median(turn[what] for turn in one["turns"]) for what in ("loader", "step", "together")}
        told = ", ".join(f"{what} {rate:,.0f}" for what, rate in rates.items())
        lines.append(f"{name}: {told} a second; {one['share_of_ceiling']:.1%} of the ceiling ({one['low']:.1%} to "
                     f"{one['high']:.1%})")  # fmt: skip
    lines.append(f"resumed amid an epoch: {'the same batches' if report['resume_exact'] else 'OTHER BATCHES'}")
    print("\n".join(lines), file=sys.stderr)


if __name__ == "__main__":
    main()
