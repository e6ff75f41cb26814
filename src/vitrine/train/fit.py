"""The training loop, to be read in a minute, and what happens at the end of an epoch."""

from __future__ import annotations

import contextlib
import json
import math
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from vitrine.config.options import Config
from vitrine.data.loader import Batch
from vitrine.errors import Diverged, Stopped
from vitrine.files import append_line, write_text
from vitrine.machine import ranks
from vitrine.machine.peaks import memory_peak
from vitrine.models.cost import macs
from vitrine.train import sharded
from vitrine.train.meter import Meter
from vitrine.train.objective import Objective
from vitrine.train.optim import Average, learning_rate
from vitrine.train.parallel import ALONE, Spread
from vitrine.train.state import Progress
from vitrine.train.step import StepResult, train_step
from vitrine.train.watch import Watch, beside
from vitrine.weights.bundle import LAST_FILE, MODEL_FILE

METRICS_FILE = "metrics.jsonl"
SAVE_EVERY_S = 15.0
CHECK_EVERY_STEPS = 50


@dataclass(frozen=True, kw_only=True)
class Validation:
    """How the weights do on the `n` pictures of the validation part: `top1` in [0, 1], mean `loss`.

    Where a picture may have several classes, `top1` is the share with all of them right, and there is `mean_ap`. Else
    `never` names classes that have pictures enough there and were the answer to none at all.
    """

    top1: float
    loss: float
    n: int
    never: tuple[str, ...] = ()
    mean_ap: float | None = None

    @property
    def score(self) -> float:
        """What the weights to keep are chosen by."""
        return self.top1 if self.mean_ap is None else self.mean_ap

    def record(self) -> dict[str, Any]:
        """The figures by their names in metrics.jsonl."""
        if self.mean_ap is not None:
            return {"val_map": self.mean_ap, "val_exact_match": self.top1, "val_loss": self.loss, "val_n": self.n}
        return {"val_top1": self.top1, "val_loss": self.loss, "val_n": self.n, "val_never": list(self.never)}


@dataclass(frozen=True, kw_only=True)
class Job:
    """All that the loop works with. `validate` is None where there is no validation part; `batch_size` is that of
    `config`, or all pictures where there are fewer. `on_epoch` is told each record of metrics.jsonl; `peak_flops` is
    what `machine.peaks.product_rate` measured, 0 where it was not."""

    out: Path
    config: Config
    model: nn.Module
    optimizer: torch.optim.Optimizer
    average: Average | None
    dtype: torch.dtype | None
    batch_size: int
    steps_per_epoch: int
    objective: Objective
    batches: Callable[[int, int], Generator[Batch, None, None]]
    validate: Callable[[nn.Module], Validation] | None
    save_model: Callable[[Path, nn.Module, Progress], None]
    watch: Watch
    on_epoch: Callable[[Mapping[str, Any]], None] = lambda record: None
    peak_flops: float = 0.0
    spread: Spread = ALONE

    @property
    def judged(self) -> nn.Module:
        """The weights that are validated and kept: the average where there is one."""
        return self.average.model if self.average is not None else self.model


