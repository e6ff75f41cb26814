"""lucidrains' vit-pytorch in its older layout (2020 to 2022), and the many models copied from it.

`transformer.layers.{i}.0.norm` and `.fn`: a plain pre-norm ViT without a bias on queries, keys and values. Files of
an attention without an MLP in each block have `transformer.layers.{i}.norm`. The layout of later releases has a norm
before and after the patch filter, which no plain ViT has: `refused` names it. Facts: vit_pytorch/vit.py at release
0.20, and train_gpu.py of https://github.com/researchase/vit-mnist-explorations.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vitrine.config.architecture import ModelConfig
from vitrine.config.options import PreprocessConfig
from vitrine.errors import BadData, UsageError
from vitrine.weights.foreign import Format, Raw, Reading, side, with_given
from vitrine.weights.rules import Rule, each, same, take

PATCH, LAYER = "to_patch_embedding.1.weight", "transformer.layers."


def _fits(raw: Raw) -> bool:
    first = (LAYER + "0.0.fn.to_qkv.weight", LAYER + "0.fn.to_qkv.weight")
    return (
        len(raw.shape(PATCH)) == 2
        and {"pos_embedding", "cls_token"} <= raw.tensors.keys()
        and any(name in raw.tensors for name in first)
    )


def _facts(raw: Raw, has_mlp: bool, inner: int) -> Mapping[str, Any]:
    """Head count and activation, which no file of this kind holds. Raises `UsageError` asking for all at once."""
    wanted = {"num_heads": f"--model.num-heads N (N divides {inner}; heads are 64 wide by default there)"}
    if has_mlp:
        wanted["act_layer"] = "--model.act-layer gelu (lucidrains' own; some copies have relu)"
    missing = [text for name, text in wanted.items() if name not in raw.given]
    if missing:
        raise UsageError(f"{raw.path}: a file of this kind does not hold everything. Give it: {', '.join(missing)}.")
    heads = int(raw.given["num_heads"])
    if heads < 1 or inner % heads:
        raise UsageError(f"{raw.path}: model.num_heads = {heads} does not divide {inner}, the width of the attention.")
    return {"num_heads": heads, "head_dim": inner // heads, "act_layer": raw.given.get("act_layer", "gelu")}


def _patches(raw: Raw) -> tuple[int, int]:
    """Side and channels of a patch, from the length of a patch vector."""
    values = raw.shape(PATCH)[1]
    for channels in (1, 3):
        p = round((values / channels) ** 0.5)
        if p * p * channels == values:
            return p, channels
    raise UsageError(f"{raw.path}: {PATCH} has {values} inputs, which are no square patch of 1 or 3 channels.")


def _rules(config: ModelConfig, *, has_mlp: bool, hidden_head: bool) -> list[Rule]:
    p, c, D = config.patch_size, config.in_chans, config.embed_dim
    attn, mlp = (LAYER + "{i}.0.", LAYER + "{i}.1.") if has_mlp else (LAYER + "{i}.", "")
    block = [
        *_pair("blocks.{i}.norm1.", attn + "norm."),
        same("blocks.{i}.attn.qkv.weight", attn + "fn.to_qkv.weight"),
        *_pair("blocks.{i}.attn.proj.", attn + "fn.to_out.0."),
    ]
    if has_mlp:
        block += [
            *_pair("blocks.{i}.norm2.", mlp + "norm."),
            *_pair("blocks.{i}.mlp.fc1.", mlp + "fn.net.0."),
            *_pair("blocks.{i}.mlp.fc2.", mlp + "fn.net.3."),
        ]
    return [
        same("cls_token", "cls_token"),
        same("pos_embed", "pos_embedding"),
        # The columns are (p1, p2, c): channels last, where a convolution has them first.
        Rule(
            ours="patch_embed.proj.weight", theirs=(PATCH,),
            read=lambda x: x.reshape(D, p, p, c).permute(0, 3, 1, 2).contiguous(),
            write=lambda x: (x.permute(0, 2, 3, 1).reshape(D, p * p * c),),
        ),
        same("patch_embed.proj.bias", "to_patch_embedding.1.bias"),
        *each(config.depth, block),
        *_pair("norm.", "mlp_head.0."),
        *(_pair("pre_logits.fc.", "mlp_head.1.") if hidden_head else ()),
        *_pair("head.", "mlp_head.4." if hidden_head else "mlp_head.1."),
    ]  # fmt: skip


def _pair(ours: str, theirs: str) -> list[Rule]:
    return [same(ours + part, theirs + part) for part in ("weight", "bias")]


def _no_mlp(config: ModelConfig) -> dict[str, Tensor]:
    """An MLP of one hidden number in every block that adds zero."""
    D = config.embed_dim
    tensors: dict[str, Tensor] = {}
    for i in range(config.depth):
        tensors |= {
            f"blocks.{i}.norm2.weight": torch.ones(D), f"blocks.{i}.norm2.bias": torch.zeros(D),
            f"blocks.{i}.mlp.fc1.weight": torch.zeros(1, D), f"blocks.{i}.mlp.fc1.bias": torch.zeros(1),
            f"blocks.{i}.mlp.fc2.weight": torch.zeros(D, 1), f"blocks.{i}.mlp.fc2.bias": torch.zeros(D),
        }  # fmt: skip
    return tensors


def _read(raw: Raw) -> Reading:
    has_mlp = LAYER + "0.0.fn.to_qkv.weight" in raw.tensors
    hidden_head = "mlp_head.4.weight" in raw.tensors
    D, (patch, channels) = raw.shape(PATCH)[0], _patches(raw)
    qkv = raw.shape(LAYER + ("0.0.fn.to_qkv.weight" if has_mlp else "0.fn.to_qkv.weight"))
    table, head = raw.shape("pos_embedding"), raw.shape("mlp_head.4.weight" if hidden_head else "mlp_head.1.weight")
    if not qkv or qkv[0] % 3 or not D or len(table) != 3 or len(head) != 2:
        raise BadData(f"{raw.path}: to_qkv {qkv}, pos_embedding {table} or the head {head} is of an odd shape.")
    facts = _facts(raw, has_mlp, qkv[0] // 3)
    size = side(table[1], 1, raw) * patch
    hidden = (raw.shape(LAYER + "0.1.fn.net.0.weight") or (D,))[0] if has_mlp else 1
    config = ModelConfig(
        img_size=size, patch_size=patch, in_chans=channels, num_classes=head[0], embed_dim=D,
        depth=raw.depth(LAYER), mlp_ratio=hidden / D, qkv_bias=False, norm_eps=1e-5,
        representation_size=head[1] if hidden_head else 0, representation_act="gelu", **facts,
    )  # fmt: skip
    taken = take(_rules(config, has_mlp=has_mlp, hidden_head=hidden_head), raw.tensors)
    fresh = {} if has_mlp else _no_mlp(config)
    return Reading(
        model=with_given(config, raw.given),
        preprocess=PreprocessConfig(
            size=(size, size), resize="squash", interpolation="bilinear", mean=(0.0,) * channels, std=(1.0,) * channels
        ),
        tensors=taken.tensors | fresh,
        used=taken.used,
        dropped=taken.dropped,
        fresh=dict.fromkeys(fresh, "an MLP that adds zero: this model has attention alone"),
        said=(
            "preprocessing: mean and deviation are not in the file; x / 255 is assumed, and nothing subtracted",
            "pooling: not in the file; the class token is assumed, lucidrains' default",
            "LayerNorm epsilon 1e-5, torch's default",
        ),
    )


FORMAT = Format(
    name="lucidrains",
    title="vit-pytorch by lucidrains, its older layout without norms around the patch filter",
    fits=_fits,
    read=_read,
)
