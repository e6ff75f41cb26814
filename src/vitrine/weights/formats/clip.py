"""Image towers of CLIP (arXiv:2103.00020): OpenAI's state dicts and open_clip's, which have the same names.

Facts: clip/model.py of openai/CLIP, src/open_clip/{transformer,model,factory,constants}.py of open_clip. OpenAI
releases TorchScript archives, which hold code; their state dict is read, saved as a file of tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vitrine.config.architecture import Activation, ModelConfig
from vitrine.config.options import PreprocessConfig
from vitrine.errors import BadConfig, BadData, UsageError
from vitrine.weights.foreign import Format, Raw, Reading, num_heads, number, side, sides, with_given
from vitrine.weights.rules import Drop, Rule, each, same, shaped, take, transposed

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
OPENAI = ("input_resolution", "context_length", "vocab_size")
"""Numbers that a state dict of OpenAI's archives holds and open_clip's does not."""

TEXT = "belongs to the text tower"
DROPS = [
    Drop(pattern=r"text\..*|transformer\.resblocks\..*|token_embedding\..*|ln_final\..*", why=TEXT),
    Drop(pattern=r"positional_embedding|text_projection(\..*)?|attn_mask|cls_emb", why=TEXT),
    Drop(pattern=r"logit_scale|logit_bias", why="scales the comparison with texts"),
    Drop(pattern="|".join(OPENAI), why="a number that describes the model, not a weight"),
]


def _prefix(raw: Raw) -> str | None:
    """What stands before `conv1`: visual., or nothing in a file of the tower alone; None for another layout."""
    for prefix in ("visual.", "module.visual.", ""):
        needed = {prefix + name for name in ("class_embedding", "positional_embedding", "ln_post.weight")}
        first = f"{prefix}transformer.resblocks.0.attn.in_proj_weight"
        if len(raw.shape(prefix + "conv1.weight")) == 4 and needed | {first} <= raw.tensors.keys():
            return prefix
    return None


def _rules(config: ModelConfig, prefix: str) -> list[Rule]:
    D, ours, theirs = config.embed_dim, "blocks.{i}.", prefix + "transformer.resblocks.{i}."
    block = [
        *_pair(ours + "norm1.", theirs + "ln_1."),
        same(ours + "attn.qkv.weight", theirs + "attn.in_proj_weight"),
        same(ours + "attn.qkv.bias", theirs + "attn.in_proj_bias"),
        *_pair(ours + "attn.proj.", theirs + "attn.out_proj."),
        *_pair(ours + "norm2.", theirs + "ln_2."),
        *_pair(ours + "mlp.fc1.", theirs + "mlp.c_fc."),
        *_pair(ours + "mlp.fc2.", theirs + "mlp.c_proj."),
    ]
    if config.init_values is not None:
        block += [same(f"{ours}ls{n}.gamma", f"{theirs}ls_{n}.gamma") for n in (1, 2)]
    return [
        shaped("cls_token", prefix + "class_embedding", (1, 1, D), (D,)),
        shaped("pos_embed", prefix + "positional_embedding", (1, -1, D), (-1, D)),
        same("patch_embed.proj.weight", prefix + "conv1.weight"),
        *_pair("norm_pre.", prefix + "ln_pre."),
        *each(config.depth, block),
        *_pair("norm.", prefix + "ln_post."),
        *([transposed("head.weight", prefix + "proj")] if config.num_classes else []),
    ]


def _pair(ours: str, theirs: str) -> list[Rule]:
    return [same(ours + part, theirs + part) for part in ("weight", "bias")]


def _read(raw: Raw) -> Reading:
    prefix = _prefix(raw)
    if prefix is None:
        raise BadData(f"{raw.path}: there is no image tower of CLIP in it.")
    tower = _tower(raw)
    _require_plain(raw, prefix, tower)
    config, said = _architecture(raw, prefix, tower)
    no_head = [] if config.num_classes else [Drop(pattern=r".*proj", why="num_classes = 0 asks for no head")]
    taken = take(_rules(config, prefix), raw.tensors, [*DROPS, *no_head])
    fresh: dict[str, Tensor] = {"head.bias": torch.zeros(config.num_classes)} if config.num_classes else {}
    preprocess, about = _preprocess(raw, config)
    embedding = f"head: the projection to CLIP's {config.num_classes} dimensions; its outputs are no classes"
    return Reading(
        model=with_given(config, {k: v for k, v in raw.given.items() if k != "num_classes"}),
        preprocess=preprocess,
        tensors=taken.tensors | fresh,
        used=taken.used,
        dropped=taken.dropped,
        fresh=dict.fromkeys(fresh, "zero: CLIP's projection has no bias"),
        said=(*said, *([embedding] if config.num_classes else []), about),
    )


def _tower(raw: Raw) -> Mapping[str, Any]:
    """`vision_cfg` of open_clip_config.json; empty where there is none."""
    facts = raw.config.get("model_cfg", raw.config)
    tower = facts.get("vision_cfg", {}) if isinstance(facts, Mapping) else {}
    return tower if isinstance(tower, Mapping) else {}


def _require_plain(raw: Raw, prefix: str, tower: Mapping[str, Any]) -> None:
    """Raise `UsageError` for a tower that pools otherwise than by its class token."""
    if any(name.startswith(prefix + "attn_pool") for name in raw.tensors):
        raise UsageError(f"{raw.path}: the tower pools by attention with several queries (CoCa), which has no equal.")
    if tower.get("pool_type", "tok") != "tok":
        raise UsageError(
            f"{raw.path}: pool_type {tower['pool_type']!r} of open_clip has no equal here, only 'tok' has."
        )
    if prefix + "ln_pre.weight" not in raw.tensors:
        raise UsageError(f"{raw.path}: the tower has no ln_pre but a patch filter without bias, which has no equal.")


def _architecture(raw: Raw, prefix: str, tower: Mapping[str, Any]) -> tuple[ModelConfig, tuple[str, ...]]:
    D, channels, patch, other = raw.shape(prefix + "conv1.weight")
    block = prefix + "transformer.resblocks."
    depth, hidden = raw.depth(block), raw.shape(block + "0.mlp.c_fc.weight")
    table, proj = raw.shape(prefix + "positional_embedding"), raw.shape(prefix + "proj")
    if patch != other or channels != 3 or len(hidden) != 2 or len(table) != 2 or not D:
        raise BadData(f"{raw.path}: {prefix}conv1.weight, positional_embedding or the first block is of an odd shape.")
    act, about = _activation(raw)
    said: tuple[str, ...] = ()
    if (wide := number(tower, "head_width", 0, raw.path)) > 0 and "num_heads" not in raw.given:
        heads = D // int(wide)
    elif set(OPENAI) & raw.tensors.keys() and "num_heads" not in raw.given:
        heads, said = D // 64, (f"heads: {D // 64}, 64 wide as all of OpenAI's",)
    else:
        heads, said = num_heads(raw, D, depth)
    height, width = sides(tower, "image_size", raw.path) or (0, 0)
    if (height // patch) * (width // patch) != table[0] - 1:
        height = width = side(table[0], 1, raw) * patch
    config = ModelConfig(
        img_size=height if height == width else (height, width), patch_size=patch, in_chans=3,
        num_classes=proj[1] if len(proj) == 2 and raw.given.get("num_classes") != 0 else 0, embed_dim=D, depth=depth,
        num_heads=heads, mlp_ratio=hidden[0] / D, act_layer=act, norm_eps=1e-5, pre_norm=True,
        init_values=1e-5 if block + "0.ls_1.gamma" in raw.tensors else None,
        pos_interpolation="bicubic", pos_antialias=True, pos_align_corners=False,
    )  # fmt: skip
    convention = "LayerNorm epsilon 1e-5; positions resized bicubically with smoothing, as open_clip does"
    return config, (*said, *about, convention)


def _activation(raw: Raw) -> tuple[Activation, tuple[str, ...]]:
    """QuickGELU or GELU: as given, as configured, as OpenAI's; else `UsageError` asks for it."""
    if "act_layer" in raw.given:
        given: Activation = raw.given["act_layer"]
        return given, ()
    facts = raw.config.get("model_cfg", raw.config)
    if _tower(raw) and isinstance(facts, Mapping):
        return ("quick_gelu", ("QuickGELU, as configured",)) if facts.get("quick_gelu") else ("gelu", ())
    if set(OPENAI) & raw.tensors.keys():
        return "quick_gelu", ("QuickGELU, as in OpenAI's code",)
    asked: Activation = raw.ask(
        "act_layer", "CLIP's activation is not in the file: quick_gelu for OpenAI's weights and open_clip's models "
        "named -quickgelu, gelu for the others",
    )  # fmt: skip
    return asked, ()


