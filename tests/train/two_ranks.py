"""Ten steps of a toy model, alone or spread over ranks: what tests of several processes compare.

`python -m tests.train.two_ranks FOLDER WAY ...`, started once a rank, writes what rank 0 saw.
"""

from __future__ import annotations

import copy
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tests.made import small
from vitrine.config.distill import DistillConfig
from vitrine.config.options import AugmentConfig, Config, OptimConfig, PreprocessConfig
from vitrine.config.parallel import ParallelConfig
from vitrine.config.saving import SaveConfig
from vitrine.data.loader import Batch
from vitrine.evaluate.outputs import collect
from vitrine.images.mixing import rows_of
from vitrine.machine import ranks
from vitrine.models.networks import network
from vitrine.train import modes, parallel, shards, split, states
from vitrine.train.distill import distil
from vitrine.train.optim import Average, optimizer
from vitrine.train.parallel import Spread
from vitrine.train.saver import Saver
from vitrine.train.state import Progress
from vitrine.train.step import train_step
from vitrine.train.task import module_for, objective_for
from vitrine.weights import container

STEPS = 10
KEPT = "in pieces, mixed, clipped, averaged"

# The gradient of a bias of keys is rounding alone, and AdamW with a small eps would make whole steps of it.
ADAMW: dict[str, Any] = {"optim": OptimConfig(lr=3e-3, eps=1e-5, clip_norm=0.5, warmup_steps=2)}
MIXED = AugmentConfig(mixup=0.4, cutmix=0.8, shift=0.1)
EACH = replace(MIXED, mix_per="picture")
BLOCKS: dict[str, Any] = {"model": small(depth=2, weight_init="timm", qkv_bias=False)}

EVERYWHERE: dict[str, dict[str, Any]] = {
    "plain": {**ADAMW},
    KEPT: {**ADAMW, "augment": MIXED, "accumulate": 3, "ema_decay": 0.9},
    "an odd batch, each picture mixed by itself": {**ADAMW, "augment": EACH, "batch_size": 15, "accumulate": 4},
    "layer by layer, blocks computed again": {
        "optim": OptimConfig(lr=3e-3, eps=1e-5, layer_decay=0.7), "loss": "bce", "grad_checkpointing": "on",
        "accumulate": 2,
    },
    "lamb": {"optim": OptimConfig(name="lamb", lr=1e-2, eps=1e-5), "augment": EACH, "ema_decay": 0.9},
    "sgd, a gated mlp": {
        "optim": OptimConfig(name="sgd", lr=0.1, clip_norm=0.3), "augment": EACH,
        "model": small(depth=2, weight_init="timm", mlp_layer="swiglu", init_values=0.1),
    },
    "hidden patches": {**ADAMW, "task": "masked_patches", "model": small(depth=2, num_classes=0), "accumulate": 2},
}  # fmt: skip
WHOLE_ONLY: dict[str, dict[str, Any]] = {
    "muon": {"optim": OptimConfig(name="muon", lr=3e-3, eps=1e-5), **BLOCKS},
    "head": {**ADAMW, "mode": "head", "accumulate": 2},
    "attention": {**ADAMW, "mode": "attention", "accumulate": 2},
    "adapters": {**ADAMW, "mode": "lora", "accumulate": 2},
    "distilled": {
        **ADAMW, "distill": DistillConfig(kind="hard", teacher="x"), "model": small(depth=2, distilled=True),
        "label_smoothing": 0.1,
    },
}  # fmt: skip


def cases(mode: str) -> dict[str, dict[str, Any]]:
    """The cases of a way to spread."""
    return EVERYWHERE | (WHOLE_ONLY if mode in ("alone", "ddp") else {})


def config(options: dict[str, Any], **parallel_options: Any) -> Config:
    """The configuration of a case."""
    made = {
        "model": small(depth=2, weight_init="timm"), "preprocess": PreprocessConfig(size=(16, 16)), "batch_size": 16,
        "label_smoothing": 0.1, "seed": 3, **options,
    }  # fmt: skip
    if made.get("task") == "masked_patches":
        made["label_smoothing"] = 0.0
    return Config(**made, parallel=ParallelConfig(**parallel_options))


