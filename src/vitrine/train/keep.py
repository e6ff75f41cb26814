"""Judging weights on the parts of the data, and writing them down with all that is known of them."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar, cast

import numpy as np
import torch
from torch import Tensor, nn

from vitrine.config.options import Config
from vitrine.config.text import to_dict
from vitrine.data import loader, scan, sources, splits
from vitrine.errors import BadData
from vitrine.evaluate import multi_label
from vitrine.evaluate.metrics import measure
from vitrine.evaluate.outputs import Outputs, collect
from vitrine.machine import device as machine
from vitrine.results import Metrics, Provenance
from vitrine.train.fit import Validation
from vitrine.train.state import Progress
from vitrine.train.step import autocast
from vitrine.train.watch import Watch
from vitrine.weights.bundle import Bundle
from vitrine.weights.bundle import save as save_bundle

T = TypeVar("T")

KEPT_BYTES = 1 << 30
"""Validation pictures are kept as tensors between epochs up to this size."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Pictures:
    """The opened, scanned and parted data of a run."""

    source: sources.Source
    scan: scan.Scan
    parts: splits.Parts


@dataclass(frozen=True, kw_only=True, eq=False)
class Keeper:
    """Judges weights and writes them down with all that is known of them.

    `bad` gathers the pictures that could not be read, with the reason; each is told once and counts for nothing.
    """

    config: Config
    pictures: Pictures
    notes: list[str]
    command: str
    device: torch.device
    dtype: torch.dtype | None
    watch: Watch
    bad: dict[str, str] = field(default_factory=dict)
    _kept: dict[int, Tensor] = field(default_factory=dict)

    def on_bad(self, name: str, reason: str) -> None:
        """Take note of a picture that cannot be read. Raises `BadData` above the share that is allowed."""
        if name in self.bad:
            return
        self.bad[name] = reason
        self.watch.say(f"{name}: {reason}; it counts for nothing")
        if len(self.bad) > self.config.data.max_bad_share * len(self.pictures.source):
            raise BadData(
                f"{len(self.bad)} damaged pictures, more than data.max_bad_share allows. Mend or remove them."
            )

    def outputs(self, model: nn.Module, part: np.ndarray, *, exact: bool) -> Outputs:
        """The answers to a part; `exact` in float32 as for prediction, else in the type of training."""
        return self._answers(model, part, collect, exact=exact)

    def scores(self, model: nn.Module, part: np.ndarray, *, exact: bool) -> multi_label.Scores:
        """As `outputs`, where a picture may have several classes."""
        return self._answers(model, part, multi_label.gather, exact=exact)

    def _answers(
        self,
        model: nn.Module,
        part: np.ndarray,
        gather: Callable[[Callable[[Tensor], Tensor], Iterable[tuple[Tensor, Tensor]]], T],
        *,
        exact: bool,
    ) -> T:
        height, width = self.config.model.size
        fits = len(part) * self.config.model.in_chans * height * width * 4 < KEPT_BYTES
        batches = loader.evaluation(
            self.pictures.source, part, self.config.preprocess, self.config.data,
            batch_size=min(256, 2 * self.config.batch_size),
            keep=self._kept if fits and not exact else None, on_bad=self.on_bad,
        )  # fmt: skip
        model.eval()
        done = 0

        def answer(images: Tensor) -> Tensor:
            nonlocal done
            done += len(images)
            if exact:
                self.watch.at(done)
            return cast(Tensor, model(images.to(self.device)))

        with autocast(self.device, None if exact else self.dtype):
            return gather(answer, batches)

    def validate(self, model: nn.Module) -> Validation:
        """Top-1 and loss on the validation part; with several classes a picture mean average precision too."""
        if self.config.multi_label:
            scores = self.scores(model, self.pictures.parts.validation, exact=False)
            loss, right = float(scores.losses().mean()), float(scores.all_right(0.5).mean())
            return Validation(top1=right, loss=loss, n=len(scores), mean_ap=multi_label.mean_ap(scores))
        found = self.outputs(model, self.pictures.parts.validation, exact=False)
        loss = -float(found.log_probability.mean())
        return Validation(top1=float(found.correct.mean()), loss=loss, n=len(found))

    def measure(self, model: nn.Module, part: np.ndarray, threshold: float | None = None) -> Metrics:
        """The full figures of a part, in float32.

        Where a picture may have several classes: at this threshold, or at the one that does best on the part.
        """
        names = self.pictures.source.class_names
        self.watch.begin("measuring", len(part))
        if self.config.multi_label:
            found = multi_label.measure(self.scores(model, part, exact=True), names, threshold)
        else:
            found = measure(self.outputs(model, part, exact=True), names)
        self.watch.end()
        return found

    def save_model(self, path: Path, model: nn.Module, progress: Progress) -> None:
        """Write the weights as an unfinished bundle."""
        save_bundle(self.bundle(model, progress), path)

    def bundle(self, model: nn.Module, progress: Progress) -> Bundle:
        """The weights with all that is known of them so far."""
        run, num_train = to_dict(self.config), len(self.pictures.parts.train)
        steps = loader.steps_per_epoch(num_train, min(self.config.batch_size, num_train))
        provenance = Provenance(
            command=self.command,
            created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            data=self.config.data.source,
            data_fingerprint=self.pictures.scan.fingerprint,
            init=self.config.init,
            seed=self.config.seed,
            epoch=-(-progress.step // steps),
            steps=progress.step,
            train_pictures=num_train,
            seconds=round(progress.seconds, 1),
            device=machine.describe(self.device),
            precision="bf16" if self.dtype else "fp32",
            versions=machine.versions(),
        )
        return Bundle(
            model=self.config.model,
            preprocess=self.config.preprocess,
            class_names=self.pictures.source.class_names,
            tensors=dict(model.state_dict()),
            provenance=provenance,
            run={name: value for name, value in run.items() if name not in ("model", "preprocess")},
            finished=False,
            notes=tuple(self.notes),
            multi_label=self.config.multi_label,
        )
