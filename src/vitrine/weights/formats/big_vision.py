"""The .npz of google-research/big_vision: plain ViTs with pooled heads, FlexiViT, and SigLIP's image tower. Read only.

Source: `big_vision/models/vit.py` (with its `fix_old_checkpoints`), `models/proj/image_text/two_towers.py`,
`utils.py`. Each kind of part is numbered alone, positions stand at the top of the names and are added before
the class token is put in front, and the mean over patches comes after the last norm. Where there is no table,
positions are sin-cos and computed. Files in bfloat16 become float32 here.

FlexiViT's files have the same names and are read alike. Its own code resizes positions by `jax.image.resize`
(bilinear, smoothed, corners not aligned) where the others call scipy's zoom; nothing in a file tells which.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import isqrt
from typing import Any

from torch import Tensor

from vitrine.config.architecture import ModelConfig, Pooling
from vitrine.errors import BadData, UsageError
from vitrine.weights.foreign import Format, Raw, Reading, with_given
from vitrine.weights.formats.flax_rules import (
    EACH,
    NUMERICS,
    POSITIONS,
    SAID,
    Shapes,
    agree,
    block_rules,
    dense_rules,
    drops_of,
    end_rules,
    fit,
    grid_of,
    in_float32,
    norm_rules,
    numbers_of,
    output_rules,
    prefix_of,
    preprocess_of,
    queries_rules,
    shapes_of,
    stored,
)
from vitrine.weights.rules import Rule, same, take

TABLES = ("pos_embedding", "Transformer/pos_embedding")
"""Where the positions stand: now, and in files before 2022."""

MAP_HEADS = ("MAPHead_0/", "")
"""What stands before the names of the attention pooling; nothing in files of ViT-G's development."""


def fits(raw: Raw) -> bool:
    """Blocks whose parts are numbered each kind alone, one by one or stacked, and no `posembed_input`."""
    prefix = prefix_of(raw) if raw.kind == "npz" else None
    if prefix is None or f"{prefix}{POSITIONS}" in raw.tensors:
        return False
    return numbers_of(raw, prefix) is EACH


def read(raw: Raw) -> Reading:
    """The model of a file, of the image tower where there are two. Raises `BadData` and `UsageError`."""
    prefix = prefix_of(raw) or ""
    stacked = f"{prefix}Transformer/encoderblock/LayerNorm_0/scale" in raw.tensors
    first = f"{prefix}Transformer/encoderblock{'' if stacked else '_0'}/"
    lead = raw.shape(f"{first}LayerNorm_0/scale")[:1] if stacked else ()
    depth = lead[0] if stacked else raw.depth(f"{prefix}Transformer/encoderblock_")
    shapes = shapes_of(raw, prefix, first, depth, lead)
    table = next((f"{prefix}{name}" for name in TABLES if f"{prefix}{name}" in raw.tensors), "")
    pooling, attention_pool = _pooling(raw, prefix)
    size, combined, said = _positions(raw, table, shapes.patch)
    config = ModelConfig(
        img_size=size, in_chans=shapes.channels, class_token=pooling == "token", global_pool=pooling,
        pos_embed="learn" if table else "sincos2d", no_embed_class=True, **shapes.options(), **NUMERICS,
    )  # fmt: skip
    agree(raw, config)
    two = prefix.endswith("img/")
    preprocess = preprocess_of(
        raw, shapes.channels, config.size, squash=two, interpolation="bilinear" if two else "box"
    )
    said += [*_said(config, two=two), *stored(raw, prefix)]
    rules = [*end_rules(shapes, prefix), *_token_rules(prefix, table, combined, token=config.class_token)]
    if pooling == "map":
        rules += _map_rules(f"{prefix}{attention_pool}", shapes)
    for i in range(depth):
        theirs = first if stacked else f"{prefix}Transformer/encoderblock_{i}/"
        block = block_rules(f"blocks.{i}.", theirs, shapes, EACH)
        rules += [_of_layer(rule, i, depth) for rule in block] if stacked else block
    taken = take(rules, in_float32(raw.tensors), drops_of(prefix))
    return Reading(
        model=with_given(config, raw.given), preprocess=preprocess, tensors=taken.tensors, used=taken.used,
        dropped=taken.dropped, said=(*SAID, *said),
    )  # fmt: skip


