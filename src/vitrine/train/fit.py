"""The training loop, to be read in a minute, and what happens at the end of an epoch."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vitrine.config.options import Config
from vitrine.data.loader import Batch
from vitrine.errors import Diverged, Stopped
from vitrine.files import append_line, write_text
from vitrine.machine import ranks
from vitrine.machine.peaks import memory_peak
from vitrine.models.cost import macs
from vitrine.train.asked import Asked
from vitrine.train.finite import IN_A_ROW, Lost, Refused, told
from vitrine.train.meter import Meter
from vitrine.train.objective import Objective
from vitrine.train.optim import Average, learning_rate
from vitrine.train.parallel import ALONE, Spread
from vitrine.train.saver import Saver
from vitrine.train.state import Progress
from vitrine.train.step import train_step
from vitrine.train.watch import Watch, beside
from vitrine.weights.bundle import MODEL_FILE

METRICS_FILE = "metrics.jsonl"
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
    saver: Saver | None = None
    asked: Asked = field(default_factory=Asked)
    on_epoch: Callable[[Mapping[str, Any]], None] = lambda record: None
    peak_flops: float = 0.0
    spread: Spread = ALONE

    @property
    def judged(self) -> nn.Module:
        """The weights that are validated and kept: the average where there is one."""
        return self.average.model if self.average is not None else self.model


def fit(job: Job, progress: Progress) -> None:
    """Train from `progress` to its end, which a time limit may bring nearer. Mutates the model and `progress`.

    Raises `Stopped` with the state saved when a signal asks for it; `Lost` when too many steps in a row were refused
    because a loss or a gradient was not finite, `Diverged` when the validation loss is not: nothing is saved then.
    """
    began = time.monotonic() - progress.seconds
    meter = Meter(progress, _device(job.model), job.config.optim.clip_norm)
    refused, detail = Refused(progress.in_a_row), ""
    if progress.ending:
        _ends(job, progress, meter)
    with contextlib.closing(_batches(job, progress)) as batches:
        job.model.train()
        for batch in meter.through(batches):
            result = train_step(
                job.model, job.optimizer, batch, job.config,
                step=progress.step, num_steps=_num_steps(job, progress), dtype=job.dtype,
                objective=job.objective, spread=job.spread,
            )  # fmt: skip
            if job.average is not None:
                job.average.update(progress.step, result.refused)
            meter.add(result)
            refused.add(result.refused)
            progress.step += 1
            due = job.asked.save or _saver(job).due(progress.step)
            stop, saving, progress.seconds = ranks.agreed(job.asked.stop, due, time.monotonic() - began)
            saving |= stop
            end_of_epoch = progress.step % job.steps_per_epoch == 0
            if end_of_epoch:
                refit(job, progress)
            progress.done = progress.step >= _num_steps(job, progress) or 0 < job.config.max_time_s < progress.seconds
            progress.ending = end_of_epoch or progress.done
            if progress.ending or saving or refused.urgent or progress.step % CHECK_EVERY_STEPS == 0:
                look(job, progress, meter, refused)
                detail = _detail(job, progress, meter)
                # Steps are being refused: the weights may be what is wrong, and are no place to go back to.
                saving &= stop or not progress.in_a_row
            if progress.ending:
                _ends(job, progress, meter)
            if saving or progress.done:
                save(job, progress, meter, stop=stop)
            if stop:
                leave(job, progress)
            job.watch.at(progress.step * job.batch_size, _num_steps(job, progress) * job.batch_size, detail)
            if progress.done:
                break
    job.model.eval()


def _batches(job: Job, progress: Progress) -> Generator[Batch, None, None]:
    """Those that are still to come."""
    if not progress.done:
        yield from job.batches(progress.step, job.config.epochs * job.steps_per_epoch)


def _saver(job: Job) -> Saver:
    assert job.saver is not None
    return job.saver


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


def look(job: Job, progress: Progress, meter: Meter, refused: Refused) -> None:
    """Ask the device: which steps were refused since the last look is told and noted down.

    Raises `Lost` where they were too many in a row.
    """
    found, lost = refused.look(progress.step)
    meter.refused += len(found)
    meter.settle()
    progress.in_a_row = refused.in_a_row
    progress.refused |= {str(step): what for step, what in found.items()}
    if found:
        job.watch.say(f"warning: {told(found.items())}")
    if lost:
        raise Lost(str(diverged(job, progress, f" as in {IN_A_ROW - 1} or more before it")))


def _ends(job: Job, progress: Progress, meter: Meter) -> None:
    """The end of an epoch. A stop in the middle of it leaves it to whoever goes on: the state says so."""
    try:
        end_epoch(job, progress, meter)
    except Stopped:
        save(job, progress, meter, stop=True)
        leave(job, progress)
    progress.ending = False
    progress.refused.clear()
    meter.reset()
    meter.keep(progress)


def end_epoch(job: Job, progress: Progress, meter: Meter) -> None:
    """Validate, keep the best weights, and write the epoch's line to metrics.jsonl."""
    meter.keep(progress)
    epoch, found_here = epoch_of(job, progress), _so_far(job, meter)
    record: dict[str, Any] = {
        "epoch": epoch,
        "epochs": progress.epochs,
        "step": progress.step,
        "lr": learning_rate(job.config.optim, progress.step - 1, _num_steps(job, progress)),
        "grad_norm": progress.grad_norm,
        "pictures_per_s": progress.step * job.batch_size / progress.seconds,
        "seconds": round(progress.seconds, 3),
        **found_here,
        "memory_bytes": memory_peak(_device(job.model)),
        "peak_share": _peak_share(job, found_here) or None,
    }
    if progress.refused:
        record["refused"] = dict(progress.refused)
    every = max(1, progress.epochs // 100)
    if job.validate is not None and (progress.done or epoch % every == 0):
        found = job.validate(job.judged)
        job.model.train()
        if not math.isfinite(found.loss):
            raise diverged(job, progress)
        record |= found.record()
        if better(found, progress):
            progress.best, progress.best_loss, progress.best_epoch = found.score, found.loss, epoch
            _saver(job).best(progress)
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


def diverged(job: Job, progress: Progress, more: str = "") -> Diverged:
    """The error that says so; what was saved before stays."""
    rate = job.config.optim.lr
    return Diverged(
        f"{job.out}: the loss or its gradient is not finite at step {progress.step}{more} (optim.lr = {rate:g}). "
        f"Begin anew in another --out with a lower rate: --optim.lr {rate / 3:.1g}."
    )


def save(job: Job, progress: Progress, meter: Meter, *, stop: bool) -> None:
    """Keep everything: the state for going on and, but at the end of a run, or to `stop` there, the last weights for
    use."""
    meter.keep(progress)
    job.asked.save = False
    follow = job.validate is None or not ranks.from_first(lambda: (job.out / MODEL_FILE).exists())
    ended = progress.done and not stop
    _saver(job).state(progress, models=not ended, follow=follow and not ended)


def leave(job: Job, progress: Progress) -> None:
    """Raise `Stopped` when all is written."""
    _saver(job).wait()
    raise Stopped(f"{job.out}: stopped in epoch {epoch_of(job, progress)}, all is kept; the same command goes on.")


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
