"""mmpretrain (before: mmclassification): checkpoints of its `VisionTransformer` and `DistilledVisionTransformer`.

From `mmpretrain/models/backbones/vision_transformer.py` and `models/heads/`: tensors stand in an entry
`state_dict` under `backbone.` and `head.`. Its "small" is 768 wide with 8 layers of 8 heads. Exact GELU,
LayerNorm of epsilon 1e-6, positions resized bicubic without antialiasing.
"""

from __future__ import annotations

import re

from vitrine.weights.foreign import Format, Raw, Reading, num_heads
from vitrine.weights.formats.timm_layout import (
    MARKS,
    bare,
    blocks,
    preprocessing,
    renamed,
    spelled,
    vit_config,
    vit_rules,
    width,
)
from vitrine.weights.rules import Drop, take

HEADS = {
    (768, 8): 8, (768, 12): 12, (1024, 24): 16, (1280, 32): 16, (1408, 40): 16, (192, 12): 3, (384, 12): 6,
    (1536, 40): 24,
}  # fmt: skip
"""Of its named architectures (`arch_zoo`), by width and depth."""

NAMES = (
    (r"^head\.layers\.pre_logits\.", "pre_logits.fc."),
    (r"^head\.(?:layers\.head|fc)\.", "head."),
    (r"^head\.layers\.head_dist\.", "head_dist."),
    (r"^backbone\.", ""),
    (r"^patch_embed\.projection\.", "patch_embed.proj."),
    (r"^layers\.(\d+)\.", r"blocks.\1."),
    (r"^pre_norm\.", "norm_pre."),
    (r"^ln1\.", "norm."),
    (r"^ln2\.", "fc_norm."),
    (r"^(blocks\.\d+)\.ln([12])\.", r"\1.norm\2."),
    (r"\.ffn\.(?:layers\.0\.0|w12)\.", ".mlp.fc1."),
    (r"\.ffn\.(?:layers\.1|w3)\.", ".mlp.fc2."),
    (r"\.attn\.gamma1\.(?:weight|scale)$", ".ls1.gamma"),
    (r"\.ffn\.gamma2\.(?:weight|scale)$", ".ls2.gamma"),
)
"""Their names to timm's layout, in this order."""

DROPS = (Drop(pattern=r"data_preprocessor\..*", why="mean and deviation of the training's pipeline"),)


def fits(raw: Raw) -> bool:
    """Whether names and shapes are mmpretrain's."""
    names = bare(raw, ("module.",)).tensors
    if not any(name.startswith("backbone.patch_embed.projection.") for name in names):
        return False
    return set(MARKS) <= {_rename(name) for name in names}


def read(raw: Raw) -> Reading:
    """A model of mmpretrain. Raises `UsageError` and `BadData`."""
    found = bare(raw, ("module.",))
    raw = renamed(found, _rename)
    D, depth = width(raw), blocks(raw)
    known = HEADS.get((D, depth)) if "num_heads" not in raw.given else None
    heads, said = (known, ()) if known else num_heads(raw, D, depth)
    config = vit_config(raw, num_heads=heads, norm_eps=1e-6, act_layer="gelu", pos_antialias=False)
    taken = take(spelled(vit_rules(config), found, _rename), found.tensors, DROPS)
    crop = 0.875 if min(config.size) < 384 else 1.0
    return Reading(
        model=config,
        preprocess=preprocessing(config, (0.5,) * 3, (0.5,) * 3, crop_pct=crop, interpolation="bilinear"),
        tensors=taken.tensors, used=taken.used, dropped=taken.dropped,
        said=(
            *said,
            f"numerics: LayerNorm epsilon {config.norm_eps:g}, exact GELU, positions resized bicubic, not antialiased",
            f"preprocessing: mean and deviation 0.5, bilinear, crop {crop:g}, as its ViT configurations have; those of "
            "DeiT and DINOv2 have ImageNet's constants, which the file does not say",
        ),
    )  # fmt: skip


def _rename(name: str) -> str:
    for pattern, ours in NAMES:
        name = re.sub(pattern, ours, name)
    return name


FORMAT = Format(name="mmpretrain", title="mmpretrain VisionTransformer", fits=fits, read=read)
