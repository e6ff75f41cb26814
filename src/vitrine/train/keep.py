"""Judging weights on the parts of the data, and writing them down with all that is known of them."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from vitrine.config.options import Config
from vitrine.config.text import to_dict
from vitrine.data import loader, scan, sources, splits
from vitrine.errors import BadData
from vitrine.evaluate.metrics import mean_loss
from vitrine.machine import device as machine
from vitrine.machine import ranks
from vitrine.results import Figure, Metrics, Provenance
from vitrine.train import answers, lora, modes, split
from vitrine.train.fit import Validation
from vitrine.train.masked import judged
from vitrine.train.parallel import ALONE, Spread
from vitrine.train.plain import plain_tensors
from vitrine.train.plan import THUMBNAIL
from vitrine.train.state import Progress
from vitrine.train.step import autocast
from vitrine.train.watch import Watch
from vitrine.weights.bundle import MODEL_FILE, Bundle
from vitrine.weights.bundle import save as save_bundle

KEPT_BYTES = 1 << 30
"""Validation pictures are kept as tensors between epochs up to this size."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Pictures:
    """The opened, scanned and parted data of a run."""

    source: sources.Source
    scan: scan.Scan
    parts: splits.Parts
    labelled: bool = True
    """Whether its classes are learnt."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes to learn: none where labels are not asked for."""
        return self.source.class_names if self.labelled else ()

    @property
    def multi_label(self) -> bool:
        """Whether it is learnt which of several classes a picture has, or none."""
        return self.labelled and self.source.multi_label

    @property
    def photographs(self) -> bool:
        """Whether the pictures are files larger than thumbnails."""
        return self.source.encoded and max(self.scan.median_size) > THUMBNAIL


@dataclass(frozen=True, kw_only=True, eq=False)
class Judged:
    """The answers to a part of the data: the figures, and by picture. `index` numbers them in their source."""

    metrics: Metrics
    outputs: answers.Found
    index: np.ndarray