def fit(job: Job, progress: Progress) -> None:
    """Train from `progress` to its end, which a time limit may bring nearer. Mutates the model and `progress`.

    Raises `Stopped` with the state saved when a signal asks for it, `Diverged` when a loss or a gradient is
    not finite; nothing is saved then.
    """
    began, save_at = time.monotonic() - progress.seconds, time.monotonic() + SAVE_EVERY_S
    meter = Meter(progress, _device(job.model), job.config.optim.clip_norm)
    detail = ""
    job.model.train()
    with (
        stop_asked() as stop,
        contextlib.closing(job.batches(progress.step, job.config.epochs * job.steps_per_epoch)) as batches,
    ):
        for batch in meter.through(batches):
            result = train_step(
                job.model, job.optimizer, batch, job.config,
                step=progress.step, num_steps=_num_steps(job, progress), dtype=job.dtype,
                objective=job.objective, spread=job.spread,
            )  # fmt: skip
            if job.average is not None:
                job.average.update(progress.step)
            meter.add(result)
            progress.step += 1
            now = time.monotonic()
            asked, due, progress.seconds = ranks.agreed(stop.is_set(), now > save_at, now - began)
            end_of_epoch = progress.step % job.steps_per_epoch == 0
            if end_of_epoch:
                refit(job, progress)
            last = progress.step >= _num_steps(job, progress) or 0 < job.config.max_time_s < progress.seconds
            stopping = asked and not last
            saving = stopping or (not last and due)
            if end_of_epoch or last or saving or progress.step % CHECK_EVERY_STEPS == 0:
                require_finite(meter.sums, job, progress)
                meter.settle()
                detail = _detail(job, progress, meter)
            if end_of_epoch or last:
                end_epoch(job, progress, result, meter, last=last)
                meter.reset()
            if saving:
                save_at = save(job, progress, meter)
            if stopping:
                raise Stopped(
                    f"{job.out}: stopped in epoch {epoch_of(job, progress)}, all is kept; the same command goes on."
                )
            job.watch.at(progress.step * job.batch_size, _num_steps(job, progress) * job.batch_size, detail)
            if last:
                break
    job.model.eval()


