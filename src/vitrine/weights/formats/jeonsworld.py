"""jeonsworld/ViT-pytorch: its `.bin` state dicts (`models/modeling.py`, `models/modeling_resnet.py`).

Google's ViT in PyTorch before timm had it: exact GELU, LayerNorm of epsilon 1e-6, the pre-training head's hidden
layer left out, positions resized by scipy's zoom of order 1 (bilinear, corners aligned). Its hybrid is not
Google's: see `resnet_rules.py`.
"""

from __future__ import annotations

from typing import Any

from vitrine.config.architecture import ModelConfig
from vitrine.errors import BadData
from vitrine.weights.foreign import Format, Raw, Reading, num_heads, with_given
from vitrine.weights.formats.resnet_rules import stem_config, stem_rules
from vitrine.weights.formats.timm_layout import bare, blocks, layout, pair, preprocessing
from vitrine.weights.rules import Rule, each, same, stacked, take

EMBED, ENCODER = "transformer.embeddings.", "transformer.encoder."
STEM = f"{EMBED}hybrid_model."


def fits(raw: Raw) -> bool:
    """Whether names and shapes are jeonsworld's."""
    marks = {
        f"{EMBED}cls_token", f"{EMBED}patch_embeddings.weight", f"{ENCODER}layer.0.attention_norm.weight",
        f"{ENCODER}layer.0.attn.query.weight",
    }  # fmt: skip
    return marks <= bare(raw).tensors.keys()


def read(raw: Raw) -> Reading:
    """A model of jeonsworld's code. Raises `UsageError` and `BadData`."""
    raw = bare(raw, ("module.",))
    config, said = _config(raw)
    taken = take(_rules(config), raw.tensors)
    return Reading(
        model=config,
        preprocess=preprocessing(config, (0.5,) * 3, (0.5,) * 3, resize="squash", interpolation="bilinear"),
        tensors=taken.tensors, used=taken.used, dropped=taken.dropped,
        said=(
            *said,
            f"numerics: LayerNorm epsilon {config.norm_eps:g}, exact GELU, positions resized bilinear, corners aligned",
            "preprocessing: squashed to the size, bilinear, mean and deviation 0.5",
        ),
    )  # fmt: skip


def _config(raw: Raw) -> tuple[ModelConfig, tuple[str, ...]]:
    stem = stem_config(raw.tensors, "jeonsworld", STEM) if f"{STEM}root.conv.weight" in raw.tensors else None
    patch = raw.shape(f"{EMBED}patch_embeddings.weight")
    if len(patch) != 4 or 0 in patch:
        raise BadData(f"{raw.path}: {EMBED}patch_embeddings.weight has the shape {patch}; a filter has four axes.")
    D, depth = patch[0], blocks(raw, f"{ENCODER}layer.")
    heads, said = num_heads(raw, D, depth)
    stride = patch[-1] * (stem.stride if stem else 1)
    known = pair(raw.given["img_size"]) if "img_size" in raw.given else None
    grid, _ = layout(
        raw.path, (*raw.shape(f"{EMBED}position_embeddings"), 0, 0)[1], (1,),
        None if known is None else (known[0] // stride, known[1] // stride),
    )  # fmt: skip
    hybrid: dict[str, Any] = {"family": "hybrid", "resnet": stem} if stem else {}
    config = ModelConfig(
        **hybrid,
        img_size=(grid[0] * stride, grid[1] * stride) if grid[0] != grid[1] else grid[0] * stride,
        patch_size=patch[-1],
        in_chans=3 if stem else patch[1],
        num_classes=(raw.shape("head.weight") or (0,))[0],
        embed_dim=D,
        depth=depth,
        num_heads=heads,
        mlp_ratio=(raw.shape(f"{ENCODER}layer.0.ffn.fc1.weight") or (4 * D,))[0] / D,
        norm_eps=1e-6,
        pos_interpolation="bilinear",
        pos_antialias=False,
        pos_align_corners=True,
    )
    return with_given(config, raw.given), said


def _rules(config: ModelConfig) -> list[Rule]:
    """Rules for every tensor."""
    layer, block = f"{ENCODER}layer.{{i}}.", "blocks.{i}."
    rules = [
        same("cls_token", f"{EMBED}cls_token"),
        same("pos_embed", f"{EMBED}position_embeddings"),
    ]
    inside: list[Rule] = []
    for part in ("weight", "bias"):
        rules += [
            same(f"patch_embed.proj.{part}", f"{EMBED}patch_embeddings.{part}"),
            same(f"norm.{part}", f"{ENCODER}encoder_norm.{part}"),
        ]
        rules += [same(f"head.{part}", f"head.{part}")] if config.num_classes else []
        inside += [
            stacked(f"{block}attn.qkv.{part}", [f"{layer}attn.{name}.{part}" for name in ("query", "key", "value")]),
            same(f"{block}attn.proj.{part}", f"{layer}attn.out.{part}"),
            same(f"{block}norm1.{part}", f"{layer}attention_norm.{part}"),
            same(f"{block}norm2.{part}", f"{layer}ffn_norm.{part}"),
            same(f"{block}mlp.fc1.{part}", f"{layer}ffn.fc1.{part}"),
            same(f"{block}mlp.fc2.{part}", f"{layer}ffn.fc2.{part}"),
        ]
    stem = stem_rules(config.resnet, "jeonsworld", STEM) if config.family == "hybrid" else []
    return rules + each(config.depth, inside) + stem


FORMAT = Format(name="jeonsworld", title="jeonsworld/ViT-pytorch", fits=fits, read=read)
