"""Muon (Jordan et al., 2024): momentum made orthogonal for the matrices of the blocks, AdamW for all the rest."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
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
    """`matrices` follow their orthogonalised Nesterov momentum, `rest` follow AdamW, at one learning rate; both groups.

    A fused query-key-value matrix counts as three. The iteration runs in bfloat16 on a GPU and in float32 on a
    CPU, where torch.optim.Muon's bfloat16 takes several times as long without hardware for it.
    """

    def __init__(
        self, matrices: Sequence[dict[str, Any]], rest: Sequence[dict[str, Any]], *, lr: float, momentum: float,
        betas: tuple[float, float], eps: float = 1e-8,
    ) -> None:  # fmt: skip
        fused = matrices[0]["params"][0].device.type in ("cpu", "cuda")
        self._adamw = torch.optim.AdamW([dict(group) for group in rest], lr=lr, betas=betas, eps=eps, fused=fused)
        own = [{"lr": lr, "momentum": momentum, **group} for group in matrices]
        super().__init__([*own, *self._adamw.param_groups], {})
        self.found_inf: Tensor | None = None
        """As torch's fused optimisers know it: where it is 1, on the device, a step changes nothing."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        assert closure is None, "the loss is computed before"
        mine = [group for group in self.param_groups if "momentum" in group]
        alike: dict[torch.Size, list[tuple[Tensor, Tensor, float]]] = defaultdict(list)
        for group in mine:
            for matrix in group["params"]:
                if matrix.grad is not None:
                    matrix.mul_(1 - group["lr"] * group["weight_decay"] * self._counts())
                    for part, ahead in self._parts(matrix, group["momentum"]):
                        alike[ahead.shape].append((part, ahead, group["lr"]))
        for shape, found in alike.items():
            updates = orthogonal(torch.stack([ahead for _, ahead, _ in found]))
            for (part, _, rate), update in zip(found, updates, strict=True):
                length = rate * RMS * max(shape) ** 0.5
                if self.found_inf is not None:
                    update = update * self._counts()
                part.add_(update, alpha=-length)
        # The state is one, so that saving and loading need not know of the two.
        self._adamw.param_groups, self._adamw.state = self.param_groups[len(mine) :], self.state
        known: Any = self._adamw  # torch has the attribute in no class
        known.found_inf = self.found_inf
        self._adamw.step()

    def _counts(self) -> Tensor | float:
        """1, and 0 on the device where the step is to change nothing."""
        return 1.0 if self.found_inf is None else 1 - self.found_inf

    def _parts(self, matrix: Tensor, momentum: float) -> Iterator[tuple[Tensor, Tensor]]:
        """The matrix, or its thirds where it is queries, keys and values, each with its Nesterov momentum."""
        gradient, state = matrix.grad, self.state[matrix]
        assert gradient is not None
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(matrix)
        if self.found_inf is not None:
            gradient = torch.where(self.found_inf > 0, 0.0, gradient)
        state["momentum"].lerp_(gradient, (1 - momentum) * self._counts())
        ahead = gradient.lerp(state["momentum"], momentum)
        count = 3 if matrix.shape[0] == 3 * matrix.shape[1] else 1
        return zip(matrix.chunk(count), ahead.chunk(count), strict=True)


def orthogonal(matrices: Float[Tensor, "n rows columns"]) -> Float[Tensor, "n rows columns"]:
    """About U V^T of each singular value decomposition U S V^T, by five steps of a quintic Newton-Schulz iteration.

    X <- (a + b A + c A^2) X with A = X X^T, from X = matrix / its Frobenius norm. Where X is much wider than high
    the small A is carried along instead, A <- T A T with T = a + b A + c A^2, and the product of all T is applied
    to X once: the same sum, in float32, at less than half the cost.
    """
    a, b, c = COEFFICIENTS
    x = matrices.bfloat16() if matrices.device.type == "cuda" else matrices
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    square, whole = torch.bmm(x, x.mT), None
    carried = x.shape[2] >= 2 * x.shape[1] and x.dtype != torch.bfloat16
    unit = a * torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    for left in reversed(range(ITERATIONS)):
        turn = torch.baddbmm(square, square, square, beta=b, alpha=c) + unit
        if not carried:
            x = torch.bmm(turn, x)
            square = torch.bmm(x, x.mT) if left else square
            continue
        whole = turn if whole is None else torch.bmm(turn, whole)
        square = torch.bmm(torch.bmm(turn, square), turn) if left else square
    x = x if whole is None else torch.bmm(whole, x)
    return (x.mT if tall else x).to(matrices.dtype)
