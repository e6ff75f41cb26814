"""Positions that are added to the tokens: what kinds there are, and how their tables come to another grid.

Those that act inside the attention stand in `relative.py` and `rotary.py`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vitrine.config.architecture import ModelConfig

# Section 3.5 of "Attention Is All You Need" (arXiv:1706.03762), and all sin-cos kinds after it.
BASE = 10000.0


def num_named(config: ModelConfig) -> int:
    """Tokens before the patches that have a position: class and distillation token, unless `no_embed_class`.

    Registers have none in any kind: they stand for no place.
    """
    return 0 if config.no_embed_class else int(config.class_token) + int(config.distilled)


def num_slots(config: ModelConfig) -> int:
    """Rows of the learned table of kind `learn`: the named tokens, then the patches. 0 for other kinds."""
    return num_named(config) + config.grid[0] * config.grid[1] if config.pos_embed == "learn" else 0


def learned(config: ModelConfig) -> nn.Parameter | Axes | None:
    """What there is to learn: for `learn` a table (L, S, D), for `learn2d` its axes; None for other kinds.

    L is the depth for `pos_at` layers, where each layer has its own, and else 1.
    """
    if config.pos_embed == "learn2d":
        return Axes(config)
    return vectors(num_tables(config), num_slots(config), config.embed_dim) if config.pos_embed == "learn" else None


def num_tables(config: ModelConfig) -> int:
    """L: tables that are learned, one a layer or one in all."""
    return config.depth if config.pos_at == "layers" else 1


def vectors(*shape: int) -> nn.Parameter:
    """A parameter of `shape`, to be filled."""
    return nn.Parameter(torch.empty(shape, dtype=torch.get_default_dtype()))


class Axes(nn.Module):
    """Learned 2-D positions of appendix D.4: e_(row, column) = [X_column ; Y_row], X and Y of width D / 2.

    The class token lies on no axis and has a vector of its own in `named`, as the distillation token.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        L, D, (rows, columns) = num_tables(config), config.embed_dim, config.grid
        self.x, self.y = vectors(L, columns, D // 2), vectors(L, rows, D // 2)
        self.named = vectors(L, num_named(config), D) if num_named(config) else None

    def forward(self, config: ModelConfig, grid: tuple[int, int]) -> Float[Tensor, "L S D"]:
        """The vectors of the named tokens, then of the patches of `grid`, each axis resized in one dimension."""
        x = on_grid(config, self.x, (1, self.x.shape[1]), (1, grid[1]))
        y = on_grid(config, self.y, (self.y.shape[1], 1), (grid[0], 1))
        L, _, half = x.shape
        across, down = x[:, None].expand(L, *grid, half), y[:, :, None].expand(L, *grid, half)
        patches = torch.cat([across, down], dim=-1).flatten(1, 2)
        return patches if self.named is None else torch.cat([self.named, patches], dim=1)


def table(
    config: ModelConfig, learned: Tensor | Axes | None, grid: tuple[int, int], like: Tensor
) -> Float[Tensor, "L N D"] | None:
    """What is added to all tokens of a `grid` of patches, in dtype and on the device of `like`; None for nothing.

    L is 1, or the depth where each layer has its own. Rows of tokens without a position are zero.
    """
    D = config.embed_dim
    named = num_named(config)
    if isinstance(learned, Axes):
        rows = learned(config, grid)
    elif learned is not None:
        rows = on_grid(config, learned, config.grid, grid)
    elif config.pos_embed == "sincos1d":
        rows = sincos1d(named + grid[0] * grid[1], D)[None]
    elif config.pos_embed in ("sincos2d", "sincos2d_mae"):
        kind = sincos2d if config.pos_embed == "sincos2d" else sincos2d_mae
        rows, named = kind(grid, D)[None], 0
    else:
        return None
    rows = rows.to(like)
    bare = config.num_prefix_tokens - named
    if bare:
        rows = torch.cat([rows[:, :named], rows.new_zeros(len(rows), bare, D), rows[:, named:]], dim=1)
    return rows


def on_grid(
    config: ModelConfig, table: Float[Tensor, "L S D"], old: tuple[int, int], new: tuple[int, int]
) -> Float[Tensor, "L S2 D"]:
    """The `table` of the `old` grid on the `new` one, by the convention of `config`; itself for the same grid."""
    if old == new:
        return table
    return resize(
        table, old, new,
        interpolation=config.pos_interpolation,
        antialias=config.pos_antialias,
        align_corners=config.pos_align_corners,
        offset=config.pos_offset,
    )  # fmt: skip


def resize(
    learned: Float[Tensor, "L S D"],
    old: tuple[int, int],
    new: tuple[int, int],
    *,
    interpolation: str = "bicubic",
    antialias: bool = True,
    align_corners: bool = False,
    offset: float = 0.0,
) -> Float[Tensor, "L S2 D"]:
    """The table of the `old` grid on the `new` one, in two dimensions; rows for prefix tokens stay as they are.

    Section 3.2 of the paper asks for 2-D interpolation and leaves the convention open: timm smooths
    (antialias), torchvision aligns corners, transformers and DeiT do neither. The paper's own code calls
    scipy's `zoom` of order 1, which is bilinear with aligned corners. DINOv2 samples at intervals of
    old / (new + `offset`) instead of old / new (its `interpolate_offset` of 0.1).

    torch offers no smoothing with aligned corners, so `align_corners` switches it off, and the offset too,
    which has no meaning where the corners are given.
    """
    prefix = learned.shape[1] - old[0] * old[1]
    head, patches = learned[:, :prefix], learned[:, prefix:]
    image = patches.unflatten(1, old).permute(0, 3, 1, 2)
    image = image.to(torch.promote_types(image.dtype, torch.float32))
    by_scale = offset != 0.0 and not align_corners
    image = F.interpolate(
        image,
        size=None if by_scale else new,
        scale_factor=[(after + offset) / before for before, after in zip(old, new, strict=True)] if by_scale else None,
        mode=interpolation,
        align_corners=align_corners,
        antialias=antialias and not align_corners,
    )
    return torch.cat([head, image.permute(0, 2, 3, 1).flatten(1, 2).to(learned.dtype)], dim=1)


def sincos1d(rows: int, dim: int) -> Float[Tensor, "S D"]:
    """Fixed 1-D positions of "Attention Is All You Need" (arXiv:1706.03762, section 3.5), in float64.

    PE(p, 2i) = sin(p / 10000^(2i / D)), PE(p, 2i + 1) = cos(p / 10000^(2i / D)), p being the place in the
    sequence: the class token is 0, the distillation token 1, and the patches follow row by row. With
    `no_embed_class` the first patch is 0. The place of a patch depends on how long the rows of its grid are.
    """
    omega = BASE ** -(torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    angles = torch.arange(rows, dtype=torch.float64)[:, None] * omega
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)


def sincos2d(grid: tuple[int, int], dim: int) -> Float[Tensor, "P D"]:
    """Fixed 2-D positions of "Better plain ViT baselines" (arXiv:2205.01580), row by row, in float64.

    omega_i = 10000^(-i / (D/4 - 1)) for i = 0 .. D/4 - 1; a patch in column x and row y has
    [sin(x omega), cos(x omega), sin(y omega), cos(y omega)]. The class token has none.
    """
    quarter = dim // 4
    return _sincos2d(grid, torch.arange(quarter, dtype=torch.float64) / max(1, quarter - 1))


def sincos2d_mae(grid: tuple[int, int], dim: int) -> Float[Tensor, "P D"]:
    """Fixed 2-D positions of MAE (arXiv:2111.06377, `util/pos_embed.py`), row by row, in float64.

    As `sincos2d` with omega_i = 10000^(-i / (D/4)): the slowest wave stays faster than 1 / 10000. The code
    calls its first half that of the height, but its mesh has the column there ("here w goes first").
    """
    quarter = dim // 4
    return _sincos2d(grid, torch.arange(quarter, dtype=torch.float64) / quarter)


def _sincos2d(grid: tuple[int, int], exponents: Float[Tensor, " quarter"]) -> Float[Tensor, "P D"]:
    omega = BASE**-exponents
    rows, columns = (torch.arange(side, dtype=torch.float64) for side in grid)
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    angles_x, angles_y = x.reshape(-1, 1) * omega, y.reshape(-1, 1) * omega
    return torch.cat([angles_x.sin(), angles_x.cos(), angles_y.sin(), angles_y.cos()], dim=1)
