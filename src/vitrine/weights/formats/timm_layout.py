"""The Vision Transformer under timm's names, which are ours: what a file's names and shapes say of its architecture.

timm's files, DeiT's, DINO's and, once renamed, mmpretrain's share this layout; each brings its own numerics.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from vitrine.config.architecture import ADDED, ModelConfig
from vitrine.config.options import PreprocessConfig
from vitrine.errors import BadData, UsageError
from vitrine.models import positions
from vitrine.models.relative import EXTRA
from vitrine.models.vit import VisionTransformer
from vitrine.weights.bundle import Bundle
from vitrine.weights.foreign import Raw, with_given
from vitrine.weights.formats.resnet_rules import OURS as STEM
from vitrine.weights.formats.resnet_rules import stem_config, stem_rules
from vitrine.weights.rules import Rule, same

MARKS = ("blocks.0.norm1.weight", "blocks.0.attn.qkv.weight", "blocks.0.mlp.fc1.weight")
"""Names that every plain file of this layout has."""

BIAS = "rel_pos.relative_position_bias_table"
"""Ends the name of a table of relative biases, of one block or, after `shared_`, of all."""

DEFAULT_SCALE = 1e-5
"""LayerScale's first value where a file does not hold it; it is of no account to trained weights."""


def bare(raw: Raw, prefixes: Iterable[str] = ("module.", "model.")) -> Raw:
    """`raw` without the `prefixes` that wrappers of training (DataParallel, EMA) leave before every name."""
    tensors = raw.tensors
    for prefix in (*prefixes, *prefixes):
        if tensors and all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return replace(raw, tensors=tensors)


def renamed(raw: Raw, rename: Callable[[str], str]) -> Raw:
    """`raw` with every name through `rename`. Raises `BadData` where two become one."""
    tensors = {rename(name): tensor for name, tensor in raw.tensors.items()}
    if len(tensors) < len(raw.tensors):
        raise BadData(f"{raw.path}: several tensors stand for the same one under different names.")
    return replace(raw, tensors=tensors)


def spelled(rules: Iterable[Rule], raw: Raw, rename: Callable[[str], str]) -> list[Rule]:
    """`rules` that were made for names as `rename` makes them, for the tensors of `raw` under their own names."""
    own = {rename(name): name for name in raw.tensors}
    return [replace(rule, theirs=tuple(own.get(name, name) for name in rule.theirs)) for rule in rules]


def vit_config(raw: Raw, **options: Any) -> ModelConfig:
    """The architecture that the names and shapes of `raw` say, with `options` of the format over it.

    `options` must hold `num_heads`. What the user gave (`raw.given`) goes before both. `prefix_rows`, an option
    of this function, says how many rows of the position table belong to prefix tokens, where the format knows.
    Raises `UsageError` for a grid that the table does not tell, and `BadData` for what is no such model.
    """
    options = {**options, **{k: v for k, v in raw.given.items() if k in ("num_heads", "global_pool")}}
    D = width(raw)
    tokens = {
        "class_token": "cls_token" in raw.tensors,
        "distilled": "dist_token" in raw.tensors,
        "reg_tokens": (raw.shape("reg_token") or (1, 0))[1],
    }
    stem = stem_config(raw.tensors, "timm", STEM) if is_hybrid(raw) else None
    patch = raw.shape("patch_embed.proj.weight")
    stride = patch[-1] * (stem.stride if stem else 1)
    found: dict[str, Any] = {
        **_branches(raw, D, options["num_heads"]),
        **_ends(raw, D),
        **tokens,
        **({"family": "hybrid", "resnet": stem} if stem else {}),
        "patch_size": patch[-1],
        "in_chans": raw.shape(f"{STEM}{'stem.' if stem.layers else ''}conv.weight")[1] if stem else patch[1],
    }
    known = options.pop("img_size", None)
    rows = options.pop("prefix_rows", None)
    found |= _positions(raw, stride, tokens, known, rows)
    return with_given(ModelConfig(**{**found, **options}), raw.given)


def is_hybrid(raw: Raw) -> bool:
    """Whether a ResNet of BiT's kind stands before the patches."""
    return f"{STEM}stem.conv.weight" in raw.tensors or f"{STEM}conv.weight" in raw.tensors


def vit_rules(config: ModelConfig) -> list[Rule]:
    """A rule for every tensor of a model of `config`: the names are ours."""
    with torch.device("meta"):
        names = list(VisionTransformer(config).state_dict())
    rules = [same(name, name) for name in names if not name.startswith(STEM)]
    return rules + (stem_rules(config.resnet, "timm", STEM) if config.family == "hybrid" else [])


