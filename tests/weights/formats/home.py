"""The parts of other people's Vision Transformers written out slowly, one head and one token at a time.

They stand in for homes that are no installable package: each test puts them together as its source does. Nothing
here is shared with the models under test.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

State = Mapping[str, Tensor]


def fill(shapes: Mapping[str, tuple[int, ...]], seed: int = 0) -> dict[str, Tensor]:
    """Random tensors of these names and shapes, none of them neutral: scales near 1, the rest near 0."""
    generator = torch.Generator().manual_seed(seed)

    def one(name: str, shape: tuple[int, ...]) -> Tensor:
        noise = torch.randn(shape, generator=generator)
        if len(shape) == 1 and name.endswith("weight"):
            return 1 + 0.1 * noise
        return noise * (0.5 / math.prod(shape[1:]) ** 0.5 if len(shape) in (2, 4) else 0.3)

    return {name: one(name, shape) for name, shape in shapes.items()}


def faint(state: State, *parts: str) -> dict[str, Tensor]:
    """`state` with the tensors whose names hold one of `parts`, those that make tokens, a thousand times smaller.

    The variance of the tokens is then of the size of an epsilon, so that the logits show which one it is.
    """
    return {name: tensor * 1e-3 if any(part in name for part in parts) else tensor for name, tensor in state.items()}


def norm(state: State, name: str, x: Tensor, eps: float) -> Tensor:
    """LayerNorm over the last axis with the biased variance."""
    mean = x.mean(-1, keepdim=True)
    variance = ((x - mean) ** 2).mean(-1, keepdim=True)
    return (x - mean) / torch.sqrt(variance + eps) * state[f"{name}.weight"] + state[f"{name}.bias"]


def linear(state: State, name: str, x: Tensor) -> Tensor:
    """x W^T + b."""
    out = x @ state[f"{name}.weight"].t()
    return out + state[f"{name}.bias"] if f"{name}.bias" in state else out


def gelu(x: Tensor) -> Tensor:
    """x Phi(x), with the error function."""
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def silu(x: Tensor) -> Tensor:
    """x sigmoid(x)."""
    return x / (1 + torch.exp(-x))


def cut(state: State, name: str, images: Tensor) -> Tensor:
    """Patch tokens (B, P, D), one patch at a time, row by row."""
    weight, bias = state[f"{name}.weight"], state[f"{name}.bias"]
    p = weight.shape[-1]
    tokens = [
        images[:, :, top : top + p, left : left + p].flatten(1) @ weight.flatten(1).t() + bias
        for top in range(0, images.shape[2], p)
        for left in range(0, images.shape[3], p)
    ]
    return torch.stack(tokens, dim=1)


def heads(q: Tensor, k: Tensor, v: Tensor, count: int, turn: Callable[[Tensor], Tensor] = lambda x: x) -> Tensor:
    """Attention of q, k, v (B, N, D), head by head; `turn` is done to the queries and keys of each."""
    d = q.shape[-1] // count
    mixed = []
    for head in range(count):
        part = slice(head * d, (head + 1) * d)
        logits = turn(q[..., part]) @ turn(k[..., part]).transpose(1, 2) / math.sqrt(d)
        weights = torch.exp(logits - logits.amax(-1, keepdim=True))
        mixed.append(weights / weights.sum(-1, keepdim=True) @ v[..., part])
    return torch.cat(mixed, dim=-1)


def resized(table: Tensor, before: int, new: tuple[int, int], **how: object) -> Tensor:
    """A square table (1, before + g g, D) for a `new` grid, by torch's bicubic; rows before the patches stay."""
    side = round((table.shape[1] - before) ** 0.5)
    if new == (side, side):
        return table
    image = table[:, before:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
    image = F.interpolate(image, mode="bicubic", align_corners=False, **(how or {"size": new}))
    assert tuple(image.shape[-2:]) == new
    return torch.cat([table[:, :before], image.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)


def block_shapes(D: int, M: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of one block as timm, DeiT and DINO have them."""
    return {
        "norm1.weight": (D,), "norm1.bias": (D,), "attn.qkv.weight": (3 * D, D), "attn.qkv.bias": (3 * D,),
        "attn.proj.weight": (D, D), "attn.proj.bias": (D,), "norm2.weight": (D,), "norm2.bias": (D,),
        "mlp.fc1.weight": (M, D), "mlp.fc1.bias": (M,), "mlp.fc2.weight": (D, M), "mlp.fc2.bias": (D,),
    }  # fmt: skip


def vit_shapes(D: int = 48, M: int = 96, depth: int = 2, patch: int = 8, rows: int = 17) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a whole plain ViT as timm, DeiT and DINO have them, without a head."""
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, D), "pos_embed": (1, rows, D), "norm.weight": (D,), "norm.bias": (D,),
        "patch_embed.proj.weight": (D, 3, patch, patch), "patch_embed.proj.bias": (D,),
    }  # fmt: skip
    for i in range(depth):
        shapes |= {f"blocks.{i}.{name}": shape for name, shape in block_shapes(D, M).items()}
    return shapes
