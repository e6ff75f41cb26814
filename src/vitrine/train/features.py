"""Training a head on what frozen layers make of each picture: they see it once, the head sees that in every epoch.

The same loop, step and files as for any other run: a batch holds what the head is given in place of pictures.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

import numpy as np
import torch
from jaxtyping import Float32, Int64, UInt8
from torch import Tensor, nn

from vitrine.config.options import Config
from vitrine.data import loader
from vitrine.data.loader import Batch
from vitrine.data.store import Store
from vitrine.images.augment import NUM_DRAWS, distort, order
from vitrine.images.mixing import rows_of
from vitrine.models.networks import Network
from vitrine.train import answers
from vitrine.train.fit import Job, Validation
from vitrine.train.keep import Keeper
from vitrine.train.modes import HEAD
from vitrine.train.objective import objective_of
from vitrine.train.state import Progress
from vitrine.train.step import autocast
from vitrine.train.watch import Watch
from vitrine.weights.bundle import MODEL_FILE

SPARING_S = 15.0
"""Seconds between two files of the best model."""

AT_ONCE = 32
"""Pictures that go through the frozen layers together."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Features:
    """What the head is given for n pictures, numbered in their source by `index`; weight 0 for a damaged one."""

    rows: Float32[Tensor, "n F"]
    labels: Int64[Tensor, " n"] | UInt8[Tensor, "n K"]
    weights: Float32[Tensor, " n"]
    index: Int64[np.ndarray, " n"]

    def batches(
        self, first: int, last: int, *, batch_size: int, seed: int, share: tuple[int, int] = (0, 1)
    ) -> Generator[Batch, None, None]:
        """The batches of steps `first` to `last` - 1, of the pictures that `loader.training` would take."""
        steps = loader.steps_per_epoch(len(self.index), batch_size)
        ranked: tuple[int, np.ndarray] = (-1, np.empty(0))
        for step in range(first, last):
            epoch, place = divmod(step, steps)
            if ranked[0] != epoch:
                ranked = epoch, order(seed, epoch, np.arange(len(self.index)))
            taken = ranked[1][place * batch_size : (place + 1) * batch_size]
            rows = rows_of(len(taken), *share)
            chosen = torch.from_numpy(taken[rows])
            yield Batch(
                images=self.rows[chosen][:, :, None, None], labels=self.labels[chosen], weights=self.weights[chosen],
                index=torch.from_numpy(self.index)[chosen], draws=torch.zeros(len(chosen), NUM_DRAWS).double(),
                rows=rows, whole=len(taken),
            )  # fmt: skip


def answer(model: nn.Module, rows: Tensor) -> Tensor:
    """The logits of a model for rows of features, as (B, F, 1, 1)."""
    return cast(Network, model).answer(rows.flatten(1))


def of_training(
    model: Network, keeper: Keeper, kept: Store, indices: Int64[np.ndarray, " n"], watch: Watch
) -> Features:
    """The features of the training pictures, each cropped and normalised as `loader.training` and a step do it."""
    config, source = keeper.config, keeper.pictures.source
    found: list[Tensor] = []
    numbers: list[Tensor] = []
    weights: list[Tensor] = []
    watch.begin("looking at every picture once with the frozen layers", len(indices))
    for start in range(0, len(indices), AT_ONCE):
        some = indices[start : start + AT_ONCE]
        (batch,) = loader.training(
            kept, source, some, size=config.model.size, batch_size=len(some), seed=config.seed, augment=config.augment,
            squash=config.preprocess.resize == "squash", first_step=0, last_step=1, num_workers=0,
            on_bad=keeper.on_bad,
        )  # fmt: skip
        assert batch.draws is not None
        images = distort(batch.images.to(keeper.device), batch.draws, config.augment, config.preprocess)
        found.append(_summaries(model, images, keeper))
        numbers.append(batch.index)
        weights.append(batch.weights)
        watch.at(start + len(some))
    watch.end()
    place = {int(number): row for row, number in enumerate(torch.cat(numbers))}
    rows = torch.tensor([place[int(number)] for number in indices])
    return Features(
        rows=torch.cat(found)[rows], labels=torch.from_numpy(source.labels[indices]), weights=torch.cat(weights)[rows],
        index=indices,
    )  # fmt: skip


