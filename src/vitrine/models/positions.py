"""Position embeddings: what kinds there are, where they are added, how they are resized to another grid."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from vitrine.config.options import ModelConfig


def num_slots(config: ModelConfig) -> int:
    """Rows of the learned table: one a patch, and one for the class token unless `no_embed_class`; 0 for none."""
    if config.pos_embed != "learn":
        return 0
    rows, columns = config.grid
    return rows * columns + int(config.class_token and not config.no_embed_class)


def table(
    config: ModelConfig,
    learned: Float[Tensor, "1 S D"] | None,
    grid: tuple[int, int],
    tokens: Float[Tensor, "B P D"],
) -> Float[Tensor, "1 S2 D"] | None:
    """What is added to the tokens of a `grid` of patches, in the dtype and on the device of `tokens`."""
    if config.pos_embed == "sincos2d":
        return sincos2d(grid, config.embed_dim).to(tokens)[None]
    if learned is None:
        return None
    if grid != config.grid:
        learned = resize(
            learned, config.grid, grid,
            interpolation=config.pos_interpolation,
            antialias=config.pos_antialias,
            align_corners=config.pos_align_corners,
        )  # fmt: skip
    return learned


def resize(
    learned: Float[Tensor, "1 S D"],
    old: tuple[int, int],
    new: tuple[int, int],
    *,
    interpolation: str = "bicubic",
    antialias: bool = True,
    align_corners: bool = False,
) -> Float[Tensor, "1 S2 D"]:
    """The table of the `old` grid on the `new` one, in two dimensions; rows for prefix tokens stay as they are.

    Section 3.2 of the paper asks for 2-D interpolation and leaves the convention open: timm smooths
    (antialias), torchvision and JAX align corners, transformers and DeiT do neither. torch offers no
    smoothing with aligned corners, so `align_corners` switches it off.
    """
    prefix = learned.shape[1] - old[0] * old[1]
    head, patches = learned[:, :prefix], learned[:, prefix:]
    image = patches.reshape(1, *old, -1).permute(0, 3, 1, 2)
    image = image.to(torch.promote_types(image.dtype, torch.float32))
    image = F.interpolate(
        image,
        size=new,
        mode=interpolation,
        align_corners=align_corners,
        antialias=antialias and not align_corners,
    )
    return torch.cat([head, image.permute(0, 2, 3, 1).flatten(1, 2).to(learned.dtype)], dim=1)


def sincos2d(grid: tuple[int, int], dim: int) -> Float[Tensor, "P D"]:
    """Fixed 2-D sin-cos positions of "Better plain ViT baselines" (arXiv:2205.01580), row by row.

    omega_i = 10000^(-i / (D/4 - 1)) for i = 0 .. D/4 - 1; a patch in column x and row y has
    [sin(x omega), cos(x omega), sin(y omega), cos(y omega)].
    """
    quarter = dim // 4
    omega = 10000.0 ** -(torch.arange(quarter, dtype=torch.float64) / max(1, quarter - 1))
    rows, columns = (torch.arange(side, dtype=torch.float64) for side in grid)
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    angles_x, angles_y = x.reshape(-1, 1) * omega, y.reshape(-1, 1) * omega
    return torch.cat([angles_x.sin(), angles_x.cos(), angles_y.sin(), angles_y.cos()], dim=1).float()
