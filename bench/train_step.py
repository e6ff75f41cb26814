"""Times one training step of ours against timm's: forward, cross-entropy, backward, fused AdamW.

    python bench/train_step.py --models ti,s,b,cifar --rounds 5 --out train_step.json

All ways are interleaved in one process on the same weights and the same random pictures. A table goes to
stderr, JSON to stdout or the file. Samples taken while other processes used more than 20 % of a core are
dropped and counted: a busy neighbour slows OpenMP regions many times over. The loss curves over some steps on
the same batches show whether a faster way changes what is learnt; timm under bf16 gives the scale of noise.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from bench.report import surroundings, write  # noqa: E402
from tests.parity.peers import timm_vit  # noqa: E402

from vitrine.config.architecture import ModelConfig  # noqa: E402
from vitrine.config.models import named  # noqa: E402
from vitrine.models.vit import VisionTransformer, Way, use_attention  # noqa: E402

FOREIGN_LIMIT = 0.2
REFERENCE = "timm fp32"
OURS = "ours bf16 written"


@dataclass(frozen=True, kw_only=True)
class Case:
    """A model and the batch it is timed at."""

    name: str
    batch: int
    num_classes: int = 1000


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One way to train: whose model, in which precision, with which attention (ours alone)."""

    peer: bool
    bf16: bool
    way: Way = "fused"


CASES = {
    "ti": Case(name="vit_tiny_patch16_224", batch=16),
    "s": Case(name="vit_small_patch16_224", batch=8),
    "b": Case(name="vit_base_patch16_224", batch=8),
    "cifar": Case(name="vit_mini_patch4_32", batch=128, num_classes=10),
}

VARIANTS = {
    REFERENCE: Variant(peer=True, bf16=False),
    "timm bf16": Variant(peer=True, bf16=True),
    "ours fp32 fused": Variant(peer=False, bf16=False),
    OURS: Variant(peer=False, bf16=True, way="written"),
}


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Seconds of one step, and the cores that other processes used before and during it (None: unknown)."""

    seconds: float
    foreign: float | None

    @property
    def clean(self) -> bool:
        """Whether the neighbours were quiet."""
        return self.foreign is None or self.foreign <= FOREIGN_LIMIT


def peer_of(config: ModelConfig) -> nn.Module:
    """timm's model of the same architecture."""
    return timm_vit(
        img_size=config.size, patch_size=config.patch_size, embed_dim=config.embed_dim, depth=config.depth,
        num_heads=config.num_heads, mlp_ratio=config.mlp_ratio, num_classes=config.num_classes, weight_init="skip",
    )  # fmt: skip


def build(case: Case, variant: Variant) -> nn.Module:
    """The model of `variant` in training mode, on weights that are the same for all variants of `case`."""
    torch.manual_seed(0)
    config = named(case.name, num_classes=case.num_classes, weight_init="timm")
    model = VisionTransformer(config)
    if not variant.peer:
        use_attention(model, variant.way)
        return model.train()
    peer = peer_of(config)
    peer.load_state_dict(model.state_dict(), strict=True)
    return peer.train()


def batches(case: Case, count: int) -> list[tuple[Tensor, Tensor]]:
    """`count` batches of normal random pictures and random labels."""
    generator = torch.Generator().manual_seed(1)
    sides = named(case.name).size
    return [
        (
            torch.randn(case.batch, 3, *sides, generator=generator),
            torch.randint(case.num_classes, (case.batch,), generator=generator),
        )
        for _ in range(count)
    ]


def stepper(model: nn.Module, bf16: bool) -> Callable[[Tensor, Tensor], float]:
    """A function that does one training step and gives the loss before it."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-4, weight_decay=0.05, fused=True)

    def step(images: Tensor, labels: Tensor) -> float:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            logits = model(images)
        loss = F.cross_entropy(logits.float(), labels)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        return loss.item()

    return step


def cpu_seconds() -> tuple[float, float] | None:
    """CPU seconds that the machine and this process have used, or None where the system does not say."""
    try:
        fields = Path("/proc/stat").read_text().splitlines()[0].split()[1:9]
    except OSError:
        return None
    user, nice, system, _, _, irq, softirq, _ = map(int, fields)
    own = os.times()
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK"), own.user + own.system


def foreign_cores(before: tuple[float, float] | None, wall: float) -> float | None:
    """Cores that other processes kept busy since `before`, over `wall` seconds."""
    after = cpu_seconds()
    if before is None or after is None:
        return None
    machine, own = after[0] - before[0], after[1] - before[1]
    return max(0.0, machine - own) / wall


def take(step: Callable[[Tensor, Tensor], float], batch: tuple[Tensor, Tensor]) -> Sample:
    """One timed step, with a look at the neighbours for 0.3 s before and while it runs."""
    before = cpu_seconds()
    time.sleep(0.3)
    quiet = foreign_cores(before, 0.3)
    before, start = cpu_seconds(), time.perf_counter()
    step(*batch)
    seconds = time.perf_counter() - start
    # The clock ticks 100 times a second: over a short step it says too little to judge by.
    during = foreign_cores(before, seconds) if seconds > 0.3 else quiet
    return Sample(seconds=seconds, foreign=None if quiet is None or during is None else max(quiet, during))


def measure(case: Case, rounds: int, warmup: int) -> dict[str, list[Sample]]:
    """Samples of every variant, taken in turn, until each has `rounds` clean ones or three times as many were tried."""
    steps = {name: stepper(build(case, variant), variant.bf16) for name, variant in VARIANTS.items()}
    (batch,) = batches(case, 1)
    for step in steps.values():
        for _ in range(warmup):
            step(*batch)
    samples: dict[str, list[Sample]] = {name: [] for name in steps}
    for _ in range(3 * rounds):
        wanting = [name for name, taken in samples.items() if sum(s.clean for s in taken) < rounds]
        if not wanting:
            break
        # A full round each time: ratios hold between samples taken side by side.
        for name, step in steps.items():
            samples[name].append(take(step, batch))
    return samples


def curve(case: Case, variant: Variant, num_steps: int) -> list[float]:
    """The losses of `num_steps` steps over four batches in turn."""
    step, data = stepper(build(case, variant), variant.bf16), batches(case, 4)
    return [step(*data[i % len(data)]) for i in range(num_steps)]


def curves(case: Case, num_steps: int) -> dict[str, Any]:
    """Loss curves, and their largest distances from timm's in fp32."""
    losses = {name: curve(case, VARIANTS[name], num_steps) for name in (REFERENCE, "timm bf16", OURS)}
    distance = {
        name: max(abs(one - other) for one, other in zip(values, losses[REFERENCE], strict=True))
        for name, values in losses.items()
        if name != REFERENCE
    }
    return {"steps": num_steps, "losses": losses, "max_abs_difference_to_timm_fp32": distance}


