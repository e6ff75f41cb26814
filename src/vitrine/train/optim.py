"""Optimisers, the learning rate over the steps, and the running average of the weights."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn

from vitrine.config.options import OptimConfig
from vitrine.errors import BadConfig
from vitrine.train.groups import decays, groups, layer_scales
from vitrine.train.lamb import Lamb
from vitrine.train.muon import Muon
from vitrine.train.plain import plain_names
from vitrine.train.shards import is_parted, local


def optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """The optimiser of that name over the groups of `groups`: matrices and filters with weight decay, all else without.

    Parameters that need no gradient are left out: they have neither decay nor state. Biases, norms, the class token
    and positions have no decay: it would pull them to zero for no gain in capacity. Where the device has the kernel
    AdamW and SGD run fused. SGD's decay is coupled, as torch's. Muon has the matrices of the blocks, AdamW beside it
    the rest. Raises `BadConfig` where there are none.
    """
    scales = layer_scales(model, config.layer_decay)
    named = [(name, p) for name, p in plain_names(model) if p.requires_grad]
    betas = config.beta1, config.beta2
    if config.name == "muon":
        matrices = groups([(name, p) for name, p in named if is_muons(name, p)], config, scales)
        if not matrices:
            raise BadConfig("optim.name = 'muon': the model has no Transformer blocks whose matrices it could take.")
        rest = groups([(name, p) for name, p in named if not is_muons(name, p)], config, scales)
        return Muon(matrices, rest, lr=config.lr, momentum=config.muon_momentum, betas=betas, eps=config.eps)
    every = groups(named, config, scales)
    if config.name == "lamb":
        return Lamb(every, lr=config.lr, betas=betas, eps=config.eps)
    fused = next(model.parameters()).device.type in ("cpu", "cuda")
    if config.name == "sgd":
        fused = fused and not is_parted(model)  # torch's fused kernel of SGD knows no shares
        return torch.optim.SGD(every, lr=config.lr, momentum=config.momentum, fused=fused)
    return torch.optim.AdamW(every, lr=config.lr, betas=betas, eps=config.eps, fused=fused)


def is_muons(name: str, parameter: Tensor) -> bool:
    """Whether Muon takes a parameter: the matrices of the blocks, not the first and the last layer of the network."""
    return name.startswith("blocks.") and parameter.ndim == 2 and decays(name, parameter)


def learning_rate(config: OptimConfig, step: int, num_steps: int) -> float:
    """The learning rate of `step` (from 0): linear warm-up from `warmup_lr` (not reached, 0 by default) to `lr`, which
    its last step has, then the schedule, cooled down at its end.

    cosine and linear go to `min_lr`. rsqrt is lr / sqrt(1 + (step - warm-up) / timescale) (big_vision,
    `create_learning_rate_schedule`). steps is a tenth of what it was from the step after each of `step_at`, shares
    of all steps (BiT-HyperRule, big_transfer's `get_lr`). Over the last `cooldown_steps` it goes linearly to `min_lr`.
    """
    rate = _scheduled(config, step, num_steps)
    if not config.cooldown_steps:
        return rate
    left = min(1.0, max(0, num_steps - step) / config.cooldown_steps)
    return config.min_lr + (rate - config.min_lr) * left


def _scheduled(config: OptimConfig, step: int, num_steps: int) -> float:
    since = step - config.warmup_steps
    if since < 0:
        return config.warmup_lr + (config.lr - config.warmup_lr) * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.lr
    if config.schedule == "rsqrt":
        return max(config.min_lr, config.lr / math.sqrt(1 + since / config.timescale_steps))
    if config.schedule == "steps":
        passed = sum(step > round(share * num_steps) for share in config.step_at)
        return max(config.min_lr, config.lr * 0.1**passed)
    through = min(1.0, since / max(1, num_steps - config.warmup_steps))
    left = (1 + math.cos(math.pi * through)) / 2 if config.schedule == "cosine" else 1 - through
    return config.min_lr + (config.lr - config.min_lr) * left


class Average:
    """The exponential moving average of a model's weights: a <- d a + (1 - d) w after every step.

    Early on the decay is min(d, (1 + t) / (10 + t)) at step t, so that the random beginning is soon forgotten.
    `model` has the averaged weights, in evaluation mode: a copy, or the `twin` given, which is one. Those that are not
    trained stay as they are.
    """

    def __init__(self, model: nn.Module, decay: float, twin: nn.Module | None = None) -> None:
        self.decay = decay
        self.model = (twin or copy.deepcopy(model)).eval().requires_grad_(False)
        pairs = [
            (mine, theirs)
            for mine, theirs in zip(self.model.parameters(), model.parameters(), strict=True)
            if theirs.requires_grad
        ]
        self._mine: list[Tensor] = [local(mine.detach()) for mine, _ in pairs]
        self._theirs: list[Tensor] = [local(theirs.detach()) for _, theirs in pairs]

    @torch.no_grad()
    def update(self, step: int, refused: Tensor | None = None) -> None:
        """Take in the weights as they are after `step` (from 0), unless the step was `refused` (not 0)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        if refused is None or refused.device.type in ("cpu", "mps"):  # which are known at once
            if refused is None or not refused:
                torch._foreach_lerp_(self._mine, self._theirs, 1 - decay)
            return
        share = (1 - decay) * (refused == 0).float()
        for mine, theirs in zip(self._mine, self._theirs, strict=True):
            mine.lerp_(theirs, share)