def batch(step: int, size: int, spread: Spread) -> Batch:
    """The rows of a spread of a batch with bad pictures, all of them in one half now and then."""
    generator = torch.Generator().manual_seed(step)
    weights = torch.ones(size)
    weights[torch.randperm(size, generator=generator)[: step % 4]] = 0
    if step == 5:
        weights[: size // 4] = weights[-size // 4 :] = 0
    every = {
        "images": torch.randint(0, 256, (size, 3, 16, 16), generator=generator, dtype=torch.uint8),
        "labels": torch.randint(3, (size,), generator=generator),
        "weights": weights,
        "index": torch.arange(size),
        "draws": torch.rand(size, 16, generator=generator, dtype=torch.float64),
    }
    if spread.parts == 1:
        return Batch(**every)
    rows = rows_of(size, spread.number, spread.parts)
    return Batch(**{name: tensor[rows] for name, tensor in every.items()}, rows=rows, whole=size)


def teacher(images: Tensor) -> Tensor:
    """Answers that follow from the pictures alone."""
    return images.mean((2, 3)) * 5


def made(
    settings: Config, mode: parallel.Mode, dtype: torch.dtype | None = None, seed: int = 3
) -> tuple[nn.Module, torch.optim.Optimizer, Average | None, Spread]:
    """A model, its optimiser and its average, spread so."""
    torch.manual_seed(seed)
    net = network(settings.model)
    modes.prepare(net, settings)
    model = module_for(settings, net).train()
    twin = copy.deepcopy(model)
    spread = parallel.spread(mode, [model, twin], settings, torch.device("cpu"), dtype)
    average = Average(model, settings.ema_decay, twin) if settings.ema_decay else None
    return model, optimizer(model, settings.optim), average, spread


def go_on(out: Path, model: nn.Module, optimiser: torch.optim.Optimizer, average: Average | None) -> int:
    """The step after which the newest state in `out` was kept; it is put into these."""
    found = states.newest(out)
    assert found is not None and not found[3]
    return states.put(*found[:3], model, optimiser, average)[0].step


def steps(
    settings: Config, mode: parallel.Mode, dtype: torch.dtype | None = None, *, begin: Path | None = None,
    until: int = STEPS, keep: Path | None = None,
) -> dict[str, Tensor]:  # fmt: skip
    """What rank 0 sees of ten steps: curves of losses, gradients and right answers, final weights and averages.

    Goes on from the state in `begin`, and leaves one in `keep` after step `until`.
    """
    model, optimiser, average, spread = made(settings, mode, dtype, seed=3 if begin is None else 8)
    first = go_on(begin, model, optimiser, average) if begin is not None else 0
    follows = settings.distill.kind != "none"
    objective = distil(settings, teacher) if follows else objective_for(settings, torch.device("cpu"))
    spread, objective = spread.meeting(model, objective)
    curves: dict[str, list[float]] = {"loss": [], "norm": [], "correct": [], "weight": []}
    for step in range(first, until):
        seen = train_step(
            model, optimiser, batch(step, settings.batch_size, spread), settings,
            step=step, num_steps=STEPS, dtype=dtype, objective=objective, spread=spread,
        )  # fmt: skip
        if average is not None:
            average.update(step)
        for name, value in zip(curves, (seen.loss, seen.grad_norm, seen.correct, seen.weight), strict=True):
            curves[name].append(float(value))
    if keep is not None:
        with Saver(keep, SaveConfig(), model, optimiser, average, lambda *_: None) as saver:
            saver.state(Progress(step=until, epochs=1), models=False)
    found = {f"curve.{name}": torch.tensor(values) for name, values in curves.items()}
    found |= {f"model.{name}": tensor for name, tensor in shards.whole(model).items()}
    if average is not None:
        found |= {f"average.{name}": tensor for name, tensor in shards.whole(average.model).items()}
    return found


def options_of(way: str) -> tuple[parallel.Mode, dict[str, Any]]:
    """The way to spread by a name of these tests, and its options."""
    if way == "both":
        return "fsdp", {"tensor": 2}
    return way, {"tensor": ranks.here().world} if way == "tensor" else {}  # type: ignore[return-value]


def judged(settings: Config, mode: parallel.Mode) -> dict[str, Tensor]:
    """Answers to 27 pictures in batches of 5, one of which cannot be read: of two ranks each asks another number of
    times, and of ten pictures at the end the second one has none that can be read."""
    model, _, _, spread = made(settings, mode)
    model.eval()
    pictures = torch.randn(37, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    found = {}
    for name, part, bad in (("some", np.arange(27), {3}), ("none", np.arange(27, 37), set(range(28, 37, 2)))):
        mine = np.array([i for i in split.share(part, spread) if i not in bad], int)
        batches = ((pictures[of], torch.from_numpy(of % 3)) for of in np.split(mine, range(5, len(mine), 5)) if len(of))
        example = torch.zeros(1, 3, 16, 16), torch.zeros(1, dtype=torch.int64)
        answers = collect(model, split.in_step(batches, spread, example))
        spread.rested(model)
        answers = split.together(answers, mine - part[0], spread)
        found[f"{name}.loss"] = torch.from_numpy(answers.log_probability)
        found[f"{name}.label"] = torch.from_numpy(answers.label)
    return found


def from_states(folder: Path, ways: tuple[str, ...]) -> None:
    """Every way to spread goes on from the state that every other, and one process, left in the middle."""
    options = EVERYWHERE[KEPT]
    for way in ways:
        mode, own = options_of(way)
        if ranks.first():
            (folder / way).mkdir()
        ranks.wait()
        steps(config(options, **own), mode, until=STEPS // 2, keep=folder / way)
    for way in ways:
        mode, own = options_of(way)
        for before in ("alone", *ways):
            found = steps(config(options, **own), mode, begin=folder / before)
            write(folder, f"{way} after {before}", found)


def write(folder: Path, name: str, found: dict[str, Tensor]) -> None:
    """Leave what rank 0 saw in a file of that name."""
    if ranks.first():
        container.write(folder / f"{name}.safetensors", found, {})


def main(folder: str, *ways: str) -> None:
    """Run every case of these ways to spread, then let them go on from each other's states."""
    torch.set_num_threads(1)
    with ranks.joined("cpu", 60.0):
        for way in ways:
            mode, own = options_of(way)
            for name, options in cases(way).items():
                write(Path(folder), f"{way} {name}", steps(config(options, **own), mode))
            if way == "fsdp":
                found = steps(config(EVERYWHERE["plain"], **own), mode, torch.bfloat16)
                write(Path(folder), "fsdp in bfloat16", found)
                write(Path(folder), "fsdp judged", judged(config(EVERYWHERE["plain"], **own), mode))
        from_states(Path(folder), ways)


if __name__ == "__main__":
    main(*sys.argv[1:])