def rows(case: Case, samples: dict[str, list[Sample]]) -> Iterator[dict[str, Any]]:
    """One row a variant. The ratio is of medians: times faster than timm in fp32. Without clean samples: nulls."""
    clean = {name: sorted(s.seconds for s in taken if s.clean) for name, taken in samples.items()}
    for name, taken in samples.items():
        times = clean[name]
        middle = median(times) if times else None
        reference = median(clean[REFERENCE]) if clean[REFERENCE] else None
        yield {
            "way": name,
            "n": len(times),
            "dropped": len(taken) - len(times),
            "median_s": middle,
            "low_s": times[0] if times else None,
            "high_s": times[-1] if times else None,
            "ratio": reference / middle if reference and middle else None,
            "pictures_per_s": case.batch / middle if middle else None,
            "foreign_cores": [None if s.foreign is None else round(s.foreign, 2) for s in taken],
        }


def show(name: str, case: Case, result: dict[str, Any]) -> None:
    """The rows of one model as a table on stderr."""
    print(f"\n{name}: {case.name}, batch {case.batch}", file=sys.stderr)
    print(f"{'way':<20}{'n':>3}{'drop':>5}{'median s':>10}{'low':>9}{'high':>9}{'pict./s':>9}{'ratio':>7}",
          file=sys.stderr)  # fmt: skip
    for row in result["rows"]:
        start = f"{row['way']:<20}{row['n']:>3}{row['dropped']:>5}"
        if row["median_s"] is None:
            print(f"{start}  no sample without foreign load", file=sys.stderr)
            continue
        ratio = "-" if row["ratio"] is None else f"{row['ratio']:.2f}"
        times = f"{row['median_s']:>10.3f}{row['low_s']:>9.3f}{row['high_s']:>9.3f}"
        print(f"{start}{times}{row['pictures_per_s']:>9.1f}{ratio:>7}", file=sys.stderr)
    if result["curves"]:
        for way, distance in result["curves"]["max_abs_difference_to_timm_fp32"].items():
            steps = result["curves"]["steps"]
            print(f"loss over {steps} steps, {way} against {REFERENCE}: at most {distance:.4f}", file=sys.stderr)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--models", default="ti,s,b,cifar", help=f"comma-separated, of {', '.join(CASES)}")
    parser.add_argument("--rounds", type=int, default=5, help="clean samples wanted of each way")
    parser.add_argument("--warmup", type=int, default=2, help="steps before the first sample")
    parser.add_argument("--curve-steps", type=int, default=30, help="steps of the loss curves; 0 for none")
    parser.add_argument("--out", type=Path, help="file for the JSON; by default stdout")
    given = parser.parse_args()
    unknown = [name for name in given.models.split(",") if name not in CASES]
    if unknown:
        parser.error(f"--models {unknown[0]}: must be of {', '.join(CASES)}")
    if given.rounds < 1 or given.warmup < 0 or given.curve_steps < 0:
        parser.error("--rounds must be at least 1, --warmup and --curve-steps 0 or more")
    return given


def main() -> None:
    """Measure, show, write."""
    given = arguments()
    report = {**surroundings(), "foreign_limit_cores": FOREIGN_LIMIT, "models": {}}
    for name in given.models.split(","):
        case = CASES[name]
        result = {
            "model": case.name,
            "batch": case.batch,
            "rows": list(rows(case, measure(case, given.rounds, given.warmup))),
            "curves": curves(case, given.curve_steps) if given.curve_steps else None,
        }
        report["models"][name] = result
        show(name, case, result)
    write(report, given.out)


if __name__ == "__main__":
    main()
