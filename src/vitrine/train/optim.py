"""Optimisers, the learning rate over the steps, and the running average of the weights."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn

from vitrine.config.options import OptimConfig
from vitrine.errors import BadConfig
from vitrine.models.init import PLACES
from vitrine.train.muon import Muon

# Tokens, positions of every kind, and the query of attention pooling, as parts of a parameter's name.
UNDECAYED = PLACES | {"cls_token", "latent"}


def optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """AdamW or SGD over two groups, matrices and filters with weight decay, all else without; or Muon.

    Biases, norms, the class token and positions have no decay: it would pull them to zero for no gain in
    capacity. Where the device has the kernel AdamW and SGD run fused. SGD's decay is coupled, as torch's. Muon has
    the matrices of the blocks, AdamW beside it the rest. Raises `BadConfig` where there are none.
    """
    named = list(model.named_parameters())
    matrices = [p for name, p in named if is_muons(name, p)] if config.name == "muon" else []
    if config.name == "muon" and not matrices:
        raise BadConfig("optim.name = 'muon': the model has no Transformer blocks whose matrices it could take.")
    left = [(name, p) for name, p in named if not any(p is matrix for matrix in matrices)]
    groups = [
        {"params": [p for name, p in left if decays(name, p)], "weight_decay": config.weight_decay},
        {"params": [p for name, p in left if not decays(name, p)], "weight_decay": 0.0},
    ]
    betas = config.beta1, config.beta2
    if config.name == "muon":
        return Muon(
            matrices, groups, lr=config.lr, weight_decay=config.weight_decay, momentum=config.muon_momentum, betas=betas
        )
    fused = next(model.parameters()).device.type in ("cpu", "cuda")
    if config.name == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, fused=fused)
    return torch.optim.AdamW(groups, lr=config.lr, betas=betas, fused=fused)


def is_muons(name: str, parameter: Tensor) -> bool:
    """Whether Muon takes a parameter: the matrices of the blocks, not the first and the last layer of the network."""
    return name.startswith("blocks.") and parameter.ndim == 2 and decays(name, parameter)


def decays(name: str, parameter: Tensor) -> bool:
    """Whether weight decay applies to a parameter: to matrices and filters, not to what `UNDECAYED` names."""
    return parameter.ndim >= 2 and not UNDECAYED & set(name.split("."))


def learning_rate(config: OptimConfig, step: int, num_steps: int) -> float:
    """The learning rate of `step` (from 0): linear warm-up to `lr`, then cosine or linear to `min_lr`."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.lr
    through = (step - config.warmup_steps) / max(1, num_steps - config.warmup_steps)
    through = min(1.0, through)
    left = (1 + math.cos(math.pi * through)) / 2 if config.schedule == "cosine" else 1 - through
    return config.min_lr + (config.lr - config.min_lr) * left


class Average:
    """The exponential moving average of a model's weights: a <- d a + (1 - d) w after every step.

    Early on the decay is min(d, (1 + t) / (10 + t)) at step t, so that the random beginning is soon forgotten.
    `model` has the averaged weights, in evaluation mode.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self._mine: list[Tensor] = list(self.model.parameters())
        self._theirs: list[Tensor] = list(model.parameters())

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights as they are after `step` (from 0)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self._mine, self._theirs, 1 - decay)