@dataclass(frozen=True, kw_only=True, eq=False)
class Keeper:
    """Judges weights and writes them down with all that is known of them.

    `bad` gathers the pictures that could not be read, with the reason; each is told once and counts for nothing.
    `look` is called before each batch that is judged; what it raises ends the judging there.
    """

    config: Config
    pictures: Pictures
    notes: list[str]
    command: str
    device: torch.device
    dtype: torch.dtype | None
    watch: Watch
    bad: dict[str, str] = field(default_factory=dict)
    teacher: str = ""
    look: Callable[[], None] = lambda: None
    spread: Spread = ALONE
    _seen: dict[str, dict[str, Figure]] = field(default_factory=dict)
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

    def outputs(
        self, model: nn.Module, part: np.ndarray, *, exact: bool, left_out: set[str] | None = None
    ) -> answers.Found:
        """The answers to a part; `exact` in float32 as for prediction, else in the type of training.

        `left_out` gains the names of the pictures that have no answer because they cannot be read.
        """
        missing = set[str]() if left_out is None else left_out

        def on_bad(name: str, reason: str) -> None:
            missing.add(name)
            self.on_bad(name, reason)

        mine = split.share(part, self.spread)
        batches = self._batches(self.pictures.source, mine, on_bad, exact=exact)
        model.eval()
        done = 0

        def answer(images: Tensor) -> Tensor:
            nonlocal done
            done += len(images)
            if exact:
                self.watch.at(done)
            return cast(Tensor, model(images.to(self.device)))

        with autocast(self.device, None if exact else self.dtype):
            found = answers.gathered(
                self.config, answer, split.in_step(batches, self.spread, self._example(self.pictures.source))
            )
        self.spread.rested(model)
        read = self._tell_each_other(part, mine, missing)
        return split.together(found, read, self.spread)

    def _example(self, source: sources.Source) -> tuple[Tensor, Tensor]:
        """A picture of nothing, with a label as the others have."""
        return torch.zeros(1, self.config.model.in_chans, *self.config.model.size), torch.from_numpy(source.labels[:1])

    def _tell_each_other(self, part: np.ndarray, mine: np.ndarray, missing: set[str]) -> np.ndarray:
        """The places in `part` of the pictures of `mine` that could be read; all ranks learn which could not."""
        ids = self.pictures.source.ids
        place = {int(i): at for at, i in enumerate(part)}
        read = np.array([place[int(i)] for i in mine if ids[i] not in missing], np.int64)
        missing |= {name for names in ranks.each(sorted(missing)) for name in names}
        for name, reason in split.reasons(self.bad).items():
            self.on_bad(name, reason)
        return read

    def _batches(
        self, source: sources.Source, part: np.ndarray, on_bad: Callable[[str, str], None], *, exact: bool = False
    ) -> Iterator[tuple[Tensor, Tensor]]:
        height, width = self.config.model.size
        fits = len(part) * self.config.model.in_chans * height * width * 4 < KEPT_BYTES
        for batch in loader.evaluation(
            source, part, self.config.preprocess, self.config.data,
            batch_size=min(256, 2 * self.config.batch_size),
            keep=self._kept if fits and not exact else None, on_bad=on_bad,
        ):  # fmt: skip
            self.look()
            yield batch

    def validate(self, model: nn.Module) -> Validation:
        """How the weights do on the validation part: by their answers, or on hidden patches where these are learnt."""
        if not self.pictures.labelled:
            return self._validate_masked(model)
        found = self.outputs(model, self.pictures.parts.validation, exact=False)
        return answers.validation(found, self.pictures.class_names)

    def _validate_masked(self, model: nn.Module) -> Validation:
        """The share of the hidden patches named and the loss; remembered for the file of these weights."""
        source = self.pictures.source
        numbered = replace(source, labels=np.arange(len(source)))  # a picture's number decides what is hidden of it
        part, missing = self.pictures.parts.validation, set[str]()
        mine = split.share(part, self.spread)

        def on_bad(name: str, reason: str) -> None:
            missing.add(name)
            self.on_bad(name, reason)

        model.eval()
        with autocast(self.device, self.dtype):
            batches = split.in_step(self._batches(numbered, mine, on_bad), self.spread, self._example(numbered))
            each, right = judged(model, batches, self.config, self.device)
        self.spread.rested(model)
        read = self._tell_each_other(part, mine, missing)
        each, right = split.joined({"each": each, "right": right}, read, self.spread).values()
        top1 = mean_loss(-right)
        self._seen["validation"] = {
            "masked_top1": replace(top1, high=min(1.0, top1.high)), "masked_loss": mean_loss(-each)
        }  # fmt: skip
        return Validation(top1=top1.value, loss=float(each.mean()), n=len(each))

    def judge(self, model: nn.Module, part: np.ndarray, threshold: float | None = None) -> Judged:
        """The full figures of a part, in float32, and the answers behind them.

        Where a picture may have several classes: at this threshold, or at the one that does best on the part.
        """
        self.watch.begin("measuring", len(part))
        left_out = set[str]()
        found = self.outputs(model, part, exact=True, left_out=left_out)
        metrics = answers.measured(found, self.pictures.class_names, threshold)
        self.watch.end()
        readable = np.array([i for i in part if self.pictures.source.ids[i] not in left_out], np.int64)
        return Judged(metrics=metrics, outputs=found, index=readable)

    def save_model(self, path: Path, model: nn.Module, progress: Progress) -> None:
        """Write the weights as an unfinished bundle; the best ones with what validation saw of hidden patches, and
        with the adapter beside them, where one learns."""
        best, made = path.name == MODEL_FILE, self.bundle(model, progress)
        if not ranks.first():
            return
        save_bundle(replace(made, metrics=dict(self._seen) if best else {}), path)
        if self.config.mode == "lora" and best:
            names = self.pictures.class_names
            lora.write(model, self.config, names, path.parent / lora.FOLDER, whole=modes.HEAD)

    def bundle(self, model: nn.Module, progress: Progress) -> Bundle:
        """The weights with all that is known of them so far."""
        run, num_train = to_dict(self.config), len(self.pictures.parts.train)
        steps = loader.steps_per_epoch(num_train, min(self.config.batch_size, num_train))
        provenance = Provenance(
            command=self.command,
            created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            data=self.config.data.source,
            data_fingerprint=self.pictures.scan.fingerprint,
            init=self.config.begins_from,
            teacher=self.teacher,
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
            class_names=self.pictures.class_names,
            tensors=plain_tensors(model),
            provenance=provenance,
            run={name: value for name, value in run.items() if name not in ("model", "preprocess")},
            finished=False,
            notes=tuple(self.notes),
            multi_label=self.config.multi_label,
        )