def _num_steps(job: Job, progress: Progress) -> int:
    return progress.epochs * job.steps_per_epoch


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def epoch_of(job: Job, progress: Progress) -> int:
    """The epoch, from 1, that the last step belongs to."""
    return max(1, -(-progress.step // job.steps_per_epoch))


def _so_far(job: Job, meter: Meter) -> dict[str, Any]:
    """The figures of the epoch under way, by their names in metrics.jsonl."""
    return meter.record(job.batch_size, "train_exact_match" if job.config.multi_label else "train_top1")


def _detail(job: Job, progress: Progress, meter: Meter) -> str:
    """What stands below the bar; asks the device, so not at every step."""
    found, several = _so_far(job, meter), job.config.multi_label
    return beside(
        loss=found["train_loss"],
        accuracy=found["train_exact_match" if several else "train_top1"],
        validation=progress.best,
        rate=learning_rate(job.config.optim, progress.step - 1, _num_steps(job, progress)),
        gradient=found["grad_norm_mean"],
        memory=memory_peak(_device(job.model)),
        share=_peak_share(job, found),
        words=("all classes right", "validation mAP") if several else ("accuracy", "validation"),
    )


def _peak_share(job: Job, found: Mapping[str, Any]) -> float:
    """The arithmetic of training over what the machine was measured to do; 0 where it was not.

    A step is three forward passes (the backward pass makes two products for each of the forward one's), a
    multiply-accumulate two operations.
    """
    return 6 * macs(job.config.model) * found["epoch_pictures_per_s"] / job.peak_flops if job.peak_flops else 0.0


def end_epoch(job: Job, progress: Progress, result: StepResult, meter: Meter, *, last: bool) -> None:
    """Validate, keep the best weights, and write the epoch's line to metrics.jsonl."""
    epoch, found_here = epoch_of(job, progress), _so_far(job, meter)
    record: dict[str, Any] = {
        "epoch": epoch,
        "epochs": progress.epochs,
        "step": progress.step,
        "lr": learning_rate(job.config.optim, progress.step - 1, _num_steps(job, progress)),
        "grad_norm": float(result.grad_norm),
        "pictures_per_s": progress.step * job.batch_size / progress.seconds,
        "seconds": round(progress.seconds, 3),
        **found_here,
        "memory_bytes": memory_peak(_device(job.model)),
        "peak_share": _peak_share(job, found_here) or None,
    }
    every = max(1, progress.epochs // 100)
    if job.validate is not None and (last or epoch % every == 0):
        found = job.validate(job.judged)
        job.model.train()
        if not math.isfinite(found.loss):
            raise diverged(job, progress)
        record |= found.record()
        if better(found, progress):
            progress.best, progress.best_loss, progress.best_epoch = found.score, found.loss, epoch
            job.save_model(job.out / MODEL_FILE, job.judged, progress)
        progress.peak = max(progress.peak, found.score)
    if ranks.first():
        append_line(job.out / METRICS_FILE, json.dumps(record))
    job.on_epoch(record)


def better(found: Validation, progress: Progress) -> bool:
    """Whether `found` is to be kept: the lowest loss among epochs within a standard error of the highest top-1.

    The highest top-1 itself is mostly luck where a validation part has a hundred pictures. With a mean average
    precision, which ranks all pictures of every class: the highest, and among equals the lowest loss.
    """
    if found.mean_ap is not None:
        return (found.mean_ap, -found.loss) > (progress.best, -progress.best_loss)
    peak = max(progress.peak, found.top1)
    floor = peak - math.sqrt(peak * (1 - peak) / found.n)
    return found.top1 >= floor and (progress.best < floor or found.loss <= progress.best_loss)


def refit(job: Job, progress: Progress) -> None:
    """Fit the number of epochs to the time limit at the pace seen so far, so that the schedule ends with the run.

    Never more than the configured epochs, and small changes are left alone.
    """
    limit, done = job.config.max_time_s, progress.step / job.steps_per_epoch
    if not limit or done >= progress.epochs:
        return
    affordable = min(job.config.epochs, max(math.ceil(done), int(limit * 0.97 / (progress.seconds / done))))
    if affordable < progress.epochs or affordable > 1.05 * progress.epochs:
        progress.epochs = affordable


def require_finite(sums: Tensor, job: Job, progress: Progress) -> None:
    """Raise `Diverged` where a loss or a gradient since the last look was not a number."""
    if not bool(torch.isfinite(sums).all()):
        raise diverged(job, progress)


def diverged(job: Job, progress: Progress) -> Diverged:
    """The error that says so; what was saved before stays."""
    rate = job.config.optim.lr
    return Diverged(
        f"{job.out}: the loss or its gradient is not finite at step {progress.step} (optim.lr = {rate:g}). "
        f"Begin anew in another --out with a lower rate: --optim.lr {rate / 3:.1g}."
    )


def save(job: Job, progress: Progress, meter: Meter) -> float:
    """Keep everything, the last weights for use and the state for going on; gives the time of the next save.

    Saving takes at most a twentieth of the time, however large the model.
    """
    began = time.monotonic()
    meter.keep(progress)
    job.save_model(job.out / LAST_FILE, job.judged, progress)
    if job.validate is None or not ranks.from_first(lambda: (job.out / MODEL_FILE).exists()):
        job.save_model(job.out / MODEL_FILE, job.judged, progress)
    sharded.save(job.out, job.model, job.optimizer, job.average, progress)
    ended = time.monotonic()
    return ended + max(SAVE_EVERY_S, 20 * (ended - began))


def rewind_metrics(out: Path, step: int) -> None:
    """Drop the lines of metrics.jsonl that lie after `step`: those epochs will be trained again."""
    path = out / METRICS_FILE
    if ranks.first() and path.exists():
        lines = path.read_text(encoding="utf-8").splitlines()
        kept = [line for line in lines if _step_of(line) <= step]
        write_text(path, "".join(line + "\n" for line in kept))


def _step_of(line: str) -> float:
    try:
        record: Mapping[str, Any] = json.loads(line)
        return float(record["step"])
    except (ValueError, KeyError):
        return math.inf  # a line that a kill cut off


@contextlib.contextmanager
def stop_asked() -> Iterator[threading.Event]:
    """An event that Ctrl-C or SIGTERM sets; a second one is an ordinary interrupt. Handlers are put back after."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return

    def handle(number: int, frame: FrameType | None) -> None:
        if event.is_set():
            raise KeyboardInterrupt
        event.set()

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
