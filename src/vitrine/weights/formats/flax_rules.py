"""Names and shapes that Google's two JAX code bases share: `vision_transformer` and `big_vision`.

Matrices are stored as (in, out), filters as (h, w, in, out), and attention's with the heads apart: (D, h, d) for
queries, keys and values, (h, d, D) for the output. Both compute LayerNorm with an epsilon of 1e-6, GELU by its
tanh approximation, and resize positions as `scipy.ndimage.zoom` of order 1 does, which is bilinear with the
corners aligned.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

from vitrine.config.architecture import ModelConfig
from vitrine.config.options import PreprocessConfig
from vitrine.errors import BadData, UsageError
from vitrine.weights.foreign import Raw, side
from vitrine.weights.rules import Drop, Rule, permuted, same, transposed

PREFIXES = ("", "params/", "opt/target/", "img/", "params/img/", "opt/target/img/")
"""What may stand before the names: nothing, the parameters of a training dump, the image tower of two."""

NUMERICS: Mapping[str, Any] = {
    "norm_eps": 1e-6,
    "act_layer": "gelu_tanh",
    "pos_interpolation": "bilinear",
    "pos_antialias": False,
    "pos_align_corners": True,
}
"""Options of `ModelConfig` that hold for every file of both."""

SAID = (
    "LayerNorm with epsilon 1e-6, GELU by its tanh approximation, positions resized bilinearly with corners aligned, "
    "as the JAX code has them",
)

HWIO = (3, 2, 0, 1)
POSITIONS = "Transformer/posembed_input/pos_embedding"
FIXED = ("embed_dim", "depth", "num_heads", "head_dim", "mlp_ratio", "num_classes", "representation_size")


@dataclass(frozen=True, kw_only=True)
class Numbers:
    """How a code base numbers the parts of a block: flax counted all together once, and each kind alone since."""

    attention: int
    norm2: int
    mlp: int


TOGETHER, EACH = Numbers(attention=1, norm2=2, mlp=3), Numbers(attention=0, norm2=1, mlp=0)


@dataclass(frozen=True, kw_only=True)
class Shapes:
    """What the shapes of a file say: width D, heads h of width d, hidden width M, L blocks, patches, classes."""

    D: int
    h: int
    d: int
    M: int
    L: int
    patch: int
    channels: int
    num_classes: int
    representation_size: int

    def options(self) -> dict[str, Any]:
        """The same as options of `ModelConfig`."""
        return {
            "embed_dim": self.D, "depth": self.L, "num_heads": self.h, "mlp_ratio": self.M / self.D,
            "head_dim": None if self.h * self.d == self.D else self.d, "patch_size": self.patch,
            "num_classes": self.num_classes, "representation_size": self.representation_size,
        }  # fmt: skip


def prefix_of(raw: Raw) -> str | None:
    """What stands before the names of the Transformer's tensors; None where there are none.

    The patch filter tells: each code base has it under `embedding/kernel`, beside a `Transformer/`.
    """
    for prefix in PREFIXES:
        if f"{prefix}embedding/kernel" in raw.tensors and f"{prefix}Transformer/encoder_norm/scale" in raw.tensors:
            return prefix
    return None


def numbers_of(raw: Raw, prefix: str) -> Numbers:
    """How this file numbers the parts of its blocks."""
    old = any(name.startswith(f"{prefix}Transformer/") and "DotProductAttention_1/" in name for name in raw.tensors)
    return TOGETHER if old else EACH


def drops_of(prefix: str) -> list[Drop]:
    """What may stand beside the parameters of an image model without being part of its function."""
    drops = []
    if prefix.startswith(("params/", "opt/target/")):
        own = "opt/(?!target/)" if prefix.startswith("opt/") else "opt/"
        rest = rf"({own}|extra/|chrono/|states?/).*|step|accum_train_time"
        drops.append(Drop(pattern=rest, why="state of the training: the optimiser's moments, and counters"))
    if prefix.endswith("img/"):
        outer = prefix.removesuffix("img/")
        drops += [
            Drop(pattern=rf"{outer}txt/.*", why="the text tower: the image tower does not see it"),
            Drop(pattern=rf"{outer}[tb]", why="temperature and bias of the comparison of pictures with texts"),
        ]
    return drops


def shapes_of(raw: Raw, prefix: str, block: str, depth: int, lead: tuple[int, ...] = ()) -> Shapes:
    """The geometry from the shapes of a file whose first block's names begin with `block`.

    `lead` is what stands before every shape of a block: the number of blocks where they are stacked. Raises
    `BadData` naming a tensor that is not there or has another number of axes than it must.
    """
    numbers = numbers_of(raw, prefix)
    patch = _shape(raw, f"{prefix}embedding/kernel", 4)
    query = _shape(raw, f"{block}MultiHeadDotProductAttention_{numbers.attention}/query/kernel", 3 + len(lead))
    hidden = _shape(raw, f"{block}MlpBlock_{numbers.mlp}/Dense_0/kernel", 2 + len(lead))
    if patch[0] != patch[1]:
        raise UsageError(f"{raw.path}: patches of {patch[0]}x{patch[1]} pixels; only square ones have an equal here.")
    head = raw.shape(f"{prefix}head/bias")
    return Shapes(
        D=patch[3], h=query[-2], d=query[-1], M=hidden[-1], L=depth, patch=patch[0], channels=patch[2],
        num_classes=head[0] if head else 0, representation_size=_hidden_of_head(raw, prefix, patch[3]),
    )  # fmt: skip


def _shape(raw: Raw, name: str, axes: int) -> tuple[int, ...]:
    shape = raw.shape(name)
    if name not in raw.tensors:
        raise BadData(f"{raw.path}: the tensors do not fit the model: missing: {name}.")
    if len(shape) != axes:
        raise BadData(f"{raw.path}: {name} has the shape {shape}, where {axes} axes are needed.")
    return shape


def _hidden_of_head(raw: Raw, prefix: str, D: int) -> int:
    """Width of `pre_logits`, 0 for none. Raises `BadData` where it is halved, or gone and the head shows it.

    A head keeps its meaning only behind the hidden layer it was trained with, so the layer is never left out.
    """
    kernel, bias = (raw.shape(f"{prefix}pre_logits/{part}") for part in ("kernel", "bias"))
    if bool(kernel) != bool(bias):
        gone = "bias" if kernel else "kernel"
        raise BadData(f"{raw.path}: pre_logits/{gone} is missing while the head is there. Take the published file.")
    R = kernel[-1] if kernel else 0
    head = raw.shape(f"{prefix}head/kernel")
    if head and head[0] != (R or D):
        why = f"the head takes {head[0]} features and {'pre_logits' if R else 'the encoder'} gives {R or D}"
        remedy = "Take the published file." if R else "pre_logits is missing: take the file that has it."
        raise BadData(f"{raw.path}: {why}. {remedy}")
    return R


def grid_of(raw: Raw, rows: int, prefix_rows: int, stride: int, *, given_first: bool = False) -> int | tuple[int, int]:
    """The size in pixels of the picture whose patches have the `rows` of a table, less those of other tokens.

    A square one, unless there is none or `given_first`: then that of the given `img_size`, if its patches are as
    many. Raises `UsageError` asking for it.
    """
    given = raw.given.get("img_size")
    size = (given, given) if isinstance(given, int) else tuple(given) if given else ()
    fits = bool(size) and all(s % stride == 0 for s in size) and prod(s // stride for s in size) == rows - prefix_rows
    try:
        square = side(rows, prefix_rows, raw) * stride
    except UsageError:
        if not fits:
            raise
        square = 0
    if fits and (given_first or not square):
        return size[0] if size[0] == size[1] else (size[0], size[1])
    return square


def agree(raw: Raw, config: ModelConfig) -> None:
    """Raise `UsageError` for an option that was given and that the file itself says otherwise."""
    for name in FIXED:
        if name in raw.given and raw.given[name] not in (getattr(config, name), None):
            said = f"--model.{name.replace('_', '-')} {raw.given[name]}: the file says {getattr(config, name)}"
            raise UsageError(f"{raw.path}: {said}. Leave the option out.")


def preprocess_of(
    raw: Raw, channels: int, size: tuple[int, int], *, squash: bool, interpolation: Any = "bilinear"
) -> PreprocessConfig:
    """Scaling to [-1, 1] after a squash to `size`, or after a crop of 224 / 256. Raises `UsageError`."""
    if channels not in (1, 3):
        raise UsageError(f"{raw.path}: takes pictures of {channels} channels; only grey (1) and RGB (3) are read.")
    half = (0.5,) * channels
    return PreprocessConfig(
        size=size, resize="squash" if squash else "shorter", crop_pct=1.0 if squash else 0.875,
        interpolation=interpolation, mean=half, std=half,
    )  # fmt: skip


def fit(x: Tensor, shape: Sequence[int]) -> Tensor:
    """`x`, if it has the `shape`. Raises `ValueError`, which the rules report with the tensor's name."""
    if tuple(x.shape) != tuple(shape):
        raise ValueError(f"{tuple(x.shape)} is not {tuple(shape)}")
    return x