def _preprocess(raw: Raw, config: ModelConfig) -> tuple[PreprocessConfig, str]:
    """As CLIP's pictures are prepared, with what open_clip_config.json says otherwise."""
    facts = raw.config.get("preprocess_cfg") or {}
    if not isinstance(facts, Mapping):
        raise BadConfig(f"{raw.path}: preprocess_cfg = {facts!r} is no table of options.")
    mode = facts.get("resize_mode", "shortest")
    if mode not in ("shortest", "squash"):
        raise UsageError(f"{raw.path}: resize_mode {mode!r} of open_clip has no equal here: shortest and squash have.")
    kind = facts.get("interpolation", "bicubic")
    try:
        preprocess = PreprocessConfig(
            size=config.size, resize="squash" if mode == "squash" else "shorter", crop_pct=1.0,
            interpolation="bicubic" if kind in ("bicubic", "random") else kind,
            mean=tuple(facts.get("mean", MEAN)), std=tuple(facts.get("std", STD)),
        )  # fmt: skip
    except (TypeError, ValueError) as error:
        raise BadConfig(f"{raw.path}: preprocess_cfg cannot be understood ({error}).") from error
    return preprocess, "preprocessing: " + ("as configured" if facts else "not in the file; that of OpenAI's CLIP")


FORMAT = Format(
    name="clip",
    title="an image tower of CLIP (OpenAI, open_clip)",
    fits=lambda raw: _prefix(raw) is not None,
    read=_read,
)