def of_validation(model: Network, keeper: Keeper, indices: Int64[np.ndarray, " n"], watch: Watch) -> Features:
    """The features of the pictures that can be read, made ready as for prediction."""
    pictures, watched = keeper.pictures, 0
    watch.begin("and those of the validation part", len(indices))
    rows, labels = list[Tensor](), list[Tensor]()
    for images, right in loader.evaluation(
        pictures.source, indices, keeper.config.preprocess, keeper.config.data, batch_size=AT_ONCE,
        on_bad=keeper.on_bad,
    ):  # fmt: skip
        rows.append(_summaries(model, images.to(keeper.device), keeper))
        labels.append(right)
        watched += len(right)
        watch.at(watched)
    watch.end()
    return Features(
        rows=torch.cat(rows), labels=torch.cat(labels), weights=torch.ones(watched), index=np.arange(watched)
    )


def _summaries(model: Network, images: Tensor, keeper: Keeper) -> Float32[Tensor, "B F"]:
    """What the head is given for normalised pictures, in float32 on the host; the model is as for evaluation."""
    model.eval()
    with torch.no_grad(), autocast(keeper.device, keeper.dtype):
        return model.summary(model.forward_features(images)).float().cpu()


def with_features(job: Job, keeper: Keeper, kept: Store, class_weights: Tensor | None) -> Job:
    """`job` with features in place of pictures, for training and for validation."""
    model, parts = cast(Network, job.model), keeper.pictures.parts
    learnt = of_training(model, keeper, kept, parts.train, job.watch)
    held = of_validation(model, keeper, parts.validation, job.watch) if job.validate is not None else None

    def validate(judged: nn.Module) -> Validation:
        assert held is not None
        judged.eval()
        batches = ((held.rows, held.labels),)
        with autocast(keeper.device, keeper.dtype):
            found = answers.gathered(job.config, lambda rows: answer(judged, rows.to(keeper.device)), batches)
        return answers.validation(found, keeper.pictures.class_names)

    return replace(
        job,
        objective=objective_of(job.config, class_weights, answer=answer),
        batches=lambda first, last: learnt.batches(
            first, last, batch_size=job.batch_size, seed=job.config.seed, share=(job.spread.number, job.spread.parts)
        ),
        validate=None if held is None else validate,
        save_model=Sparing(write=keeper.save_model).save,
    )  # fmt: skip


@dataclass(kw_only=True, eq=False)
class Sparing:
    """Writes the best model now and then, where epochs are shorter than writing: the last one asked for waits.

    It is written by the next call that is due, or with any other file, or by `flush`.
    """

    write: Callable[[Path, nn.Module, Progress], None]
    waiting: tuple[Path, dict[str, Tensor], Progress] | None = None
    written: float = field(default=-1e9)

    def save(self, path: Path, model: nn.Module, progress: Progress) -> None:
        """Write the model to `path`, or keep in mind what has learnt of it."""
        if path.name == MODEL_FILE and time.monotonic() - self.written < SPARING_S:
            self.waiting = path, head_of(model), replace(progress)
            return
        if path.name != MODEL_FILE:
            self.flush(model)
        else:
            self.waiting, self.written = None, time.monotonic()
        self.write(path, model, progress)

    def flush(self, model: nn.Module) -> None:
        """Write what waits. `model` lends its frozen layers and gets its own head back."""
        if self.waiting is None:
            return
        path, tensors, progress = self.waiting
        own = head_of(model)
        _give(model, tensors)
        self.write(path, model, progress)
        _give(model, own)
        self.waiting, self.written = None, time.monotonic()


def head_of(model: nn.Module) -> dict[str, Tensor]:
    """A copy of the tensors of the head and its hidden layer."""
    return {name: tensor.clone() for name, tensor in model.state_dict().items() if name.startswith(HEAD)}


def _give(model: nn.Module, head: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for name, tensor in head.items():
            model.get_parameter(name).copy_(tensor)


def example(config: Config) -> Batch:
    """A batch of random features, for a look at how long a step takes."""
    B, own = config.batch_size, config.model
    width = own.resnet.width if own.family == "resnet" else own.embed_dim * (1 + own.distilled)
    several = torch.randint(2, (B, own.num_classes), dtype=torch.uint8)
    return Batch(
        images=torch.randn(B, width, 1, 1), weights=torch.ones(B),
        labels=several if config.multi_label else torch.randint(own.num_classes, (B,)),
        index=torch.arange(B), draws=torch.zeros(B, NUM_DRAWS).double(),
    )  # fmt: skip