def _pooling(raw: Raw, prefix: str) -> tuple[Pooling, str]:
    """How the tokens become one vector, and what stands before the names of an attention pooling."""
    for before in MAP_HEADS:
        if f"{prefix}{before}probe" in raw.tensors:
            return "map", before
    return ("token" if f"{prefix}cls" in raw.tensors else "norm_then_avg"), ""


def _positions(raw: Raw, table: str, patch: int) -> tuple[Any, bool, list[str]]:
    """The picture's size, whether the table has a row for the class token before the patches', and sentences."""
    if not table:
        size = raw.given.get("img_size", 224)
        if "img_size" not in raw.given and size % patch:
            raw.ask("img_size", "it has no position table, so the size of its pictures is not in the file")
        return size, False, [f"positions: sin-cos, computed for any size; pictures taken to be of {size} pixels"]
    shape = raw.shape(table)
    if len(shape) != 3:
        raise BadData(f"{raw.path}: {table} has the shape {shape}, where 3 axes are needed.")
    rows = shape[1]
    try:
        return grid_of(raw, rows, 0, patch, given_first=True), False, []
    except UsageError:
        if isqrt(rows - 1) ** 2 != rows - 1:
            raise
    return isqrt(rows - 1) * patch, True, ["positions: an old table with a row for the class token, added to it once"]


def _token_rules(prefix: str, table: str, combined: bool, *, token: bool) -> list[Rule]:
    """Rules for the class token and the positions; an old table's first row is added to the token for good."""
    if not combined:
        rules = [same("pos_embed", table)] if table else []
        return [*rules, same("cls_token", f"{prefix}cls")] if token else rules
    rules = [Rule(ours="pos_embed", theirs=(table,), read=lambda x: x[:, 1:].contiguous(), write=unwritten)]
    if token:
        both = (f"{prefix}cls", table)
        rules.append(Rule(ours="cls_token", theirs=both, read=lambda cls, x: cls + x[:, :1], write=unwritten))
    return rules


def _map_rules(theirs: str, shapes: Shapes) -> list[Rule]:
    """Rules for the attention pooling: y = x + MLP(LN(x)), x being what the probe draws from the tokens."""
    attention = f"{theirs}MultiHeadDotProductAttention_0/"
    return [
        same("attn_pool.latent", f"{theirs}probe"),
        *queries_rules("attn_pool.q.", attention, shapes, ("query",)),
        *queries_rules("attn_pool.kv.", attention, shapes, ("key", "value")),
        *output_rules("attn_pool.proj.", attention, shapes),
        *norm_rules("attn_pool.norm.", f"{theirs}LayerNorm_0/"),
        *dense_rules("attn_pool.mlp.fc1.", f"{theirs}MlpBlock_0/Dense_0/"),
        *dense_rules("attn_pool.mlp.fc2.", f"{theirs}MlpBlock_0/Dense_1/"),
    ]


def _of_layer(rule: Rule, i: int, depth: int) -> Rule:
    """The rule for block `i` of `depth`, where all blocks are stacked along the first axis of each tensor."""

    def read(*stacks: Tensor) -> Tensor:
        return rule.read(*(fit(stack, (depth, *stack.shape[1:]))[i] for stack in stacks))

    return replace(rule, read=read, write=unwritten)


def unwritten(x: Tensor) -> Sequence[Tensor]:
    """This format is not written."""
    raise NotImplementedError(f"big_vision is read only: {tuple(x.shape)}")


def _said(config: ModelConfig, *, two: bool) -> list[str]:
    """Sentences on what came with the source."""
    said = []
    if config.representation_size:
        said.append("pre_logits: tanh follows, as in big_vision today; its code before 2022 had none")
    how = "squashed to the square bilinearly, as SigLIP does" if two else "the shorter side to 256/224, centre crop"
    said.append(f"pictures: {how}, scaled to [-1, 1]")
    if two:
        said.append("one tower of two: the scores of the head are an embedding of the picture, not classes")
    return said


FORMAT = Format(
    name="big_vision",
    title="google-research/big_vision .npz",
    fits=fits,
    read=read,
)
