"""Relative positions: what attention adds to its logits, and to its values, for the way from token to token.

Three kinds share two rules. A pair of patches has the row of its offset; where one of the two is a prefix token,
which lies nowhere, there are three more rows: from prefix to patch, from patch to prefix, from prefix to
prefix. With `no_embed_class` such pairs have nothing added.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from vitrine.config.architecture import ModelConfig
from vitrine.models.positions import on_grid, vectors
from vitrine.models.rotary import Turn

OfWeights = Callable[[Tensor], Tensor]
"""From attention weights (B, h, N, N) to what is added to the mixed values (B, h, N, d)."""

EXTRA = 3
"""Rows for pairs with a prefix token: prefix to patch, patch to prefix, prefix to prefix."""


class RelativeBias(nn.Module):
    """A 2-D bias table (Swin, arXiv:2103.14030, equation 4; BEiT; T5 in one dimension).

    The logit of query i and key j in head h is (q_i . k_j) / sqrt(d) + B[y_i - y_j, x_i - x_j, h]. On another
    grid the table, an image of (2 rows - 1) x (2 columns - 1) offsets, is resized as positions are. The name of
    the parameter and the order of its rows are timm's (`RelPosBias`).
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        rows = num_offsets2d(config.grid) + num_extra(config)
        self.relative_position_bias_table = vectors(rows, config.num_heads)

    def forward(self, q: Float[Tensor, "B h N d"], grid: tuple[int, int]) -> tuple[Float[Tensor, "1 h N N"], None]:
        """What is added to the logits, for patches in a `grid`; nothing to the values."""
        table = bias_on_grid(self.config, self.relative_position_bias_table, grid)
        index = with_prefix(offsets2d(grid, q.device), num_offsets2d(grid), self.config.num_prefix_tokens)
        return with_extra(table, num_offsets2d(grid)).to(q.dtype)[index].permute(2, 0, 1)[None], None


class RelativeKeys(nn.Module):
    """Relative embeddings that meet the query as keys do, in two forms.

    `rel1d`, appendix D.4 of arXiv:2010.11929: every offset p_i - p_j of two patches, counted row by row, has an
    embedding R of width D, which splits into heads as keys do. "We run extra attention, where we use the
    original query, but use relative positional embeddings as keys", and its logits are a bias to those of the
    main attention: (q_i . k_j) / sqrt(d) + (q_i . R[p_i - p_j, h]) / sqrt(d). On another grid R is resized in
    two dimensions and read back in one (`keys_on_grid`).

    `rel_shaw`, arXiv:1803.02155, equations 3 to 5: with c = clip(p_j - p_i, -k, k) the logits are
    q_i . (k_j + K[c]) / sqrt(d), and the values too are relative, z_i = sum_j a_ij (v_j + V[c]). K and V have
    width d and are shared among the heads, as there (section 3.4). k is `pos_clip`, counted in tokens: the
    tables are the same for every grid.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.scale: float = config.width_of_head**-0.5
        shaw = config.pos_embed == "rel_shaw"
        offsets = 2 * config.pos_clip + 1 if shaw else 2 * config.grid[0] * config.grid[1] - 1
        rows, d = offsets + num_extra(config), config.width_of_head
        self.keys = vectors(rows, d if shaw else config.num_heads * d)
        self.values = vectors(rows, d) if shaw else None

    def index(self, grid: tuple[int, int], device: torch.device) -> tuple[Int[Tensor, "N N"], int]:
        """The row of every pair of tokens, and the number of rows for offsets."""
        patches = grid[0] * grid[1]
        reach = patches - 1 if self.values is None else self.config.pos_clip
        place = torch.arange(patches, device=device)
        offsets = place[:, None] - place if self.values is None else place - place[:, None]
        rows = offsets.clamp(-reach, reach) + reach
        return with_prefix(rows, 2 * reach + 1, self.config.num_prefix_tokens), 2 * reach + 1

    def forward(
        self, q: Float[Tensor, "B h N d"], grid: tuple[int, int]
    ) -> tuple[Float[Tensor, "B h N N"], OfWeights | None]:
        """What is added to the logits, for patches in a `grid`, queries times relative keys, scaled; and the
        relative part of the values, as a function of the weights."""
        index, offsets = self.index(grid, q.device)
        keys = self.keys if self.values is not None else keys_on_grid(self.config, self.keys, grid)
        keys = with_extra(keys, offsets).to(q.dtype).unflatten(1, (-1, q.shape[-1]))  # (rows, h or 1, d)
        every = (q * self.scale) @ keys.permute(1, 2, 0)  # against all rows, of which each key has one
        bias = every.gather(-1, index.expand(*q.shape[:2], -1, -1))
        return bias, None if self.values is None else partial(self.mix, grid=grid)

    def mix(self, weights: Float[Tensor, "B h N N"], grid: tuple[int, int]) -> Float[Tensor, "B h N d"]:
        """sum_j a_ij V[c_ij]: the part of the values that is relative."""
        assert self.values is not None
        index, offsets = self.index(grid, weights.device)
        values = with_extra(self.values, offsets).to(weights.dtype)
        shares = weights.new_zeros(*weights.shape[:3], len(values))
        return shares.scatter_add(-1, index.expand(*weights.shape[:2], -1, -1), weights) @ values


Relative = RelativeBias | RelativeKeys


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where the tokens of one batch lie: what the attention of every layer is told about positions.

    The grid of patches, the angles of rotary positions, and the relative positions that all layers share.
    """

    grid: tuple[int, int]
    turn: Turn | None = None
    shared: Relative | None = None


