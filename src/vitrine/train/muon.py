"""Muon (Jordan et al., 2024): momentum made orthogonal for the matrices of the blocks, AdamW for all the rest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic whose iteration drives every singular value towards 1, to within about a third."""

ITERATIONS = 5
RMS = 0.2
"""Root mean square of an update at learning rate 1: that of AdamW's (arXiv:2502.16982, equation 4), so one rate and one
weight decay serve both."""


class Muon(torch.optim.Optimizer):
    """`matrices` follow their orthogonalised Nesterov momentum, `rest` (groups) follow AdamW, at one learning rate.

    A fused query-key-value matrix counts as three. The iteration runs in bfloat16 on a GPU and in float32 on a
    CPU, where torch.optim.Muon's bfloat16 takes several times as long without hardware for it.
    """

    def __init__(
        self, matrices: Sequence[Tensor], rest: Sequence[dict[str, Any]], *, lr: float, weight_decay: float,
        momentum: float, betas: tuple[float, float],
    ) -> None:  # fmt: skip
        fused = matrices[0].device.type in ("cpu", "cuda")
        self._adamw = torch.optim.AdamW([dict(group) for group in rest], lr=lr, betas=betas, fused=fused)
        own = {"params": list(matrices), "lr": lr, "weight_decay": weight_decay, "momentum": momentum}
        super().__init__([own, *self._adamw.param_groups], {})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        assert closure is None, "the loss is computed before"
        mine, *rest = self.param_groups
        for matrix in mine["params"]:
            if matrix.grad is not None:
                self._update(matrix, mine)
        # The state is one, so that saving and loading need not know of the two.
        self._adamw.param_groups, self._adamw.state = rest, self.state
        self._adamw.step()

    def _update(self, matrix: Tensor, group: dict[str, Any]) -> None:
        gradient, state = matrix.grad, self.state[matrix]
        assert gradient is not None
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(matrix)
        state["momentum"].lerp_(gradient, 1 - group["momentum"])
        ahead = gradient.lerp(state["momentum"], group["momentum"])
        rows, columns = matrix.shape
        parts = ahead.chunk(3) if rows == 3 * columns else (ahead,)
        update = torch.cat([orthogonal(part) * (RMS * max(part.shape) ** 0.5) for part in parts])
        matrix.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-group["lr"])


def orthogonal(matrix: Float[Tensor, "rows columns"]) -> Float[Tensor, "rows columns"]:
    """About U V^T of the singular value decomposition U S V^T, by five steps of a quintic Newton-Schulz iteration.

    X <- a X + (b A + c A^2) X with A = X X^T, from X = matrix / its Frobenius norm.
    """
    a, b, c = COEFFICIENTS
    x = matrix.bfloat16() if matrix.device.type == "cuda" else matrix
    tall = x.shape[0] > x.shape[1]
    x = x.t() if tall else x
    x = x / (x.norm() + 1e-7)
    for _ in range(ITERATIONS):
        square = x @ x.t()
        x = a * x + (b * square + c * square @ square) @ x
    return (x.t() if tall else x).to(matrix.dtype)
