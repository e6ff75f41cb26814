"""A numbered list of arrays, as libaohang/ViT-NumPy saves its Vision Transformers with `numpy.savez`.

The arrays have no names but their place: patch filter, class token, positions, the blocks, a last norm in some, the
head. Facts: VisionTransformer.py, Attention.py, LinearLayer.py, LayerNorm.py and Activations.py of
https://github.com/libaohang/ViT-NumPy at 76a52af8.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from vitrine.config.architecture import ModelConfig
from vitrine.config.options import PreprocessConfig
from vitrine.errors import BadData
from vitrine.weights.foreign import Format, Raw, Reading, side, with_given
from vitrine.weights.rules import Rule, same, shaped, stacked, take

CIFAR_MEAN, CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
Shape = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class _Layout:
    """What the shapes of the list tell."""

    patch: int
    channels: int
    width: int
    depth: int
    heads: int
    hidden: int
    classes: int
    positions: int
    last_norm: bool

    def shapes(self) -> Iterator[Shape]:
        """The shape of every array in its order."""
        D, d, M = self.width, self.width // self.heads, self.hidden
        yield from ((self.patch**2 * self.channels, D), (1, 1, D), (1, self.positions, D))
        for _ in range(self.depth):
            yield from ((D,), (D,), *((d, D), (1, d)) * (3 * self.heads), (D, D), (1, D))
            yield from ((D,), (D,), (M, D), (1, M), (D, M), (1, D))
        if self.last_norm:
            yield from ((D,), (D,))
        yield from ((self.classes, D), (1, self.classes))

    @property
    def block(self) -> int:
        """Arrays in a block."""
        return 10 + 6 * self.heads


def _layout(raw: Raw) -> _Layout | None:
    """The layout that the shapes of all arrays agree with, or None."""
    shapes = [raw.shape(f"arr_{i}") for i in range(len(raw.tensors))]
    axes = [len(shape) for shape in shapes[:6]]
    if raw.kind != "npz" or len(shapes) < 21 or () in shapes or axes != [2, 3, 3, 1, 1, 2]:
        return None
    (values, D), d = shapes[0], shapes[5][0]
    sizes = [(p, c) for c in (1, 3) for p in [round((values / c) ** 0.5)] if p * p * c == values]
    if not sizes or d == 0 or D % d:
        return None
    heads = D // d
    depth, rest = divmod(len(shapes) - 5, 10 + 6 * heads)
    first_mlp = 3 + 6 * heads + 6
    if rest not in (0, 2) or first_mlp >= len(shapes) or not shapes[first_mlp] or depth < 1:
        return None
    layout = _Layout(
        patch=sizes[0][0], channels=sizes[0][1], width=D, depth=depth, heads=heads, hidden=shapes[first_mlp][0],
        classes=shapes[-2][0], positions=shapes[2][1], last_norm=rest == 2,
    )  # fmt: skip
    return layout if list(layout.shapes()) == shapes else None


def _fits(raw: Raw) -> bool:
    return _layout(raw) is not None


def _rules(layout: _Layout) -> list[Rule]:
    p, c, D, h = layout.patch, layout.channels, layout.width, layout.heads
    rules = [
        # Rows of the patch filter are (p1, p2, c), as the author's reshape lays the pixels out.
        Rule(
            ours="patch_embed.proj.weight", theirs=("arr_0",),
            read=lambda x: x.reshape(p, p, c, D).permute(3, 2, 0, 1).contiguous(),
            write=lambda x: (x.permute(2, 3, 1, 0).reshape(p * p * c, D),),
        ),
        same("cls_token", "arr_1"),
        same("pos_embed", "arr_2"),
    ]  # fmt: skip
    at = 3
    for i in range(layout.depth):
        name = f"blocks.{i}."
        after = at + 2 + 6 * h
        # Each head has its own query, key and value one after another; ours are q | k | v, each head by head.
        heads = [at + 2 + 6 * head + 2 * part for part in range(3) for head in range(h)]
        rules += [
            *_norm(name + "norm1.", at),
            stacked(name + "attn.qkv.weight", [f"arr_{number}" for number in heads]),
            _flat(name + "attn.qkv.bias", [f"arr_{number + 1}" for number in heads]),
            *_linear(name + "attn.proj.", after),
            *_norm(name + "norm2.", after + 2),
            *_linear(name + "mlp.fc1.", after + 4),
            *_linear(name + "mlp.fc2.", after + 6),
        ]
        at += layout.block
    if layout.last_norm:
        rules += _norm("norm.", at)
        at += 2
    return [*rules, *_linear("head.", at)]


def _norm(ours: str, at: int) -> list[Rule]:
    return [same(ours + "weight", f"arr_{at}"), same(ours + "bias", f"arr_{at + 1}")]


def _linear(ours: str, at: int) -> list[Rule]:
    return [same(ours + "weight", f"arr_{at}"), shaped(ours + "bias", f"arr_{at + 1}", (-1,), (1, -1))]


def _flat(ours: str, theirs: list[str]) -> Rule:
    """Rows (1, d) of theirs as one vector."""
    return Rule(
        ours=ours, theirs=tuple(theirs),
        read=lambda *x: torch.cat([row.reshape(-1) for row in x]),
        write=lambda x: [part.reshape(1, -1) for part in x.chunk(len(theirs))],
    )  # fmt: skip


def _read(raw: Raw) -> Reading:
    layout = _layout(raw)
    if layout is None:
        raise BadData(f"{raw.path}: the arrays are no Vision Transformer of libaohang/ViT-NumPy.")
    size = side(layout.positions, 1, raw) * layout.patch
    config = ModelConfig(
        img_size=size, patch_size=layout.patch, in_chans=layout.channels, num_classes=layout.classes,
        embed_dim=layout.width, depth=layout.depth, num_heads=layout.heads, mlp_ratio=layout.hidden / layout.width,
        act_layer="gelu_tanh" if layout.last_norm else "relu", norm_eps=1e-5, final_norm=layout.last_norm,
    )  # fmt: skip
    taken = take(_rules(layout), raw.tensors)
    fresh: dict[str, Tensor] = {"patch_embed.proj.bias": torch.zeros(layout.width)}
    grey = layout.channels == 1
    preprocess = PreprocessConfig(
        size=(size, size), resize="squash", interpolation="bilinear",
        mean=(0.0,) if grey else CIFAR_MEAN, std=(1.0,) if grey else CIFAR_STD,
    )  # fmt: skip
    what = "no last norm, so ReLU" if not layout.last_norm else "a last norm, so GELU by its tanh approximation"
    return Reading(
        model=with_given(config, raw.given),
        preprocess=preprocess,
        tensors=taken.tensors | fresh,
        used=taken.used,
        dropped=taken.dropped,
        fresh=dict.fromkeys(fresh, "zero: this source has none"),
        said=(
            f"activation: not in the file; {what}, as in the author's code; another one by --model.act-layer",
            f"preprocessing: not in the file; {'x / 255' if grey else 'the constants of CIFAR-10'}, as in the author's "
            "code",
            "LayerNorm epsilon 1e-5, as in the author's code",
        ),
    )


FORMAT = Format(
    name="vit-numpy",
    title="a numbered list of arrays (libaohang/ViT-NumPy)",
    fits=_fits,
    read=_read,
)
