"""Judging weights on the parts of the data, and writing them down with all that is known of them."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from vitrine.config.options import Config
from vitrine.config.text import to_dict
from vitrine.data import loader, scan, sources, splits
from vitrine.evaluate.metrics import measure
from vitrine.evaluate.outputs import collect
from vitrine.machine import device as machine
from vitrine.results import Metrics, Provenance
from vitrine.train.fit import Validation
from vitrine.train.state import Progress
from vitrine.train.step import autocast
from vitrine.weights.bundle import Bundle
from vitrine.weights.bundle import save as save_bundle


@dataclass(frozen=True, kw_only=True, eq=False)
class Pictures:
    """The opened, scanned and parted data of a run."""

    source: sources.Source
    scan: scan.Scan
    parts: splits.Parts


class Keeper:
    """Judges weights and writes them down with all that is known of them."""

    def __init__(
        self, *, config: Config, pictures: Pictures, notes: list[str], command: str,
        device: torch.device, dtype: torch.dtype | None,
    ) -> None:  # fmt: skip
        self.config, self.pictures, self.notes, self.command = config, pictures, notes, command
        self.device, self.dtype = device, dtype
        self._kept: dict[int, Tensor] = {}

    def logits(self, model: nn.Module, part: np.ndarray, *, exact: bool) -> tuple[np.ndarray, np.ndarray]:
        """Logits and labels of a part; `exact` in float32 as for prediction, else in the type of training."""
        keep = None if exact else self._kept
        batches = loader.evaluation(
            self.pictures.source, part, self.config.preprocess, self.config.data,
            batch_size=min(256, 2 * self.config.batch_size), keep=keep, on_bad=lambda name, reason: None,
        )  # fmt: skip
        model.eval()
        with autocast(self.device, None if exact else self.dtype):
            return collect(lambda images: model(images.to(self.device)), batches)

    def validate(self, model: nn.Module) -> Validation:
        """Top-1 and loss on the validation part."""
        logits, labels = self.logits(model, self.pictures.parts.validation, exact=False)
        rows = torch.from_numpy(logits)
        loss = torch.nn.functional.cross_entropy(rows, torch.from_numpy(labels))
        return Validation(top1=float((rows.argmax(1).numpy() == labels).mean()), loss=float(loss), n=len(labels))

    def measure(self, model: nn.Module, part: np.ndarray) -> Metrics:
        """The full figures of a part, in float32."""
        return measure(*self.logits(model, part, exact=True), self.pictures.source.class_names)

    def save_model(self, path: Path, model: nn.Module, progress: Progress) -> None:
        """Write the weights as an unfinished bundle."""
        save_bundle(self.bundle(model, progress), path)

    def bundle(self, model: nn.Module, progress: Progress) -> Bundle:
        """The weights with all that is known of them so far."""
        run = to_dict(self.config)
        provenance = Provenance(
            command=self.command,
            created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            data=self.config.data.source,
            data_fingerprint=self.pictures.scan.fingerprint,
            init=self.config.init,
            seed=self.config.seed,
            epoch=progress.best_epoch or progress.epochs,
            steps=progress.step,
            train_pictures=len(self.pictures.parts.train),
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
        )
