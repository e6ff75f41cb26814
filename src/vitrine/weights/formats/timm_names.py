"""What timm's architecture names stand for where its files do not say it, and which name a model of ours is given.

Facts of timm 1.0.31, `models/vision_transformer.py`, `deit.py`, `vision_transformer_hybrid.py`; a test compares
them with every name of the installed timm.
"""

from __future__ import annotations

import re

from vitrine.config.architecture import Activation, ModelConfig
from vitrine.config.models import SIZES
from vitrine.errors import UsageError

PUBLISHED = frozenset(
    f"vit_{size}_patch{patch}_{side}"
    for size, patch, side in (
        ("tiny", 16, 224), ("tiny", 16, 384), ("small", 8, 224), ("small", 16, 224), ("small", 16, 384),
        ("small", 32, 224), ("small", 32, 384), ("base", 8, 224), ("base", 16, 224), ("base", 16, 384),
        ("base", 32, 224), ("base", 32, 384), ("large", 14, 224), ("large", 16, 224), ("large", 16, 384),
        ("large", 32, 224), ("large", 32, 384), ("huge", 14, 224), ("giant", 14, 224), ("gigantic", 14, 224),
    )
)  # fmt: skip
"""Names of plain models that timm has."""

EXPRESSIBLE_EPS = (1e-6, 1e-5)
"""timm sets the epsilon of LayerNorm in code, by name; these are the two that a plain ViT can be given."""

HYBRIDS = {
    (): "vit_tiny_r_s16_p8_224",
    (2, 2, 2, 2): "vit_small_r26_s32_224",
    (3, 4, 9): "vit_base_r50_s16_224",
    (3, 4, 6, 3): "vit_large_r50_s32_224",
}
"""By the units of the ResNet's stages."""

TANH = re.compile(r"vit_(base_patch32|large_patch16|so400m_patch16|giantopt_patch16)_siglip(_gap)?_\d+")
UNLIKE = {
    "_rpn_": "its blocks normalise after each branch, before the sum",
    "_xp_": "its blocks run attention and MLP side by side",
    "18x2": "its blocks hold two attentions side by side",
    "_pwee_": "its blocks run attention and MLP side by side",
    "_dpwee_": "its blocks hold differential attention",
    "_dwee_": "its blocks hold differential attention",
    "_dlittle_": "its blocks hold differential attention",
    "aimv2": "its norms are RMSNorm",
    "beit3": "its branches have norms inside",
    "test_vit4": "its norms are RMSNorm",
    "resnet26d": "its stem is another ResNet",
    "resnet50d": "its stem is another ResNet",
    "_mci_": "its stem is another network",
}
"""Parts of names whose models are no plain pre-norm ViT, and why."""


def refuse_unlike(path: str, architecture: str) -> None:
    """Raise `UsageError` for an architecture that has no equal here although its tensors may look alike."""
    for part, why in UNLIKE.items():
        if part in architecture:
            raise UsageError(f"{path}: the architecture {architecture!r} is no plain pre-norm ViT: {why}.")


def heads_of(architecture: str, embed_dim: int) -> int | None:
    """Attention heads of a named architecture of this width; None where the name is not timm's or says nothing."""
    if not re.match(r"(flexi|test_)?(vit|deit3?|eva_large)", architecture):
        return None
    if architecture.startswith("test_vit"):
        return embed_dim // 32
    if architecture.startswith("vit_base_patch16_gap") or "giantopt" in architecture:
        return 16
    if embed_dim in (1152, 1280, 1408, 1664):
        return 16
    return embed_dim // 64 if embed_dim % 64 == 0 else None


def eps_of(architecture: str) -> float:
    """Epsilon of LayerNorm: 1e-5 in the models that come from CLIP, 1e-6 elsewhere."""
    return 1e-5 if "_clip_" in architecture else 1e-6


def activation_of(architecture: str) -> Activation:
    """Activation of the MLP: exact GELU but for the models of OpenAI's CLIP and some of SigLIP."""
    if "quickgelu" in architecture:
        return "quick_gelu"
    found = TANH.fullmatch(architecture)
    if found is None:
        return "gelu"
    return "gelu" if found[1] == "large_patch16" and not architecture.endswith("_512") else "gelu_tanh"


def name_for(config: ModelConfig) -> str:
    """The timm architecture whose code, given our options as arguments, builds a model of `config`.

    Raises `UsageError` naming the option that none of them can be given.
    """
    other = [
        name
        for name, holds in (
            ("distilled", config.distilled), ("mlp_layer", config.mlp_layer == "swiglu"),
            ("resnet", config.family == "hybrid"), ("norm_eps", config.norm_eps == EXPRESSIBLE_EPS[1]),
            ("pos_embed", config.pos_embed == "rel_bias2d"),
        ) if holds
    ]  # fmt: skip
    if config.norm_eps not in EXPRESSIBLE_EPS:
        raise UsageError(
            f"--to timm: model.norm_eps = {config.norm_eps:g}: timm builds {EXPRESSIBLE_EPS[0]:g} or "
            f"{EXPRESSIBLE_EPS[1]:g} alone. Where the other value is good enough, give --model.norm-eps."
        )
    if len(other) > 1:
        raise UsageError(
            f"--to timm: no architecture of timm has model.{other[0]} and model.{other[1]} both like this."
        )
    if config.family == "hybrid":
        if config.resnet.layers not in HYBRIDS or config.resnet.width_factor != 1:
            raise UsageError(
                f"--to timm: model.resnet.layers = {config.resnet.layers}, width_factor = "
                f"{config.resnet.width_factor}: timm has hybrids of {', '.join(map(str, HYBRIDS))} alone."
            )
        return HYBRIDS[config.resnet.layers]
    if config.pos_embed == "rel_bias2d":
        return "vit_relpos_base_patch16_224"
    if config.distilled:
        return "deit_base_distilled_patch16_224"
    if config.mlp_layer == "swiglu":
        return "vit_giant_patch14_dinov2"
    if config.norm_eps == EXPRESSIBLE_EPS[1]:
        return "vit_base_patch16_clip_224"
    return _published(config) or "vit_base_patch16_224"


def _published(config: ModelConfig) -> str | None:
    """The name of a published size, where the model has it."""
    for size, entry in SIZES.items():
        name = f"vit_{size}_patch{config.patch_size}_{config.size[0]}"
        ours = (config.embed_dim, config.depth, config.num_heads)
        if name in PUBLISHED and ours == (entry.embed_dim, entry.depth, entry.num_heads):
            return name
    return None
