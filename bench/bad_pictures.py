"""What 1 % of bad pictures costs the loader: pictures a second with and without them, in turns.

    python bench/bad_pictures.py --pictures 5000 --rounds 7 --out bad.json

Random JPEGs of 128 pixels lie in one tar, and in another every hundredth of them is empty, cut off, a text, or a PNG
that claims 60,000 x 60,000 pixels. Both are read as pictures are in training, decoded as they are needed, `--epochs`
times over without a look beforehand. Threads decode (`--workers` 0) or processes. The cost is one less the ratio of the
rates, median of the turns with the smallest and largest; pictures that are bad count as pictures.
"""

from __future__ import annotations

import argparse
import io
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from bench.report import surroundings, write  # noqa: E402
from tests.train.test_bad_pictures import bomb  # noqa: E402

from vitrine.config.options import AugmentConfig, DataConfig  # noqa: E402
from vitrine.data import loader, scan, sources, store  # noqa: E402

BATCH, CLASSES = 100, 10


def packed(path: Path, count: int, spoil: bool) -> Path:
    """A tar of class folders; where asked every hundredth picture is bad."""
    rng = np.random.default_rng(0)
    bad = (b"", None, b"<html>sorry</html>", bomb())
    with tarfile.open(path, "w") as made:
        for i in range(count):
            coarse = Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8))
            into = io.BytesIO()
            coarse.resize((128, 128), Image.Resampling.BICUBIC).save(into, "JPEG", quality=90)
            content = into.getvalue()
            if spoil and i % 100 == 50:
                other = bad[i // 100 % len(bad)]
                content = content[: len(content) // 2] if other is None else other
            about = tarfile.TarInfo(f"{i % CLASSES}/{i}.jpg")
            about.size = len(content)
            made.addfile(about, io.BytesIO(content))
    return path


def rate(path: Path, epochs: int, workers: int) -> tuple[float, int]:
    """Pictures a second of the loader, and how many were named as bad."""
    settings = DataConfig(source=str(path))
    source = sources.open_source(settings)
    scan.LARGE = 0
    scan.SAMPLE = 10
    kept = store.store(source, scan.scan(source, settings), channels=3, keep_side=None, budget_bytes=0)
    told: list[str] = []
    steps = epochs * len(source) // BATCH
    began = time.perf_counter()
    for _ in loader.training(
        kept, source, np.arange(len(source)), size=(96, 96), batch_size=BATCH, seed=0,
        augment=AugmentConfig(crop_min_area=0.5), first_step=0, last_step=steps, num_workers=workers,
        on_bad=lambda name, reason: told.append(name),
    ):  # fmt: skip
        pass
    return steps * BATCH / (time.perf_counter() - began), len(told)


def main() -> None:
    """Make, measure, show, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--pictures", type=int, default=5000)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--out", type=Path, help="file for the JSON; by default stdout")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        sound = packed(Path(folder) / "sound.tar", asked.pictures, False)
        spoilt = packed(Path(folder) / "spoilt.tar", asked.pictures, True)
        turns = []
        for turn in range(asked.rounds):
            pair = [rate(path, asked.epochs, asked.workers) for path in ((sound, spoilt), (spoilt, sound))[turn % 2]]
            (without, _), (with_bad, told) = pair if turn % 2 == 0 else pair[::-1]
            turns.append({"without": without, "with": with_bad, "told": told, "cost": 1 - with_bad / without})
    costs = [turn["cost"] for turn in turns]
    report = {
        **surroundings(), "cost": median(costs), "low": min(costs), "high": max(costs), "turns": turns,
    }  # fmt: skip
    print(
        f"{turns[0]['told']} bad pictures of {asked.pictures:,} named; cost {median(costs):.1%} of the rate "
        f"({min(costs):.1%} to {max(costs):.1%}, n = {len(costs)})",
        file=sys.stderr,
    )
    write(report, asked.out)


if __name__ == "__main__":
    main()
