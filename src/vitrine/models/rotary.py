"""Rotary positions: queries and keys are turned by angles that grow with their place (arXiv:2104.09864)."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from vitrine.config.architecture import ModelConfig

Turn = tuple[Float[Tensor, "P d"], Float[Tensor, "P d"]]


def turn(config: ModelConfig, grid: tuple[int, int], like: Tensor) -> Turn | None:
    """Cosine and sine of the angles of every patch of a `grid`, row by row; None without rotary positions.

    As in DINOv3 (arXiv:2508.10104; `dinov3/layers/rope_position_encoding.py`, coordinates "separate", as at
    evaluation, without its random shifts). The centre of the patch in row i of H has y = 2 (i + 1/2) / H - 1,
    in column j of W x = 2 (j + 1/2) / W - 1: the picture is [-1, 1] squared whatever its shape. With periods
    T_m = theta^(4 m / d), m = 0 .. d/4 - 1, the angles are 2 pi [y / T ; x / T], and the same once more for
    the second half of the head.

    In float32, or float64 where `like` is; there is nothing to learn and nothing to resize.
    """
    if config.pos_embed != "rope2d":
        return None
    d, dtype = config.width_of_head, torch.promote_types(like.dtype, torch.float32)
    periods = config.rope_theta ** (2 * torch.arange(d // 4, dtype=dtype, device=like.device) / (d // 2))
    y, x = (2.0 * (torch.arange(0.5, side, dtype=dtype, device=like.device) / side) - 1.0 for side in grid)
    centres = torch.stack(torch.meshgrid(y, x, indexing="ij"), dim=-1).flatten(0, 1)
    angles = (2 * math.pi * centres[:, :, None] / periods).flatten(1).tile(2)
    return angles.cos(), angles.sin()


def rotate(x: Float[Tensor, "B h N d"], by: Turn) -> Float[Tensor, "B h N d"]:
    """Queries or keys with the patches turned, the pair being (x_m, x_(m + d/2)); prefix tokens stay.

    x_m cos - x_(m + d/2) sin, and x_(m + d/2) cos + x_m sin: the product of a query and a key then depends
    on the difference of their places alone. Computed in the precision of the angles.
    """
    cosine, sine = by
    prefix = x.shape[2] - len(cosine)
    patches = x[:, :, prefix:].to(cosine.dtype)
    first, second = patches.chunk(2, dim=-1)
    turned = patches * cosine + torch.cat([-second, first], dim=-1) * sine
    return torch.cat([x[:, :, :prefix], turned.to(x.dtype)], dim=2)
