"""Attention rollout: what the output token saw of each patch, through all layers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from vitrine.errors import UsageError


def rollout(attentions: Sequence[Float[Tensor, "B h N N"]]) -> Float[Tensor, "B N N"]:
    """Ã = A_L ... A_1 with A_l = 0.5 mean_h(W_l) + 0.5 I, rows normalised: each row sums to 1.

    `attentions` are the layers' weights W_l from the first to the last. The identity stands for the
    residual connection. Source: Abnar and Zuidema, "Quantifying Attention Flow in Transformers",
    arXiv:2005.00928, section 3. The paper averages over the heads too. Raises `UsageError` for no layer.
    """
    if not attentions:
        raise UsageError("rollout of 0 layers: give the attention of every layer, from the first to the last.")
    joint: Tensor | None = None
    for attention in attentions:
        mixed = attention.mean(dim=1)
        layer = 0.5 * mixed + 0.5 * torch.eye(mixed.shape[-1], dtype=mixed.dtype, device=mixed.device)
        layer = layer / layer.sum(dim=-1, keepdim=True)
        joint = layer if joint is None else layer @ joint
    assert joint is not None
    return joint


def picture_map(
    weights: Float[Tensor, "*lead N N"], grid: tuple[int, int], num_prefix_tokens: int, pooled: bool
) -> Float[Tensor, "*lead gh gw"]:
    """How much of the model's output comes from each patch, summing to 1 over the `grid` (rows, columns).

    `weights` are a rollout, (B, N, N), or a layer's attention with a map for each head, (B, h, N, N). Read
    from the row of the class token, or from the mean over the patches' rows where the model averages its
    patches (`pooled`). Only patch columns count; a row that saw no patch at all gives zeros.
    Raises `UsageError` when the grid does not fit the tokens.
    """
    N, patches = weights.shape[-1], grid[0] * grid[1]
    if num_prefix_tokens + patches != N:
        raise UsageError(
            f"a grid of {grid[0]}x{grid[1]} and {num_prefix_tokens} prefix tokens do not make {N} tokens: "
            "give the grid of the pictures that the attention was computed for."
        )
    if not pooled and num_prefix_tokens == 0:
        raise UsageError("the model has no class token whose row could be read: set pooled, as it averages patches.")
    columns = weights[..., num_prefix_tokens:]
    row = columns[..., num_prefix_tokens:, :].mean(dim=-2) if pooled else columns[..., 0, :]
    row = row / row.sum(dim=-1, keepdim=True).clamp_min(torch.finfo(row.dtype).tiny)
    return row.unflatten(-1, grid)
