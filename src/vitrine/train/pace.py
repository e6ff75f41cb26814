"""How long a step takes here, measured on random pictures before the length of a run is settled."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch

from vitrine.config.options import Config
from vitrine.data.loader import Batch
from vitrine.errors import Unavailable
from vitrine.machine import device as machine
from vitrine.models.networks import network
from vitrine.models.vit import use_attention
from vitrine.train import features, modes
from vitrine.train.distill import Teacher
from vitrine.train.objective import Objective, objective_of
from vitrine.train.optim import optimizer
from vitrine.train.step import train_step
from vitrine.train.task import module_for, objective_for

WARM_UP, LEAST, LONGEST_S = 2, 3, 2.0
MOST_ON_A_CPU = 128
"""Pictures of a recipe's step that are enough to measure it on a CPU, whose time is in proportion to them."""

WORTH_ASKING_S = 1.0
"""A longer step keeps all threads busy, or the machine is not ours: a second trial would only cost time."""


def best_threads(
    config: Config, device: torch.device, num_train: int, teacher: Teacher | None = None
) -> tuple[int, float]:
    """The number of threads that trains fastest here, and seconds per step with it.

    For a tiny model, or beside another busy program, one thread beats several that wait for each other.
    Leaves torch with that number.
    """
    batch = min(config.batch_size, num_train)
    config = replace(config, batch_size=batch, accumulate=min(config.accumulate, batch))
    if config.recipe and device.type == "cpu" and batch > MOST_ON_A_CPU:
        part = replace(config, batch_size=MOST_ON_A_CPU, accumulate=-(-config.accumulate * MOST_ON_A_CPU // batch))
        threads, step_s = best_threads(part, device, num_train, teacher)
        return threads, step_s * batch / MOST_ON_A_CPU
    every = torch.get_num_threads()
    if device.type != "cpu" or config.threads or every == 1:
        torch.set_num_threads(config.threads or every)
        return config.threads or every, seconds_per_step(config, device, teacher)
    found = {every: seconds_per_step(config, device, teacher)}
    if found[every] > WORTH_ASKING_S:
        return every, found[every]
    torch.set_num_threads(1)
    found[1] = seconds_per_step(config, device, teacher)
    threads = 1 if found[1] < 0.9 * found[every] else every
    torch.set_num_threads(threads)
    return threads, found[threads]


def seconds_per_step(config: Config, device: torch.device, teacher: Teacher | None = None) -> float:
    """Median seconds of a training step of `config`, which includes everything but loading.

    Raises `Unavailable` where there is no space for the batch.
    """
    with space_for(config.batch_size, "Try"):
        objective = objective_for(config, device, teacher=teacher)
        return float(np.median(_times(config, device, _batch(config), objective)))


def seconds_per_head_step(config: Config, device: torch.device) -> float:
    """As `seconds_per_step`, of a head alone on what frozen layers have made of the pictures."""
    objective = objective_of(config, answer=features.answer)
    return float(np.median(_times(config, device, features.example(config), objective)))


@contextmanager
def space_for(batch_size: int, remedy: str) -> Iterator[None]:
    """Raise `Unavailable` where the batch does not fit into memory; `remedy` leads to half of it."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not machine.is_out_of_memory(error):
            raise
        raise Unavailable(
            f"--batch-size {batch_size}: there is no space for such a batch. "
            f"{remedy} --batch-size {max(1, batch_size // 2)}."
        ) from error


def _times(config: Config, device: torch.device, batch: Batch, objective: Objective) -> list[float]:
    dtype = machine.autocast_dtype(device, config.precision)
    bare = network(config.model)
    modes.prepare(bare, config)
    model = module_for(config, bare).to(device)
    use_attention(model, machine.attention_way(device, dtype, config.model.num_tokens))
    optimiser, times = optimizer(model, config.optim), list[float]()
    while len(times) < WARM_UP + LEAST or sum(times) < LONGEST_S / 2:
        began = time.perf_counter()
        train_step(model, optimiser, batch, config, step=0, num_steps=1, dtype=dtype, objective=objective)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - began)
        if sum(times) > LONGEST_S and len(times) > WARM_UP:
            break
    return times[WARM_UP:]


def _batch(config: Config) -> Batch:
    rng = np.random.default_rng(0)
    B, K = config.batch_size, config.model.num_classes
    return Batch(
        images=torch.from_numpy(rng.integers(0, 256, (B, config.model.in_chans, *config.model.size), dtype=np.uint8)),
        labels=torch.from_numpy(
            rng.integers(0, 2, (B, K), np.uint8) if config.multi_label else rng.integers(0, max(1, K), B)
        ),
        weights=torch.ones(B),
        index=torch.arange(B),
        draws=torch.from_numpy(rng.random((B, 16))),
    )