def queries_rules(
    ours: str, theirs: str, shapes: Shapes, parts: Sequence[str] = ("query", "key", "value")
) -> list[Rule]:
    """Rules for the fused weight and bias of `ours`, rows q | k | v, each head by head, from (D, h, d) and (h, d)."""
    D, h, d, count = shapes.D, shapes.h, shapes.d, len(parts)

    def read(*kernels: Tensor) -> Tensor:
        return torch.cat([fit(kernel, (D, h, d)).reshape(D, h * d).t() for kernel in kernels])

    def write(weight: Tensor) -> list[Tensor]:
        return [part.t().reshape(D, h, d) for part in weight.chunk(count)]

    return [
        Rule(ours=f"{ours}weight", theirs=tuple(f"{theirs}{part}/kernel" for part in parts), read=read, write=write),
        Rule(
            ours=f"{ours}bias", theirs=tuple(f"{theirs}{part}/bias" for part in parts),
            read=lambda *biases: torch.cat([fit(bias, (h, d)).flatten() for bias in biases]),
            write=lambda bias: [part.reshape(h, d) for part in bias.chunk(count)],
        ),
    ]  # fmt: skip


def output_rules(ours: str, theirs: str, shapes: Shapes) -> list[Rule]:
    """Rules for the projection after the heads, from (h, d, D) and (D)."""
    D, h, d = shapes.D, shapes.h, shapes.d
    return [
        Rule(
            ours=f"{ours}weight", theirs=(f"{theirs}out/kernel",),
            read=lambda x: fit(x, (h, d, D)).reshape(h * d, D).t().contiguous(),
            write=lambda x: (x.t().reshape(h, d, D),),
        ),
        same(f"{ours}bias", f"{theirs}out/bias"),
    ]  # fmt: skip


