"""The .npz of google-research/vision_transformer: the ViTs of 2020, AugReg, SAM, and the hybrids, read and written.

Source: `vit_jax/models_vit.py`, `models_resnet.py` and `checkpoint.py`. The numbers in the names of a block's
parts (0, 1, 2, 3) are those of the released files; files numbered in the newer way of flax are read too. The
position table has a row for the class token and is added after that token is put before the patches.

**A head of 21,843 classes without its `pre_logits`.** The ViTs of 2020 were pre-trained with a hidden layer in the
head, and a head cut off from it gives noise; AugReg's (2021) never had one. Shapes tell them apart where only
one of the two exists: of a published geometry that AugReg does not have (H/14, L/32, R50+B/16) the layer must be
there, and the file is refused without it. B/16, B/32 and L/16 exist in both and look the same: there it is said.
`pre_logits` itself is never left out while a head is kept.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from vitrine.config.architecture import ADDED, ModelConfig, ResNetConfig
from vitrine.errors import BadData, UsageError
from vitrine.models import positions
from vitrine.weights.bundle import Bundle
from vitrine.weights.foreign import Format, Raw, Reading, Writing, with_given
from vitrine.weights.formats.flax_rules import (
    NUMERICS,
    POSITIONS,
    SAID,
    TOGETHER,
    Numbers,
    Shapes,
    agree,
    block_rules,
    drops_of,
    end_rules,
    grid_of,
    in_float32,
    numbers_of,
    prefix_of,
    preprocess_of,
    shapes_of,
    stored,
)
from vitrine.weights.formats.resnet_rules import SPELLINGS, stem_config, stem_rules
from vitrine.weights.rules import Rule, give, same, take

IN21K = 21_843

ONLY_2020 = {(1280, 14, ()), (1024, 32, ()), (768, 1, (3, 4, 9))}
"""Width, patch and stem of the ViTs on ImageNet-21k that were published with `pre_logits` and never without."""

IN_BOTH = {(768, 16, ()), (768, 32, ()), (1024, 16, ())}
"""The same of those published both ways."""

_STEM_DEFAULTS: dict[str, Any] = {"pool_padding": True, "shortcut_norm": "groups"}


def fits(raw: Raw) -> bool:
    """Positions inside the Transformer under `posembed_input`, or blocks numbered as in the released files."""
    prefix = prefix_of(raw) if raw.kind == "npz" else None
    if prefix is None:
        return False
    return f"{prefix}{POSITIONS}" in raw.tensors or numbers_of(raw, prefix) is TOGETHER


def read(raw: Raw) -> Reading:
    """The model of a file; see the module for what is refused. Raises `BadData` and `UsageError`."""
    prefix = prefix_of(raw) or ""
    depth = raw.depth(f"{prefix}Transformer/encoderblock_")
    shapes = shapes_of(raw, prefix, f"{prefix}Transformer/encoderblock_0/", depth)
    hybrid = f"{prefix}conv_root/kernel" in raw.tensors
    resnet = stem_config(raw.tensors, "google", prefix) if hybrid else ResNetConfig()
    token, placed = f"{prefix}cls" in raw.tensors, f"{prefix}{POSITIONS}" in raw.tensors
    stride = shapes.patch * (resnet.stride if hybrid else 1)
    channels = raw.shape(f"{prefix}conv_root/kernel")[2] if hybrid else shapes.channels
    if placed:
        size: Any = grid_of(raw, raw.shape(f"{prefix}{POSITIONS}")[1], int(token), stride)
    else:
        size = raw.ask("img_size", "it has no positions, so the size of its pictures is not in the file")
    config = ModelConfig(
        family="hybrid" if hybrid else "vit", resnet=resnet, img_size=size, in_chans=channels, class_token=token,
        global_pool="token" if token else "norm_then_avg", pos_embed="learn" if placed else "none",
        **shapes.options(), **NUMERICS,
    )  # fmt: skip
    agree(raw, config)
    said = [*SAID, *stored(raw, prefix), *_head_of_21k(raw, config)]
    if hybrid:
        said.append("ResNet: padding as JAX's SAME, filters over their deviation + 1e-5, group norms with epsilon 1e-6")
    rules = _rules(config, shapes, numbers_of(raw, prefix), prefix)
    taken = take(rules, in_float32(raw.tensors), drops_of(prefix))
    preprocess = preprocess_of(raw, channels, config.size, squash=True)
    said.append("pictures: squashed to the square bilinearly, scaled to [-1, 1], as google-research evaluates")
    return Reading(
        model=with_given(config, raw.given), preprocess=preprocess, tensors=taken.tensors, used=taken.used,
        dropped=taken.dropped, said=tuple(said),
    )  # fmt: skip


def _head_of_21k(raw: Raw, config: ModelConfig) -> list[str]:
    """A sentence where `pre_logits` may have been lost; raises `BadData` where it has been."""
    if config.num_classes != IN21K or config.representation_size or not config.class_token:
        return []
    geometry = (config.embed_dim, config.patch_size, config.resnet.layers if config.family == "hybrid" else ())
    if geometry in ONLY_2020 and "representation_size" not in raw.given:
        raise BadData(
            f"{raw.path}: a head of {IN21K:,} classes without pre_logits, and this size was published with it only. "
            "Take the published file; if this model never had it, say so: --model.representation-size 0."
        )
    if geometry in IN_BOTH:
        return [
            f"head of {IN21K:,} classes without pre_logits, as AugReg's are; in a file of 2020 (imagenet21k/ViT-...) "
            "it would be missing, and the logits noise"
        ]
    return []


def _rules(config: ModelConfig, shapes: Shapes, numbers: Numbers, prefix: str = "") -> list[Rule]:
    """Rules for every tensor."""
    rules = end_rules(shapes, prefix)
    if config.class_token:
        rules.append(same("cls_token", f"{prefix}cls"))
    if config.pos_embed == "learn":
        rules.append(same("pos_embed", f"{prefix}{POSITIONS}"))
    if config.family == "hybrid":
        rules += stem_rules(config.resnet, "google", prefix)
    for i in range(config.depth):
        rules += block_rules(f"blocks.{i}.", f"{prefix}Transformer/encoderblock_{i}/", shapes, numbers)
    return rules


def write(bundle: Bundle) -> Writing:
    """The file that Google's loader takes, in its own names and shapes.

    Fixed positions that are added to the input are written out as a table, and a table without a row for the
    class token gets one of zeros: the function is the same at this size. What the format has no field for and
    its readers do otherwise (GELU's kind, epsilons, preprocessing) is said. Raises `UsageError` naming an
    option that it cannot express.
    """
    config = bundle.model
    _require_expressible(config)
    tensors = {name: tensor.detach().float() for name, tensor in bundle.tensors.items()}
    said = _departures(bundle)
    if config.pos_embed != "none":
        said += _table(config, tensors)
    shapes = Shapes(
        D=config.embed_dim, h=config.num_heads, d=config.width_of_head, M=config.mlp_dim, L=config.depth,
        patch=config.patch_size, channels=config.in_chans, num_classes=config.num_classes,
        representation_size=config.representation_size,
    )  # fmt: skip
    placed = replace(config, pos_embed="learn" if config.pos_embed != "none" else "none")
    return Writing(kind="npz", tensors=give(_rules(placed, shapes, TOGETHER), tensors), said=tuple(said))


def _require_expressible(config: ModelConfig) -> None:
    """Raise `UsageError` naming the first option that Google's model does not have."""
    wanted: dict[str, tuple[Any, ...]] = {
        "family": ("vit", "hybrid"), "qkv_bias": (True,), "qk_norm": (False,), "init_values": (None,),
        "mlp_layer": ("mlp",), "act_layer": ("gelu_tanh", "gelu"), "pre_norm": (False,), "final_norm": (True,),
        "distilled": (False,), "reg_tokens": (0,), "pos_embed": (*ADDED, "none"), "pos_at": ("input",),
        "global_pool": ("token", "norm_then_avg"), "class_token": (config.global_pool == "token",),
        "img_size": (config.size[0], (config.size[0], config.size[0])),
    }  # fmt: skip
    if config.pos_embed == "none":
        del wanted["pos_at"]
    if config.representation_size:
        wanted["representation_act"] = ("tanh",)
    for name, values in wanted.items():
        if getattr(config, name) not in values:
            raise UsageError(
                f"model.{name} = {getattr(config, name)!r}: Google's format has no place for it, only for "
                f"{' or '.join(map(str, values))}. Write another format."
            )
    if config.family == "hybrid":
        home = replace(config.resnet, **_STEM_DEFAULTS, **SPELLINGS["google"].numerics)
        for name in ("preact", "padding", *_STEM_DEFAULTS):
            value, needed = getattr(config.resnet, name), getattr(home, name)
            if value != needed:
                said = f"model.resnet.{name} = {value!r}: Google's stem has {needed!r}"
                raise UsageError(f"{said}. Write another format.")


def _departures(bundle: Bundle) -> list[str]:
    """What Google's own code does otherwise than this model, a sentence each."""
    config, said = bundle.model, []
    if config.act_layer != "gelu_tanh":
        said.append("warning: the model has exact GELU, and readers of the file take its tanh approximation")
    if config.norm_eps != 1e-6:
        said.append(f"warning: the model's norm_eps is {config.norm_eps:g}, and readers of the file take 1e-6")
    if config.family == "hybrid":
        for name in ("conv_eps", "conv_eps_at", "norm_eps"):
            value, home = getattr(config.resnet, name), SPELLINGS["google"].numerics[name]
            if value != home:
                said.append(f"warning: resnet.{name} is {value}, and readers of the file take {home}")
    pre = bundle.preprocess
    if pre.resize != "squash" or set(pre.mean) | set(pre.std) != {0.5}:
        said.append(
            "warning: the file holds no preprocessing; its readers squash pictures and scale them to [-1, 1], "
            f"this model wants resize {pre.resize}, mean {pre.mean}, std {pre.std}"
        )
    said.append("class names are not in the file: keep them beside it")
    return said


def _table(config: ModelConfig, tensors: dict[str, torch.Tensor]) -> list[str]:
    """Put the table that is added to all tokens into `tensors`; a sentence where it was not there as it is."""
    patches = torch.zeros(1, config.grid[0] * config.grid[1], config.embed_dim)
    table = positions.table(config, tensors.get("pos_embed"), config.grid, patches)
    if table is None:
        raise UsageError(f"model.pos_embed = {config.pos_embed!r}: Google's format has no place for it.")
    missing = int(config.class_token) + patches.shape[1] - table.shape[1]
    said = [] if config.pos_embed == "learn" else [f"positions: {config.pos_embed} written out as a table"]
    tensors["pos_embed"] = torch.cat([torch.zeros(1, missing, config.embed_dim), table], dim=1)
    if missing:
        said.append("positions: a row of zeros for the class token, which has none here")
    return said


FORMAT = Format(
    name="google",
    title="google-research/vision_transformer .npz",
    fits=fits,
    read=read,
    write=write,
)
