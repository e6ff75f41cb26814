"""LAMB (arXiv:1904.00962, algorithm 2): Adam whose step in each matrix is as long as the matrix is large."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from vitrine.train.shards import local, norms


class Lamb(torch.optim.Optimizer):
    """Groups of parameters follow LAMB where they have weight decay, and Adam where they have none.

    With r = m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + eps) + decay w, the step is lr |w| / |r| r for each
    tensor of a group with decay, and lr r for one without, or where w or r is zero. That is apex's FusedLAMB, which
    DeiT-III was trained with, and timm's Lamb, but for one thing: both also clip the whole gradient to norm 1, which
    is left to the training step (`optim.clip_norm`, 1 by default).
    """

    def __init__(self, groups: Sequence[dict[str, Any]], *, lr: float, betas: tuple[float, float], eps: float) -> None:
        super().__init__([dict(group) for group in groups], {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0})
        self.found_inf: Tensor | None = None
        """As torch's fused optimisers know it: where it is 1, on the device, a step changes nothing."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        assert closure is None, "the loss is computed before"
        for group in self.param_groups:
            learnt = [w for w in group["params"] if w.grad is not None]
            if learnt:
                direction = self._adam if self.found_inf is None else self._adam_unless_found
                updates, weights = direction(learnt, group["betas"], group["eps"]), [local(w) for w in learnt]
                if group["weight_decay"]:
                    torch._foreach_add_(updates, weights, alpha=group["weight_decay"])
                    torch._foreach_mul_(updates, trust(weights, updates, learnt))
                if self.found_inf is not None:
                    torch._foreach_mul_(updates, 1 - self.found_inf)
                torch._foreach_add_(weights, updates, alpha=-group["lr"])

    def _adam(self, weights: list[Tensor], betas: tuple[float, float], eps: float) -> list[Tensor]:
        """Adam's direction, both moments corrected for their beginning at zero."""
        self._begin(weights)
        for w in weights:
            self.state[w]["step"] += 1
        steps = [float(self.state[w]["step"]) for w in weights]
        means, squares = ([local(self.state[w][slot]) for w in weights] for slot in ("exp_avg", "exp_avg_sq"))
        gradients = [local(w.grad) for w in weights if w.grad is not None]
        torch._foreach_lerp_(means, gradients, 1 - betas[0])
        torch._foreach_mul_(squares, betas[1])
        torch._foreach_addcmul_(squares, gradients, gradients, value=1 - betas[1])
        below = torch._foreach_sqrt(squares)
        torch._foreach_div_(below, [math.sqrt(1 - betas[1] ** t) for t in steps])
        torch._foreach_add_(below, eps)
        updates = torch._foreach_div(means, [1 - betas[0] ** t for t in steps])
        torch._foreach_div_(updates, below)
        return list(updates)

    def _adam_unless_found(self, weights: list[Tensor], betas: tuple[float, float], eps: float) -> list[Tensor]:
        """The same without asking the device, on which steps are counted: where `found_inf` is 1 the moments and the
        count stay, and the direction is finite."""
        assert self.found_inf is not None
        found, counts = self.found_inf, 1 - self.found_inf
        self._begin(weights)
        for w in weights:
            self.state[w]["step"] = self.state[w]["step"].to(w.device) + counts
        steps = torch.stack([self.state[w]["step"] for w in weights]).double().clamp(min=1)
        means, squares = ([local(self.state[w][slot]) for w in weights] for slot in ("exp_avg", "exp_avg_sq"))
        gradients = [torch.where(found > 0, 0.0, local(w.grad)) for w in weights if w.grad is not None]
        torch._foreach_mul_(means, 1 - (1 - betas[0]) * counts)
        torch._foreach_add_(means, gradients, alpha=1 - betas[0])
        torch._foreach_mul_(squares, 1 - (1 - betas[1]) * counts)
        torch._foreach_addcmul_(squares, gradients, gradients, value=1 - betas[1])
        below = torch._foreach_sqrt(squares)
        torch._foreach_div_(below, list((1 - betas[1] ** steps).sqrt().float().unbind()))
        torch._foreach_add_(below, eps)
        updates = torch._foreach_div(means, list((1 - betas[0] ** steps).float().unbind()))
        torch._foreach_div_(updates, below)
        return list(updates)

    def _begin(self, weights: list[Tensor]) -> None:
        for w in weights:
            if not self.state[w]:
                zero = {slot: torch.zeros_like(w) for slot in ("exp_avg", "exp_avg_sq")}
                self.state[w].update(step=torch.zeros(()), **zero)


def trust(weights: list[Tensor], updates: list[Tensor], like: list[Tensor]) -> list[Tensor]:
    """|w| / |r| of each pair, 1 where one of them is zero: a tensor that begins at zero would stay there.

    The norms are of whole tensors, of which these may be shares, parted as `like`.
    """
    sizes, lengths = (norms(tensors, like) for tensors in (weights, updates))
    return list(torch.where((sizes > 0) & (lengths > 0), sizes / lengths, 1.0).unbind())
