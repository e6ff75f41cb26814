"""DINOv2: the backbones of facebookresearch/dinov2 (arXiv:2304.07193), with registers (arXiv:2309.16588) or without.

From `dinov2/models/vision_transformer.py` and `dinov2/hub/backbones.py`. Positions belong to the class token and
the patches; registers are set between them afterwards. Larger MLPs are SwiGLU (`w12`, `w3`). Files of training
count blocks as `blocks.{chunk}.{i}` with i going through all chunks.
"""

from __future__ import annotations

import re

from vitrine.weights.foreign import IMAGENET_MEAN, IMAGENET_STD, Format, Raw, Reading, num_heads
from vitrine.weights.formats.timm_layout import (
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

HEADS = {(384, 12): 6, (768, 12): 12, (1024, 24): 16, (1536, 40): 24}
"""Of the released sizes, by width and depth."""

DROPS = (
    Drop(pattern=r"(backbone\.)?mask_token", why="replaces masked patches in training alone"),
    Drop(pattern=r"(dino|ibot)_head\..*", why="the projection heads of self-supervised training"),
)


def fits(raw: Raw) -> bool:
    """Whether names and shapes are DINOv2's."""
    names = {_rename(name): tensor for name, tensor in bare(raw).tensors.items()}
    if "mask_token" not in names or names["mask_token"].ndim != 2 or raw.config:
        return False
    marks = {"cls_token", "pos_embed", "patch_embed.proj.weight", "norm.weight", "blocks.0.attn.qkv.weight"}
    return marks <= names.keys()


def read(raw: Raw) -> Reading:
    """A backbone of DINOv2, without a head. Raises `UsageError` and `BadData`."""
    found = bare(raw)
    raw = renamed(found, _rename)
    D, depth = width(raw), blocks(raw)
    known = HEADS.get((D, depth)) if "num_heads" not in raw.given else None
    heads, said = (known, ()) if known else num_heads(raw, D, depth)
    registers = "reg_token" in raw.tensors
    config = vit_config(
        raw, num_heads=heads, norm_eps=1e-6, act_layer="gelu", prefix_rows=1,
        pos_antialias=registers, pos_offset=0.0 if registers else 0.1,
    )  # fmt: skip
    taken = take(spelled(vit_rules(config), found, _rename), found.tensors, DROPS)
    resized = "bicubic, antialiased" if registers else "bicubic by a scale of (side + 0.1) / old side, not antialiased"
    return Reading(
        model=config,
        preprocess=preprocessing(
            config, IMAGENET_MEAN, IMAGENET_STD, size=_usual(config.stride), crop_pct=0.875, interpolation="bicubic"
        ),
        tensors=taken.tensors, used=taken.used, dropped=taken.dropped,
        said=(
            *said,
            f"numerics: LayerNorm epsilon {config.norm_eps:g}, positions resized {resized}",
            "preprocessing: ImageNet's mean and deviation, 256 pixels bicubic and the centre 224, as it is evaluated",
        ),
    )  # fmt: skip


def _usual(stride: int) -> tuple[int, int]:
    """224 pixels, or the nearest size that patches of this side make up."""
    side = max(1, round(224 / stride)) * stride
    return side, side


def _rename(name: str) -> str:
    """The name in timm's layout: the backbone of a training file, its chunks counted through."""
    name = name.removeprefix("backbone.")
    name = re.sub(r"^blocks\.\d+\.(\d+)\.", r"blocks.\1.", name)
    name = re.sub(r"\.mlp\.w12\.", ".mlp.fc1.", name)
    name = re.sub(r"\.mlp\.w3\.", ".mlp.fc2.", name)
    return "reg_token" if name == "register_tokens" else name


FORMAT = Format(name="dinov2", title="DINOv2 backbone (facebookresearch)", fits=fits, read=read)