def norm_rules(ours: str, theirs: str) -> list[Rule]:
    """Rules for a LayerNorm."""
    return [same(f"{ours}weight", f"{theirs}scale"), same(f"{ours}bias", f"{theirs}bias")]


def dense_rules(ours: str, theirs: str) -> list[Rule]:
    """Rules for a linear layer."""
    return [transposed(f"{ours}weight", f"{theirs}kernel"), same(f"{ours}bias", f"{theirs}bias")]


def block_rules(ours: str, theirs: str, shapes: Shapes, numbers: Numbers) -> list[Rule]:
    """Rules for one encoder block."""
    attention = f"{theirs}MultiHeadDotProductAttention_{numbers.attention}/"
    mlp = f"{theirs}MlpBlock_{numbers.mlp}/"
    return [
        *norm_rules(f"{ours}norm1.", f"{theirs}LayerNorm_0/"),
        *queries_rules(f"{ours}attn.qkv.", attention, shapes),
        *output_rules(f"{ours}attn.proj.", attention, shapes),
        *norm_rules(f"{ours}norm2.", f"{theirs}LayerNorm_{numbers.norm2}/"),
        *dense_rules(f"{ours}mlp.fc1.", f"{mlp}Dense_0/"),
        *dense_rules(f"{ours}mlp.fc2.", f"{mlp}Dense_1/"),
    ]


def end_rules(shapes: Shapes, prefix: str) -> list[Rule]:
    """Rules for the patch filter at the one end, the last norm and the head at the other."""
    rules = [
        permuted("patch_embed.proj.weight", f"{prefix}embedding/kernel", HWIO),
        same("patch_embed.proj.bias", f"{prefix}embedding/bias"),
        *norm_rules("norm.", f"{prefix}Transformer/encoder_norm/"),
    ]
    if shapes.representation_size:
        rules += dense_rules("pre_logits.fc.", f"{prefix}pre_logits/")
    return rules + (dense_rules("head.", f"{prefix}head/") if shapes.num_classes else [])


def in_float32(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors in float32, which bfloat16 and float16 go into without loss; integers are left alone."""
    return {name: x.float() if x.is_floating_point() else x for name, x in tensors.items()}


def stored(raw: Raw, prefix: str) -> list[str]:
    """A sentence where the file holds weights of another type than float32."""
    kinds = {x.dtype for name, x in raw.tensors.items() if name.startswith(prefix)} - {torch.float32}
    others = sorted(str(kind).removeprefix("torch.") for kind in kinds if kind.is_floating_point)
    return [f"weights: stored as {' and '.join(others)}, computed in float32"] if others else []
