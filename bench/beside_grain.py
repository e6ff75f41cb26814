"""Our loader beside Grain's on one task: the same tar, decoder and pictures, no augmentation.

    PYTHONPATH=GRAIN python bench/beside_grain.py SHARDS --pictures 20000 --rounds 3 --out grain.json

GRAIN is a folder with grain 0.2.18 (`pip install --target GRAIN grain`); it is no dependency. SHARDS is a folder that
`vitrine shards` wrote, of pictures of 32 pixels. Both decode by `Source.picture`, shuffle all pictures of an epoch, and
give batches of 128 as uint8. Measured for 0, 1 and 2 processes: pictures a second after the first batch; seconds to the
first batch from step 0 and from step 10,000; whether the batches are the same for any number of processes and from a
resumed position. A table goes to stderr, JSON to stdout or the file.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from bench.report import surroundings, write  # noqa: E402

from vitrine.config.options import AugmentConfig, DataConfig  # noqa: E402
from vitrine.data import loader, scan, sources, store  # noqa: E402

BATCH, LATE = 128, 10_000
Batches = Iterator[np.ndarray]


def opened(path: Path) -> sources.Source:
    """The pictures."""
    return sources.open_source(DataConfig(source=str(path)))


def ours(source: sources.Source, workers: int, first: int) -> Batches:
    """Indices of the batches from step `first` on; every picture decoded."""
    store.LARGE = 0
    kept = store.store(source, scan.scan(source, DataConfig()), channels=3, keep_side=None, budget_bytes=0)
    made = loader.training(
        kept, source, np.arange(len(source)), size=(32, 32), batch_size=BATCH, seed=0, augment=AugmentConfig(),
        first_step=first, last_step=10**7, num_workers=workers, on_bad=lambda *_: None,
    )  # fmt: skip
    for batch in made:
        yield batch.index.numpy()


class Pictures:
    """What Grain reads: a picture and its number by key."""

    def __init__(self, path: Path) -> None:
        self.source = opened(path)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, i: int) -> dict[str, Any]:
        pixels = np.asarray(self.source.picture(int(i)).convert("RGB"))
        return {"image": pixels, "index": np.int64(i), "label": self.source.labels[int(i)]}


def grains(path: Path, workers: int, first: int) -> Batches:
    """The same by Grain's `MapDataset`, its own way to a position: the state of an iterator."""
    import grain
    from absl import flags

    flags.FLAGS.mark_as_parsed()  # its processes ask for flags that a program without absl never parsed
    data = grain.MapDataset.source(Pictures(path)).seed(0).shuffle().repeat(None).batch(BATCH)
    iterator = data.to_iter_dataset(grain.ReadOptions(num_threads=2 if not workers else 1, prefetch_buffer_size=16))
    if workers:
        iterator = iterator.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers))
    made = iter(iterator)
    if first:
        made.set_state(_at(made.get_state(), first, workers))
    for batch in made:
        yield batch["index"]


def _at(state: dict[str, Any], first: int, workers: int) -> dict[str, Any]:
    """A fresh state moved to a step; what a saved one of that step holds."""
    if not workers:
        return {**state, "next_index": first}
    each = [{"next_index": first // workers + (number < first % workers)} for number in range(workers)]
    return {**state, "next_index_in_cycle": first % workers, "iterators_in_use_states": each}


def measured(make: Callable[[int], Batches], count: int) -> tuple[float, float]:
    """Seconds to the first batch, and pictures a second after it."""
    began = time.perf_counter()
    batches = make(0)
    next(batches)
    first = time.perf_counter()
    for _ in range(count // BATCH):
        next(batches)
    rate = count // BATCH * BATCH / (time.perf_counter() - first)
    return first - began, rate


def _first(make: Callable[[int], Batches], step: int) -> tuple[float, list[int]]:
    """Seconds to the batch of that step, and the pictures of it and the next."""
    began = time.perf_counter()
    batches = make(step)
    found = next(batches)
    seconds = time.perf_counter() - began
    return seconds, [*found.tolist(), *next(batches).tolist()]


def main() -> None:
    """Measure, show, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("shards", type=Path)
    parser.add_argument("--pictures", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="file for the JSON; by default stdout")
    asked = parser.parse_args()
    began = time.perf_counter()
    import grain

    report: dict[str, Any] = {
        **surroundings(), "grain": grain.__version__, "import_grain_s": time.perf_counter() - began,
    }  # fmt: skip
    source = opened(asked.shards)
    for name, make in (("ours", ours), ("grain", grains)):
        of = source if name == "ours" else asked.shards
        seen, rows = {}, {}
        for workers in (0, 1, 2):
            at = partial(make, of, workers)  # type: ignore[arg-type]
            turns = [measured(at, asked.pictures) for _ in range(asked.rounds)]
            late, seen[workers] = _first(at, LATE)
            rows[workers] = {
                "first_s": median(turn[0] for turn in turns), "rate": median(turn[1] for turn in turns),
                "rates": [turn[1] for turn in turns], "late_first_s": late,
            }  # fmt: skip
            print(f"{name:>6} {workers} processes: {rows[workers]['rate']:,.0f} pictures a second, first batch "
                  f"{rows[workers]['first_s']:.2f} s, from step {LATE:,} {late:.2f} s", file=sys.stderr)  # fmt: skip
        same = len({tuple(found) for found in seen.values()}) == 1
        print(f"{name:>6}: from step {LATE:,} {'the same' if same else 'OTHER'} batches for 0, 1, 2", file=sys.stderr)
        report[name] = {"rows": rows, "same_for_any_number": same}
    write(report, asked.out)


if __name__ == "__main__":
    main()
