"""Every named model, in one table.

Sizes: "An Image is Worth 16x16 Words" Table 1 (B, L, H), DeiT (Ti, S), "Scaling Vision Transformers" Table 2
(g, G). `micro`, `nano` and `mini` are ours, for small pictures and small machines. A name reads
`vit_{size}_patch{patch}_{side}` as in timm; `vit-b/16` is short for the one at 224 pixels.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from vitrine.config.options import ModelConfig
from vitrine.config.text import from_dict, to_dict
from vitrine.errors import NotFound, nearest


class Size(NamedTuple):
    """What a letter of the papers stands for."""

    embed_dim: int
    depth: int
    num_heads: int
    mlp_ratio: float
    short: str
    published: dict[int, tuple[int, ...]]
    """Sides in pixels by patch size."""


SIZES = {
    "micro": Size(64, 4, 4, 2, "micro", {2: (8,)}),
    "nano": Size(128, 6, 4, 4, "nano", {8: (32,)}),
    "mini": Size(192, 9, 3, 4, "mini", {4: (32,), 8: (64,), 16: (128,)}),
    "tiny": Size(192, 12, 3, 4, "ti", {16: (224, 384)}),
    "small": Size(384, 12, 6, 4, "s", {8: (224,), 14: (224,), 16: (224, 384), 32: (224, 384)}),
    "base": Size(768, 12, 12, 4, "b", {8: (224,), 14: (224,), 16: (224, 384), 32: (224, 384)}),
    "large": Size(1024, 24, 16, 4, "l", {14: (224,), 16: (224, 384), 32: (224, 384)}),
    "huge": Size(1280, 32, 16, 4, "h", {14: (224, 518), 16: (224,)}),
    "giant": Size(1408, 40, 16, 6144 / 1408, "g", {14: (224, 518)}),
    "gigantic": Size(1664, 48, 16, 8192 / 1664, "gg", {14: (224,)}),
}

NAMES = tuple(
    f"vit_{size}_patch{patch}_{side}"
    for size, entry in SIZES.items()
    for patch, sides in entry.published.items()
    for side in sides
)

ALIASES = {
    f"vit-{entry.short}/{patch}": f"vit_{size}_patch{patch}_{sides[0]}"
    for size, entry in SIZES.items()
    for patch, sides in entry.published.items()
}


def named(name: str, **overrides: Any) -> ModelConfig:
    """The configuration of a named model, with options replaced.

    Raises `NotFound` with the nearest name, or `BadConfig` where an override does not fit.
    """
    full = ALIASES.get(name.lower(), name)
    if full not in NAMES:
        raise NotFound(
            f"{name!r}: there is no such model.{nearest(name, [*NAMES, *ALIASES])} `vitrine info --models` lists them."
        )
    size, patch, side = re.fullmatch(r"vit_([a-z]+)_patch(\d+)_(\d+)", full).groups()  # type: ignore[union-attr]
    entry = SIZES[size]
    config = ModelConfig(
        img_size=int(side),
        patch_size=int(patch),
        embed_dim=entry.embed_dim,
        depth=entry.depth,
        num_heads=entry.num_heads,
        mlp_ratio=entry.mlp_ratio,
    )
    unknown = [key for key in overrides if key not in ModelConfig.__dataclass_fields__]
    if unknown:
        raise NotFound(
            f"{unknown[0]!r}: models have no such option.{nearest(unknown[0], ModelConfig.__dataclass_fields__)}"
        )
    return from_dict(ModelConfig, {**to_dict(config), **overrides}, "model.")
