"""One training step: what happens to a batch between the loader and the new weights."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from vitrine.config.options import AugmentConfig, Config
from vitrine.data.loader import Batch
from vitrine.images.augment import distort
from vitrine.images.mixing import mix
from vitrine.train.optim import learning_rate


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What a step saw, left on the device: sums over the batch, and the gradient's norm before clipping."""

    loss: Float[Tensor, ""]
    correct: Float[Tensor, ""]
    weight: Float[Tensor, ""]
    grad_norm: Float[Tensor, ""]


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    config: Config,
    *,
    step: int,
    num_steps: int,
    dtype: torch.dtype | None,
) -> StepResult:
    """One update of `model` in place, at the learning rate of `step`."""
    rate = learning_rate(config.optim, step, num_steps)
    for group in optimizer.param_groups:
        group["lr"] = rate
    device = next(model.parameters()).device
    images, targets, weights = inputs(batch, config, step, device, num_steps)
    with autocast(device, dtype):
        logits = model(images)
    loss = weighted_loss(logits.float(), targets, weights)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    limit = config.optim.clip_norm or float("inf")
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), limit, foreach=device.type != "mps")
    optimizer.step()
    with torch.no_grad():
        correct = ((logits.argmax(1) == targets.argmax(1)) * weights).sum()
        return StepResult(loss=loss.detach() * weights.sum(), correct=correct, weight=weights.sum(), grad_norm=norm)


def inputs(
    batch: Batch, config: Config, step: int, device: torch.device, num_steps: int
) -> tuple[Float[Tensor, "B C H W"], Float[Tensor, "B K"], Float[Tensor, B]]:
    """The batch on the device: distorted, normalised and mixed pictures, smoothed targets, weights."""
    assert batch.draws is not None
    augment = at_step(config.augment, step, num_steps)
    images = distort(batch.images.to(device, non_blocking=True), batch.draws, augment, config.preprocess)
    targets = soft_targets(batch.labels.to(device), config.model.num_classes, config.label_smoothing)
    images, targets = mix(images, targets, augment, config.seed, step)
    return images, targets, batch.weights.to(device)


def at_step(augment: AugmentConfig, step: int, num_steps: int) -> AugmentConfig:
    """What holds at a step: in the last `mix_off_share` of the steps neither mixing nor policy."""
    if step < (1 - augment.mix_off_share) * num_steps:
        return augment
    return replace(augment, mixup=0.0, cutmix=0.0, policy="none")


def soft_targets(labels: Int[Tensor, B], num_classes: int, smoothing: float) -> Float[Tensor, "B K"]:
    """One-hot rows with `smoothing` spread evenly over all classes (arXiv:1512.00567, section 7)."""
    return F.one_hot(labels, num_classes).float() * (1 - smoothing) + smoothing / num_classes


def weighted_loss(
    logits: Float[Tensor, "B K"], targets: Float[Tensor, "B K"], weights: Float[Tensor, B]
) -> Float[Tensor, ""]:
    """Mean cross-entropy over the pictures that count; 0 where none does."""
    each = -(targets * logits.log_softmax(dim=1)).sum(dim=1)
    return (each * weights).sum() / weights.sum().clamp(min=1)


def autocast(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[object]:
    """torch's autocast to `dtype`, or nothing."""
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)