def relative(config: ModelConfig) -> Relative | None:
    """The relative positions of one layer, or of all; None for other kinds."""
    if config.pos_embed == "rel_bias2d":
        return RelativeBias(config)
    return RelativeKeys(config) if config.pos_embed in ("rel1d", "rel_shaw") else None


def num_extra(config: ModelConfig) -> int:
    """Rows of a relative table for pairs with a prefix token."""
    return EXTRA if config.num_prefix_tokens and not config.no_embed_class else 0


def num_offsets2d(grid: tuple[int, int]) -> int:
    """Offsets that two patches of a `grid` can have, in two dimensions."""
    return (2 * grid[0] - 1) * (2 * grid[1] - 1)


def offsets2d(grid: tuple[int, int], device: torch.device | None = None) -> Int[Tensor, "P P"]:
    """The number of each pair's offset (y_i - y_j, x_i - x_j), counted row by row from the most negative."""
    rows, columns = grid
    y = torch.arange(rows, device=device).repeat_interleave(columns)
    x = torch.arange(columns, device=device).repeat(rows)
    down, across = y[:, None] - y + rows - 1, x[:, None] - x + columns - 1
    return down * (2 * columns - 1) + across


def with_prefix(index: Int[Tensor, "P P"], offsets: int, prefix: int) -> Int[Tensor, "N N"]:
    """The rows of all pairs of tokens, those with one of `prefix` tokens after the `offsets` of the patches."""
    if prefix == 0:
        return index
    patches = len(index)
    to_patches, to_prefix, within = (index.new_full((), offsets + i) for i in range(EXTRA))
    above = torch.cat([within.expand(prefix, prefix), to_patches.expand(prefix, patches)], dim=1)
    return torch.cat([above, torch.cat([to_prefix.expand(patches, prefix), index], dim=1)])


def with_extra(table: Float[Tensor, "R C"], offsets: int) -> Float[Tensor, "R2 C"]:
    """The table with its rows for prefix tokens, zero where it has none."""
    return table if len(table) > offsets else F.pad(table, (0, 0, 0, EXTRA))


def bias_on_grid(config: ModelConfig, table: Float[Tensor, "R h"], grid: tuple[int, int]) -> Float[Tensor, "R2 h"]:
    """The bias table for the patches of `grid`: the image of its offsets resized, the rows for prefix tokens kept."""
    old, new = ((2 * rows - 1, 2 * columns - 1) for rows, columns in (config.grid, grid))
    offsets = num_offsets2d(config.grid)
    return torch.cat([on_grid(config, table[None, :offsets], old, new)[0], table[offsets:]])


def keys_on_grid(config: ModelConfig, keys: Float[Tensor, "R C"], grid: tuple[int, int]) -> Float[Tensor, "R2 C"]:
    """The keys of one-dimensional offsets for the patches of `grid`.

    An offset p_i - p_j = dy W + dx means another way on a grid with another row length W. So the table is laid
    out as an image over (dy, dx), resized as positions are, and read back: an offset gets the mean over the
    pairs of patches that have it, of which there are (H - |dy|) (W - |dx|) for each (dy, dx).
    """
    if grid == config.grid:
        return keys
    offsets = 2 * config.grid[0] * config.grid[1] - 1
    one, _, _ = _ways(config.grid, keys.device)
    old, new = ((2 * rows - 1, 2 * columns - 1) for rows, columns in (config.grid, grid))
    image = on_grid(config, keys[one][None], old, new)[0]
    place, pairs, count = _ways(grid, keys.device)
    total = image.new_zeros(2 * count - 1, image.shape[1]).index_add(0, place, image * pairs[:, None].to(image))
    number = image.new_zeros(2 * count - 1).index_add(0, place, pairs.to(image))
    return torch.cat([total / number[:, None], keys[offsets:]])


def _ways(grid: tuple[int, int], device: torch.device) -> tuple[Int[Tensor, " O"], Int[Tensor, " O"], int]:
    """For every (dy, dx) of a grid, row by row: its one-dimensional offset as a row of a table, and how many pairs
    of patches have it; and the number of patches."""
    rows, columns = grid
    dy = torch.arange(1 - rows, rows, device=device)[:, None]
    dx = torch.arange(1 - columns, columns, device=device)
    place = dy * columns + dx + rows * columns - 1
    pairs = (rows - dy.abs()) * (columns - dx.abs())
    return place.flatten(), pairs.flatten(), rows * columns


def moved(tensors: Mapping[str, Tensor], old: ModelConfig, new: ModelConfig) -> dict[str, Tensor]:
    """`tensors` of a model of `old` with all learned positions on the grid of `new`, by the convention of `new`.

    The model of `new` then computes at its own size what the one of `old` computes for pictures of that size.
    """
    found = dict(tensors)
    source = replace(new, img_size=old.img_size, patch_size=old.patch_size)
    for name, tensor in tensors.items():
        match name.split("."):
            case ["pos_embed"]:
                found[name] = on_grid(source, tensor, old.grid, new.grid)
            case ["pos_embed", "x"]:
                found[name] = on_grid(source, tensor, (1, old.grid[1]), (1, new.grid[1]))
            case ["pos_embed", "y"]:
                found[name] = on_grid(source, tensor, (old.grid[0], 1), (new.grid[0], 1))
            case [*_, "relative_position_bias_table"]:
                found[name] = bias_on_grid(source, tensor, new.grid)
            case [*_, "rel_pos" | "shared_rel_pos", "keys"] if old.pos_embed == "rel1d":
                found[name] = keys_on_grid(source, tensor, new.grid)
    return found