def layout(path: str, rows: int, prefixes: Iterable[int], known: tuple[int, int] | None) -> tuple[tuple[int, int], int]:
    """The grid of a table of `rows` positions, and how many of them stand before the patches, one of `prefixes`.

    A `known` grid decides where it fits; otherwise the grid is a square. Raises `UsageError` asking for the size
    where no square or more than one fits.
    """
    choices = sorted(set(prefixes))
    if known is not None and rows - known[0] * known[1] in choices:
        return known, rows - known[0] * known[1]
    squares = [
        (round((rows - prefix) ** 0.5), prefix)
        for prefix in choices
        if rows > prefix and round((rows - prefix) ** 0.5) ** 2 == rows - prefix
    ]
    if len(squares) != 1:
        many = "fits several square grids" if squares else "fits no square grid"
        raise UsageError(
            f"{path}: a table of {rows} positions {many} of patches. Give the size it is for, in pixels: "
            "--model.img-size HEIGHT WIDTH."
        )
    side, prefix = squares[0]
    return (side, side), prefix


def preprocessing(
    config: ModelConfig, mean: tuple[float, ...], std: tuple[float, ...], **options: Any
) -> PreprocessConfig:
    """The preprocessing of a model of `config`: its own size unless `options` say another, grey where it is grey."""
    if config.in_chans == 1 and len(mean) == 3:
        mean, std = (sum(mean) / 3,), (sum(std) / 3,)
    return PreprocessConfig(**{"size": config.size, "mean": tuple(mean), "std": tuple(std), **options})


def pair(size: Any) -> tuple[int, int]:
    """Height and width of a size that is given as one number or two."""
    height, width = (size, size) if isinstance(size, int) else tuple(size)
    return int(height), int(width)


def blocks(raw: Raw, prefix: str = "blocks.") -> int:
    """How many blocks there are. Raises `BadData` unless their numbers after `prefix` go from 0 without a gap."""
    depth = raw.depth(prefix)
    heads = {name.removeprefix(prefix).split(".")[0] for name in raw.tensors if name.startswith(prefix)}
    # Counted before anything of that size is built: a name may hold any number.
    if depth != len(heads):
        raise BadData(
            f"{raw.path}: {len(heads)} blocks, the last with number {depth - 1}: they are not counted through."
        )
    return depth


SHAPES = {
    "blocks.0.norm1.weight": 1, "blocks.0.attn.qkv.weight": 2, "blocks.0.mlp.fc1.weight": 2,
    "blocks.0.mlp.fc2.weight": 2, "patch_embed.proj.weight": 4, "reg_token": 3, "pos_embed": 3, "head.weight": 2,
    "pre_logits.fc.weight": 2,
}  # fmt: skip
"""Axes of the tensors whose shapes are read before all are compared."""


def width(raw: Raw) -> int:
    """D. Raises `BadData` for shapes that are not a ViT's."""
    for name, axes in SHAPES.items():
        shape = raw.shape(name)
        if name in raw.tensors and (len(shape) != axes or 0 in shape):
            raise BadData(f"{raw.path}: {name} has the shape {shape}, which is not a ViT's.")
    D = raw.shape("blocks.0.norm1.weight")
    if not D or "patch_embed.proj.weight" not in raw.tensors or "blocks.0.attn.qkv.weight" not in raw.tensors:
        raise BadData(f"{raw.path}: there is no norm, attention or patch filter under the names of a ViT.")
    return D[0]


