"""DeiT: the `.pth` files of facebookresearch/deit, plain, distilled and DeiT-III.

Names are timm's of their day (`models.py`; `models_v2.py` for DeiT-III, arXiv:2204.07118): tensors stand in an
entry `model`. A distilled model has the tokens [class, distillation, patches], positions for both, and answers
with the mean of its two heads. DeiT-III has LayerScale as `gamma_1` and `gamma_2`, and positions for the patches
alone, added before the class token is set before them. How plain files are told from timm's: see `timm.py`.
"""

from __future__ import annotations

import re

from vitrine.weights.foreign import IMAGENET_MEAN, IMAGENET_STD, Format, Raw, Reading, num_heads
from vitrine.weights.formats.timm import has_layout
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
from vitrine.weights.rules import take


def fits(raw: Raw) -> bool:
    """Whether names and shapes are DeiT's; plain files in an entry `model` fit timm's format too."""
    if raw.config:
        return False
    raw = bare(raw)
    if not has_layout(raw) or not {"cls_token", "pos_embed"} <= raw.tensors.keys():
        return False
    if {"mask_token", "reg_token", "rope_embed.periods"} & raw.tensors.keys():
        return False
    wrapped = raw.kind == "torch" and raw.wrapper == "model"
    return "dist_token" in raw.tensors or "blocks.0.gamma_1" in raw.tensors or wrapped


def read(raw: Raw) -> Reading:
    """A model of DeiT. Raises `UsageError` and `BadData`."""
    found = bare(raw)
    raw = renamed(found, _rename)
    D, depth = width(raw), blocks(raw)
    # DeiT-III's medium (512 wide) is no size of the ViT papers; every DeiT has heads of 64.
    published = {(512, 12): 8}.get((D, depth))
    known = published if "num_heads" not in raw.given else None
    heads, said = (known, ()) if known else num_heads(raw, D, depth)
    config = vit_config(raw, num_heads=heads, norm_eps=1e-6, act_layer="gelu", pos_antialias=False)
    third = config.no_embed_class
    crop = 1.0 if third else 0.875
    taken = take(spelled(vit_rules(config), found, _rename), found.tensors)
    kind = "DeiT-III" if third else "DeiT"
    return Reading(
        model=config,
        preprocess=preprocessing(config, IMAGENET_MEAN, IMAGENET_STD, crop_pct=crop, interpolation="bicubic"),
        tensors=taken.tensors, used=taken.used, dropped=taken.dropped,
        said=(
            *said,
            f"numerics: LayerNorm epsilon {config.norm_eps:g}, exact GELU, positions resized bicubic, not antialiased",
            f"preprocessing: ImageNet's mean and deviation, bicubic, crop {crop:g}, as {kind} is evaluated",
        ),
    )  # fmt: skip


def _rename(name: str) -> str:
    return re.sub(r"\.gamma_([12])$", r".ls\1.gamma", name)


FORMAT = Format(name="deit", title="DeiT and DeiT-III (facebookresearch)", fits=fits, read=read)
