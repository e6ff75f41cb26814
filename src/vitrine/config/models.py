"""Every named model, in one table.

Sizes: "An Image is Worth 16x16 Words" Table 1 (B, L, H), DeiT (Ti, S), DeiT-III (M), "Scaling Vision Transformers"
Table 2 (g, G), arXiv:2305.13035 (So400m). `micro`, `nano` and `mini` are ours, for small pictures and small
machines. A name reads `vit_{size}_patch{patch}_{side}` as in timm; `vit-b/16` is short for the one at 224 pixels.
The other names are timm's too; where timm has none (R50+B/32, R50+L/16, BiT 50x2, 152x1 and 200x3) they are made
as timm makes them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import is_dataclass
from typing import Any, NamedTuple

from vitrine.config.architecture import ModelConfig
from vitrine.config.text import from_dict, merge, to_dict
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
    "medium": Size(512, 12, 8, 4, "m", {}),
    "base": Size(768, 12, 12, 4, "b", {8: (224,), 14: (224,), 16: (224, 384), 32: (224, 384)}),
    "large": Size(1024, 24, 16, 4, "l", {14: (224,), 16: (224, 384), 32: (224, 384)}),
    "so400m": Size(1152, 27, 16, 4304 / 1152, "so400m", {}),
    "huge": Size(1280, 32, 16, 4, "h", {14: (224, 518), 16: (224,)}),
    "giant": Size(1408, 40, 16, 6144 / 1408, "g", {14: (224, 518)}),
    "gigantic": Size(1664, 48, 16, 8192 / 1664, "gg", {14: (224,)}),
}

# google-research/vision_transformer, models_resnet.py: what differs from BiT, whose numerics are the defaults.
STEM: dict[str, Any] = {
    "preact": False, "padding": "same", "conv_eps": 1e-5, "conv_eps_at": "std", "norm_eps": 1e-6,
}  # fmt: skip

# Bottleneck units of each stage. With 16 the units of the fourth stage stand in the third (section 4.1, "Hybrids").
R0, R26, R50, R50_16 = (), (2, 2, 2, 2), (3, 4, 6, 3), (3, 4, 9)
R101, R152, R200 = (3, 4, 23, 3), (3, 8, 36, 3), (3, 24, 36, 3)


class Hybrid(NamedTuple):
    """A ViT on the map of a ResNet: section 4.1, Table 6; arXiv:2106.10270 section 3.2."""

    size: str
    layers: tuple[int, ...]
    patch: int
    short: str
    sides: tuple[int, ...]


# R+Ti/16 is so called at home; its root has stride 4 and its patches 8, so that 32 pixels lie between tokens.
HYBRIDS = {
    "vit_tiny_r_s16_p8": Hybrid("tiny", R0, 8, "r+vit-ti/16", (224, 384)),
    "vit_small_r26_s32": Hybrid("small", R26, 1, "r26+vit-s/32", (224, 384)),
    "vit_base_r26_s32": Hybrid("base", R26, 1, "r26+vit-b/32", (224,)),
    "vit_base_r50_s32": Hybrid("base", R50, 1, "r50+vit-b/32", (224, 384)),
    "vit_base_r50_s16": Hybrid("base", R50_16, 1, "r50+vit-b/16", (224, 384)),
    "vit_large_r50_s32": Hybrid("large", R50, 1, "r50+vit-l/32", (224, 384)),
    "vit_large_r50_s16": Hybrid("large", R50_16, 1, "r50+vit-l/16", (224, 384)),
}

# BiT (arXiv:1912.11370) as released, and what Table 6 compares beside it: depth and width by name.
BIT: dict[str, tuple[tuple[int, ...], int]] = {
    "50x1": (R50, 1), "50x2": (R50, 2), "50x3": (R50, 3), "101x1": (R101, 1), "101x3": (R101, 3),
    "152x1": (R152, 1), "152x2": (R152, 2), "152x4": (R152, 4), "200x3": (R200, 3),
}  # fmt: skip

DISTILLED: dict[str, Any] = {"distilled": True}
DEIT3: dict[str, Any] = {"init_values": 1e-6, "no_embed_class": True}
DINO2: dict[str, Any] = {"init_values": 1e-5, "pos_antialias": False, "pos_offset": 0.1}
DINO2_REG: dict[str, Any] = {"init_values": 1e-5, "reg_tokens": 4, "no_embed_class": True}
DINO2_G: dict[str, Any] = {"embed_dim": 1536, "num_heads": 24, "mlp_layer": "swiglu", "mlp_ratio": 8 / 3}
DINO3: dict[str, Any] = {
    "init_values": 1e-5, "reg_tokens": 4, "norm_eps": 1e-5, "pos_embed": "rope2d", "pos_at": "layers",
}  # fmt: skip
PLUS: dict[str, Any] = {"mlp_layer": "swiglu"}
DINO3_7B: dict[str, Any] = {"embed_dim": 4096, "depth": 40, "num_heads": 32, "mlp_ratio": 2.0}
CLIP: dict[str, Any] = {"pre_norm": True, "norm_eps": 1e-5}
QUICK: dict[str, Any] = {**CLIP, "act_layer": "quick_gelu"}
SIGLIP: dict[str, Any] = {"class_token": False, "global_pool": "map", "act_layer": "gelu_tanh"}

# Size, patch, side and what is not plain: arXiv:2012.12877, 2204.07118, 2304.07193, 2309.16588, 2508.10104,
# 2103.00020, 2303.15343.
VARIANTS: dict[str, tuple[str, int, int, dict[str, Any]]] = {
    "deit_tiny_distilled_patch16_224": ("tiny", 16, 224, DISTILLED),
    "deit_small_distilled_patch16_224": ("small", 16, 224, DISTILLED),
    "deit_base_distilled_patch16_224": ("base", 16, 224, DISTILLED),
    "deit_base_distilled_patch16_384": ("base", 16, 384, DISTILLED),
    "deit3_small_patch16_224": ("small", 16, 224, DEIT3),
    "deit3_small_patch16_384": ("small", 16, 384, DEIT3),
    "deit3_medium_patch16_224": ("medium", 16, 224, DEIT3),
    "deit3_base_patch16_224": ("base", 16, 224, DEIT3),
    "deit3_base_patch16_384": ("base", 16, 384, DEIT3),
    "deit3_large_patch16_224": ("large", 16, 224, DEIT3),
    "deit3_large_patch16_384": ("large", 16, 384, DEIT3),
    "deit3_huge_patch14_224": ("huge", 14, 224, DEIT3),
    "vit_small_patch14_dinov2": ("small", 14, 518, DINO2),
    "vit_base_patch14_dinov2": ("base", 14, 518, DINO2),
    "vit_large_patch14_dinov2": ("large", 14, 518, DINO2),
    "vit_giant_patch14_dinov2": ("giant", 14, 518, {**DINO2, **DINO2_G}),
    "vit_small_patch14_reg4_dinov2": ("small", 14, 518, DINO2_REG),
    "vit_base_patch14_reg4_dinov2": ("base", 14, 518, DINO2_REG),
    "vit_large_patch14_reg4_dinov2": ("large", 14, 518, DINO2_REG),
    "vit_giant_patch14_reg4_dinov2": ("giant", 14, 518, {**DINO2_REG, **DINO2_G}),
    "vit_small_patch16_dinov3": ("small", 16, 256, DINO3),
    "vit_small_plus_patch16_dinov3": ("small", 16, 256, {**DINO3, **PLUS}),
    "vit_base_patch16_dinov3": ("base", 16, 256, DINO3),
    "vit_large_patch16_dinov3": ("large", 16, 256, DINO3),
    "vit_huge_plus_patch16_dinov3": ("huge", 16, 256, {**DINO3, **PLUS, "num_heads": 20}),
    "vit_7b_patch16_dinov3": ("huge", 16, 256, {**DINO3, **PLUS, **DINO3_7B}),
    "vit_base_patch32_clip_224": ("base", 32, 224, CLIP),
    "vit_base_patch16_clip_224": ("base", 16, 224, CLIP),
    "vit_large_patch14_clip_224": ("large", 14, 224, CLIP),
    "vit_base_patch32_clip_quickgelu_224": ("base", 32, 224, QUICK),
    "vit_base_patch16_clip_quickgelu_224": ("base", 16, 224, QUICK),
    "vit_large_patch14_clip_quickgelu_224": ("large", 14, 224, QUICK),
    "vit_base_patch16_siglip_224": ("base", 16, 224, SIGLIP),
    "vit_base_patch16_siglip_384": ("base", 16, 384, SIGLIP),
    "vit_large_patch16_siglip_256": ("large", 16, 256, SIGLIP),
    "vit_so400m_patch14_siglip_224": ("so400m", 14, 224, SIGLIP),
}


def _options(size: str, patch: int, side: int, more: Mapping[str, Any]) -> dict[str, Any]:
    """The options of `ModelConfig` for a size of the table, and `more` that stand above them."""
    entry = SIZES[size]
    shape = {name: getattr(entry, name) for name in ("embed_dim", "depth", "num_heads", "mlp_ratio")}
    return {"img_size": side, "patch_size": patch, **shape, **more}


def _hybrid(entry: Hybrid, side: int) -> dict[str, Any]:
    return _options(entry.size, entry.patch, side, {"family": "hybrid", "resnet": {"layers": entry.layers, **STEM}})


def _bit(layers: tuple[int, ...], width: int) -> dict[str, Any]:
    return {"family": "resnet", "img_size": 224, "resnet": {"layers": layers, "width_factor": width}}


MODELS: dict[str, dict[str, Any]] = {
    **{
        f"vit_{size}_patch{patch}_{side}": _options(size, patch, side, {})
        for size, entry in SIZES.items()
        for patch, sides in entry.published.items()
        for side in sides
    },
    **{f"{name}_{side}": _hybrid(entry, side) for name, entry in HYBRIDS.items() for side in entry.sides},
    **{name: _options(*row) for name, row in VARIANTS.items()},
    **{f"resnetv2_{name}_bit": _bit(*row) for name, row in BIT.items()},
}
"""The options of `ModelConfig` by name."""

NAMES = tuple(MODELS)

ALIASES = {
    **{
        f"vit-{entry.short}/{patch}": f"vit_{size}_patch{patch}_{sides[0]}"
        for size, entry in SIZES.items()
        for patch, sides in entry.published.items()
    },
    **{entry.short: f"{name}_{entry.sides[0]}" for name, entry in HYBRIDS.items()},
    **{f"bit-r{name}": f"resnetv2_{name}_bit" for name in BIT},
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
    unknown = [key for key in overrides if key not in ModelConfig.__dataclass_fields__]
    if unknown:
        raise NotFound(
            f"{unknown[0]!r}: models have no such option.{nearest(unknown[0], ModelConfig.__dataclass_fields__)}"
        )
    given = {name: to_dict(value) if is_dataclass(value) else value for name, value in overrides.items()}
    return from_dict(ModelConfig, merge(MODELS[full], given), "model.")