def _branches(raw: Raw, D: int, num_heads: int) -> dict[str, Any]:
    """What the blocks say."""
    inner = raw.shape("blocks.0.attn.qkv.weight")[0] // 3
    hidden, fed = (raw.shape("blocks.0.mlp.fc1.weight") or (4 * D,))[0], raw.shape("blocks.0.mlp.fc2.weight")
    swiglu = len(fed) == 2 and hidden == 2 * fed[1]
    return {
        "embed_dim": D,
        "depth": blocks(raw),
        "num_heads": num_heads,
        "head_dim": None if inner == D else inner // max(1, num_heads),
        "mlp_ratio": (hidden // 2 if swiglu else hidden) / D,
        "mlp_layer": "swiglu" if swiglu else "mlp",
        "qkv_bias": "blocks.0.attn.qkv.bias" in raw.tensors,
        "qk_norm": "blocks.0.attn.q_norm.weight" in raw.tensors,
        "init_values": DEFAULT_SCALE if "blocks.0.ls1.gamma" in raw.tensors else None,
        "pre_norm": "norm_pre.weight" in raw.tensors,
    }


def _ends(raw: Raw, D: int) -> dict[str, Any]:
    """What norm, pooling and head say. timm's `fc_norm` stands after the mean, `norm` before whatever follows."""
    if "attn_pool.latent" in raw.tensors:
        pool = "map"
    elif "fc_norm.weight" in raw.tensors:
        pool = "avg_then_norm"
    else:
        pool = "token" if "cls_token" in raw.tensors else "norm_then_avg"
    return {
        "global_pool": pool,
        "final_norm": "norm.weight" in raw.tensors or "fc_norm.weight" in raw.tensors,
        "num_classes": (raw.shape("head.weight") or (0,))[0],
        "representation_size": (raw.shape("pre_logits.fc.weight") or (0,))[0],
    }


def _positions(raw: Raw, stride: int, tokens: Mapping[str, Any], known: Any, prefix_rows: int | None) -> dict[str, Any]:
    """What the position table says; `known` is the size in pixels that the format says, if it says any."""
    known = raw.given.get("img_size", known)
    grid = None if known is None else (pair(known)[0] // stride, pair(known)[1] // stride)
    relative = [name for name in raw.tensors if name.endswith(BIAS)]
    if relative:
        return _bias(raw, relative[0], stride, named=int(tokens["class_token"]), grid=grid)
    if "pos_embed" not in raw.tensors:
        size = (224 // stride or 1,) * 2 if grid is None else grid
        return {"pos_embed": "none", "img_size": _size(size, stride)}
    named = int(tokens["class_token"]) + int(tokens["distilled"])
    choices = {0, named, named + tokens["reg_tokens"]} if prefix_rows is None else {prefix_rows}
    found, before = layout(raw.path, raw.shape("pos_embed")[1], choices, grid)
    return {"img_size": _size(found, stride), "no_embed_class": named > 0 and before == 0}


def _bias(raw: Raw, name: str, stride: int, *, named: int, grid: tuple[int, int] | None) -> dict[str, Any]:
    """What a table of relative biases says: its rows are the offsets of two patches, and three more with a prefix."""
    rows = (raw.shape(name) or (0,))[0]
    sides = None if grid is None else (2 * grid[0] - 1, 2 * grid[1] - 1)
    found, before = layout(raw.path, rows, {0, EXTRA * named}, sides)
    return {
        "pos_embed": "rel_bias2d",
        "pos_at": "layers_shared" if name.startswith("shared") else "layers",
        "img_size": _size(((found[0] + 1) // 2, (found[1] + 1) // 2), stride),
        "no_embed_class": named > 0 and before == 0,
    }


def _size(grid: tuple[int, int], stride: int) -> int | tuple[int, int]:
    return grid[0] * stride if grid[0] == grid[1] else (grid[0] * stride, grid[1] * stride)


def fold_registers(tensors: Mapping[str, Tensor], positions: int) -> dict[str, Tensor]:
    """The tensors with registers that need no positions: rows of the table for them are added to them.

    `positions` is the number of patches. A register plus a constant vector is a constant vector, so the function
    stays. Tables without rows for registers come back as they are.
    """
    found = dict(tensors)
    if "reg_token" not in found or "pos_embed" not in found:
        return found
    table, registers = found["pos_embed"], found["reg_token"]
    first = int("cls_token" in found) + int("dist_token" in found)
    count = registers.shape[1]
    if table.shape[1] != positions + first + count:
        return found
    found["reg_token"] = registers + table[:, first : first + count]
    found["pos_embed"] = torch.cat([table[:, :first], table[:, first + count :]], dim=1)
    return found


def with_table(bundle: Bundle) -> tuple[ModelConfig, dict[str, Tensor], tuple[str, ...]]:
    """The model with positions that are added to the tokens in a learned table, whatever gave them; and what to say.

    At the model's own size the function is the same. Other kinds come back as they are.
    """
    config, tensors = bundle.model, dict(bundle.tensors)
    if config.pos_embed not in ADDED - {"learn"} or config.pos_at != "input":
        return config, tensors, ()
    model = VisionTransformer(config)
    model.load_state_dict(tensors)
    rows = positions.table(config, model.pos_embed, config.grid, tensors["patch_embed.proj.weight"])
    assert rows is not None
    patches = rows.shape[1] - config.num_prefix_tokens
    # A row of zeros for the class token is none; beside a distillation token timm wants both rows all the same.
    placed = config.distilled or bool(rows[:, : config.num_prefix_tokens - config.reg_tokens].any())
    named = int(config.class_token) + int(config.distilled) if placed else 0
    tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("pos_embed")}
    tensors["pos_embed"] = torch.cat([rows[:, :named], rows[:, -patches:]], dim=1).detach()
    said = f"positions: {config.pos_embed} written out as a table for {config.size[0]} x {config.size[1]} pixels"
    learned = replace(config, pos_embed="learn", no_embed_class=config.class_token and not placed)
    return learned, tensors, (said,)


def unfold_registers(tensors: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """The inverse for timm, whose table has rows for all prefix tokens or for none: rows of zeros for registers."""
    found = dict(tensors)
    first = 0 if config.no_embed_class else int(config.class_token)
    if config.reg_tokens and first and "pos_embed" in found:
        table = found["pos_embed"]
        zeros = table.new_zeros(1, config.reg_tokens, table.shape[2])
        found["pos_embed"] = torch.cat([table[:, :first], zeros, table[:, first:]], dim=1)
    return found
