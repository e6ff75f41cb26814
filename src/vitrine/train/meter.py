"""What the loop adds up over an epoch: losses, gradients, seconds, and how long it waited for pictures."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from vitrine.data.loader import Batch
from vitrine.train.state import Progress
from vitrine.train.step import StepResult


class Meter:
    """The sums of the epoch under way, on the device, and its clock.

    `sums` holds loss, correct answers, weight, gradient norms before clipping, steps whose gradient was clipped, and
    the largest norm. `seconds` are those of training alone, without validation and saving; `waited` those
    in which nothing was learnt because no batch was there. A refused step counts in the time alone; `last_norm` is that
    of the last one that was not. Nothing here asks the device but `settle`.
    """

    def __init__(self, progress: Progress, device: torch.device, clip_norm: float) -> None:
        start = [progress.loss, progress.correct, progress.weight, *progress.norms]
        self.sums: Float[Tensor, " 6"] = torch.tensor(start, device=device)
        self.last_norm: Float[Tensor, ""] = torch.tensor(progress.grad_norm, device=device)
        self.refused = len(progress.refused)
        self.steps = progress.epoch_steps
        self.seconds, self.waited = progress.epoch_seconds, progress.waited
        self._limit = clip_norm or float("inf")
        self._cuda = device.type == "cuda"
        self._mark = time.monotonic()
        self._idle: list[tuple[Any, Any]] = []

    def through(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The same batches, the time until each is there being measured.

        A CUDA device works on while the loop waits. Its own idle time counts there: from the end of what it was given
        to the moment when it is given more, by events that are read when the device is asked anyway.
        """
        while True:
            before = self._event()
            began = self._mark = time.monotonic()
            try:
                batch = next(batches)
            except StopIteration:
                return
            if self._cuda:
                self._idle.append((before, self._event()))
            else:
                self.waited += time.monotonic() - began
            yield batch

    def _event(self) -> Any:
        """A point in the work of a CUDA device."""
        if not self._cuda:
            return None
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def add(self, result: StepResult) -> None:
        """One step more."""
        norm, refused = result.grad_norm, result.refused > 0
        with torch.no_grad():
            clipped = (norm > self._limit).to(norm.dtype)
            seen = torch.stack([result.loss, result.correct, result.weight, norm, clipped])
            self.sums[:5] += torch.where(refused, 0.0, seen)
            self.last_norm = torch.where(refused, self.last_norm, norm)
            self.sums[5] = torch.where(refused, self.sums[5], torch.maximum(self.sums[5], norm))
        self.steps += 1
        self._tick()

    def settle(self) -> None:
        """To be called when the device has been asked, and so is done with all it was given."""
        self._tick()
        self.waited += sum(before.elapsed_time(after) for before, after in self._idle) / 1000
        self._idle.clear()

    def _tick(self) -> None:
        now = time.monotonic()
        self.seconds, self._mark = self.seconds + now - self._mark, now

    def record(self, batch_size: int, right: str = "train_top1") -> dict[str, Any]:
        """The figures of the epoch so far, for metrics.jsonl, `right` naming the share of right answers there; `settle`
        comes before."""
        loss, correct, weight, norm, clipped, largest = self.sums.tolist()
        steps, seconds = max(1, self.steps - self.refused), max(self.seconds, 1e-9)
        return {
            "train_loss": loss / max(1.0, weight),
            right: correct / max(1.0, weight),
            "grad_norm_mean": norm / steps,
            "grad_norm_max": largest,
            "clipped": clipped / steps,
            "epoch_seconds": round(self.seconds, 3),
            "epoch_pictures_per_s": self.steps * batch_size / seconds,
            "wait_share": min(1.0, self.waited / seconds),
        }

    def keep(self, progress: Progress) -> None:
        """Put everything into `progress`, from which a meter begins."""
        progress.loss, progress.correct, progress.weight, *progress.norms = self.sums.tolist()
        progress.epoch_steps, progress.epoch_seconds, progress.waited = self.steps, self.seconds, self.waited
        progress.grad_norm = float(self.last_norm)

    def reset(self) -> None:
        """Begin another epoch."""
        self.sums.zero_()
        self.refused = 0
        self.steps, self.seconds, self.waited = 0, 0.0, 0.0
