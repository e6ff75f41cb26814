"""One training step: what happens to a batch between the loader and the new weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vitrine.config.options import AugmentConfig, Config
from vitrine.data.loader import Batch
from vitrine.images.augment import distort
from vitrine.images.mixing import mix
from vitrine.machine import ranks
from vitrine.train.finite import refusal, update
from vitrine.train.losses import soft_targets, weighted_mean
from vitrine.train.multi_label import multi_label_targets
from vitrine.train.objective import Objective, Part
from vitrine.train.optim import learning_rate
from vitrine.train.parallel import ALONE, Spread


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What a step saw, left on the device: sums over the batch, the gradient's norm before clipping, and whether the
    step was refused (`train.finite.refusal`)."""

    loss: Float[Tensor, ""]
    correct: Float[Tensor, ""]
    weight: Float[Tensor, ""]
    grad_norm: Float[Tensor, ""]
    refused: Float[Tensor, ""] = field(default_factory=lambda: torch.zeros(()))


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    config: Config,
    *,
    step: int,
    num_steps: int,
    dtype: torch.dtype | None,
    objective: Objective,
    spread: Spread = ALONE,
) -> StepResult:
    """One update of `model` in place, at the learning rate of `step`, towards less of what `objective` gives.

    None is made where the loss or the gradient is not finite.
    With `accumulate` the batch, distorted and mixed as a whole, goes through the model in so many parts whose gradients
    add up: the gradient of the whole batch in the memory of a part. Where the run is `spread` the batch is this rank's
    share of it, and what is given back is of all.
    """
    ranks.beat()
    spread.seeded(config.seed, step)
    rate = learning_rate(config.optim, step, num_steps)
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("scale", 1.0)
    device = next(model.parameters()).device
    images, targets, weights = inputs(batch, config, step, device, num_steps)
    assert batch.draws is not None
    total = spread.summed(weights.sum())
    loss, correct = torch.zeros((), device=device), torch.zeros((), device=device)
    optimizer.zero_grad(set_to_none=True)
    number = spread.pieces(config.accumulate, batch.whole or len(images))
    for place, (pictures, wanted, counts, draws) in enumerate(parts(number, images, targets, weights, batch.draws)):
        with spread.piece(model, last=place == number - 1):
            with autocast(device, dtype):
                each, right = objective(model, Part(images=pictures, targets=wanted, draws=draws))
            share = weighted_mean(each, counts, total)
            (share * spread.parts).backward()  # gradients meet as their mean over the ranks
        with torch.no_grad():
            loss += share.detach()
            correct += (right * counts).sum()
    norm = spread.clip(model, config.optim.clip_norm or float("inf"))
    with torch.no_grad():
        loss, correct = spread.summed(torch.stack([loss, correct])).unbind()
        refused = refusal(loss, norm)
        update(optimizer, refused)
        return StepResult(loss=loss * total, correct=correct, weight=total, grad_norm=norm, refused=refused)


def parts(number: int, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The tensors cut along their first axis into `number` parts whose lengths differ by one at most."""
    return zip(*(tensor.tensor_split(number) for tensor in tensors), strict=True)


def inputs(
    batch: Batch, config: Config, step: int, device: torch.device, num_steps: int
) -> tuple[Float[Tensor, "B C H W"], Float[Tensor, "B K"], Float[Tensor, B]]:
    """The batch on the device: distorted, normalised and mixed pictures, smoothed targets, weights."""
    assert batch.draws is not None
    augment = at_step(config.augment, step, num_steps)
    images = batch.images.to(device, non_blocking=True)
    if not images.is_floating_point():  # what is float already is given as it is
        images = distort(images, batch.draws, augment, config.preprocess)
    labels = batch.labels.to(device)
    if config.multi_label:
        targets = multi_label_targets(labels, config.label_smoothing)
    else:
        targets = soft_targets(labels, config.model.num_classes, config.label_smoothing)
    images, targets = mix(images, targets, augment, config.seed, step, batch.rows, batch.whole)
    return images, targets, batch.weights.to(device)


def at_step(augment: AugmentConfig, step: int, num_steps: int) -> AugmentConfig:
    """What holds at a step: in the last `mix_off_share` of the steps neither mixing nor policy."""
    if step < (1 - augment.mix_off_share) * num_steps:
        return augment
    return replace(augment, mixup=0.0, cutmix=0.0, policy="none")


def autocast(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[object]:
    """torch's autocast to `dtype`, or nothing."""
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)
