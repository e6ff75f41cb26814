"""How transformers spells the tensors of ViT, DeiT and DINOv2, in versions 4 and 5, and the rules for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vitrine.config.architecture import ModelConfig
from vitrine.errors import BadData
from vitrine.weights.foreign import Raw
from vitrine.weights.rules import Rule, each, same, stacked

PREFIXES = {
    "vit.": "vit", "deit.": "deit", "dinov2.": "dinov2", "dinov2_with_registers.": "dinov2_with_registers", "": "",
}  # fmt: skip
"""What may stand before every name, and the family it belongs to; without one any family may be."""

PATCH = "embeddings.patch_embeddings.projection.weight"
PARTS = ("weight", "bias")


@dataclass(frozen=True, kw_only=True)
class Names:
    """How a file spells what is spelled in more than one way: `block` ends before a block's number."""

    prefix: str
    block: str
    q: str = "attention.attention.query"
    k: str = "attention.attention.key"
    v: str = "attention.attention.value"
    o: str = "attention.output.dense"
    norm1: str = "layernorm_before"
    norm2: str = "layernorm_after"
    fc1: tuple[str, ...] = ("intermediate.dense",)
    fc2: str = "output.dense"


VERSION_4 = Names(prefix="vit.", block="vit.encoder.layer.")


def spelled(raw: Raw, prefix: str, family: str) -> Names:
    """The spelling of this file, found from its first block. Raises `BadData` where it has none."""
    blocks = [f"{prefix}encoder.layer.", f"{prefix}layers."]

    def first(*ends: str) -> str:
        for end in ends:
            if any(f"{block}0.{end}.weight" in raw.tensors for block in blocks):
                return end
        raise BadData(f"{raw.path}: there is no {blocks[0]}0.{ends[0]}.weight in the file, nor its name of version 5.")

    dino = family.startswith("dinov2")
    old = first("attention.attention.query", "attention.q_proj").endswith("query")
    block = next(block for block in blocks if any(name.startswith(block + "0.") for name in raw.tensors))
    gate = first("intermediate.dense", "mlp.fc1", "mlp.weights_in", "mlp.gate_proj")
    names = Names(
        prefix=prefix, block=block, o=first("attention.output.dense", "attention.o_proj"),
        norm1="norm1" if dino else "layernorm_before", norm2="norm2" if dino else "layernorm_after",
        fc1=(gate, "mlp.up_proj") if gate == "mlp.gate_proj" else (gate,),
        fc2=first("output.dense", "mlp.fc2", "mlp.weights_out", "mlp.down_proj"),
    )  # fmt: skip
    return names if old else replace(names, q="attention.q_proj", k="attention.k_proj", v="attention.v_proj")


def rules_for(config: ModelConfig, names: Names, *, second_token: bool = False) -> list[Rule]:
    """For every tensor of `config`. `second_token`: our one register is DeiT's distillation token with its position."""
    p, at = names.prefix, names.prefix + "embeddings."
    rules = [
        same("cls_token", at + "cls_token"),
        *_pair("patch_embed.proj.", at + "patch_embeddings.projection."),
        *each(config.depth, _block(config, names)),
        *_pair("norm.", p + "layernorm."),
    ]
    if second_token:
        rules += _registered(at)
    else:
        rules.append(same("pos_embed", at + "position_embeddings"))
    if config.distilled:
        rules.append(same("dist_token", at + "distillation_token"))
    elif config.reg_tokens and not second_token:
        rules.append(same("reg_token", at + "register_tokens"))
    if config.representation_size:
        rules += _pair("pre_logits.fc.", p + "pooler.dense.")
    if config.num_classes:
        rules += _pair("head.", "cls_classifier." if config.distilled else "classifier.")
        rules += _pair("head_dist.", "distillation_classifier.") if config.distilled else []
    return rules


def _registered(at: str) -> list[Rule]:
    """A token without a head of its own is a register; its position goes into it, as it is added there anyhow."""
    token, table = at + "distillation_token", at + "position_embeddings"
    return [
        Rule(ours="reg_token", theirs=(token, table), read=lambda t, x: t.float() + x[:, 1:2].float(), write=_never),
        Rule(ours="pos_embed", theirs=(table,), read=lambda x: torch.cat([x[:, :1], x[:, 2:]], dim=1), write=_never),
    ]


def _never(_: Tensor) -> Sequence[Tensor]:
    raise AssertionError("DeiT is read, not written")


def _block(config: ModelConfig, names: Names) -> list[Rule]:
    """The rules of one block, `{i}` in place of its number."""
    ours, theirs = "blocks.{i}.", names.block + "{i}."
    q, k, v = (theirs + name for name in (names.q, names.k, names.v))
    rules = [
        *_pair(ours + "norm1.", f"{theirs}{names.norm1}."),
        stacked(ours + "attn.qkv.weight", [f"{part}.weight" for part in (q, k, v)]),
        *_pair(ours + "attn.proj.", f"{theirs}{names.o}."),
        *_pair(ours + "norm2.", f"{theirs}{names.norm2}."),
        *(stacked(f"{ours}mlp.fc1.{part}", [f"{theirs}{name}.{part}" for name in names.fc1]) for part in PARTS),
        *_pair(ours + "mlp.fc2.", f"{theirs}{names.fc2}."),
    ]
    if config.qkv_bias:
        rules.append(stacked(ours + "attn.qkv.bias", [f"{part}.bias" for part in (q, k, v)]))
    if config.init_values is not None:
        rules += [same(f"{ours}ls{n}.gamma", f"{theirs}layer_scale{n}.lambda1") for n in (1, 2)]
    return rules


def _pair(ours: str, theirs: str) -> list[Rule]:
    return [same(ours + part, theirs + part) for part in PARTS]
