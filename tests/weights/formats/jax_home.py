"""The ViTs of Google's two JAX code bases, written anew from their papers and module names, and their logits.

What is recorded in `tests/golden/google.json` comes from here. In an environment with jax, flax and scipy:

    python -m tests.weights.formats.jax_home

`vision_transformer` numbers the parts of a block all together (as its released files do), puts the class token
before the patches and adds positions to both; `big_vision` numbers each kind alone and adds positions first.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import scipy.ndimage

from tests.weights.formats.filled import GOLDEN, filled, pixels

WIDTH, DEPTH, HEADS, HIDDEN, CLASSES = 32, 2, 4, 48, 5


class Mlp(nn.Module):
    @nn.compact
    def __call__(self, x):
        inner = nn.gelu(nn.Dense(HIDDEN, name="Dense_0")(x))
        return nn.Dense(x.shape[-1], name="Dense_1")(inner)


class Block(nn.Module):
    numbers: tuple[int, int, int]

    @nn.compact
    def __call__(self, x, _=None):
        attention, norm, mlp = self.numbers
        y = nn.LayerNorm(name="LayerNorm_0")(x)
        x = x + nn.MultiHeadDotProductAttention(HEADS, name=f"MultiHeadDotProductAttention_{attention}")(y, y)
        y = nn.LayerNorm(name=f"LayerNorm_{norm}")(x)
        return x + Mlp(name=f"MlpBlock_{mlp}")(y), None


class Positions(nn.Module):
    @nn.compact
    def __call__(self, x):
        return x + self.param("pos_embedding", nn.initializers.zeros, (1, *x.shape[1:]))


class Encoder(nn.Module):
    numbers: tuple[int, int, int]
    positions: bool = False
    scan: bool = False

    @nn.compact
    def __call__(self, x):
        if self.positions:
            x = Positions(name="posembed_input")(x)
        if self.scan:
            stack = nn.scan(Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=DEPTH)
            x, _ = stack(self.numbers, name="encoderblock")(x, None)
        for i in range(0 if self.scan else DEPTH):
            x, _ = Block(self.numbers, name=f"encoderblock_{i}")(x)
        return nn.LayerNorm(name="encoder_norm")(x)


class StdConv(nn.Module):
    features: int
    size: int
    stride: int = 1

    @nn.compact
    def __call__(self, x):
        w = self.param("kernel", nn.initializers.normal(), (self.size, self.size, x.shape[-1], self.features))
        w = w - w.mean((0, 1, 2))
        w = w / (w.std((0, 1, 2)) + 1e-5)
        stride = (self.stride, self.stride)
        return jax.lax.conv_general_dilated(x, w, stride, "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


class Unit(nn.Module):
    features: int
    stride: int

    @nn.compact
    def __call__(self, x):
        shortcut = x
        if self.stride != 1 or x.shape[-1] != 4 * self.features:
            shortcut = nn.GroupNorm(name="gn_proj")(StdConv(4 * self.features, 1, self.stride, name="conv_proj")(x))
        x = nn.relu(nn.GroupNorm(name="gn1")(StdConv(self.features, 1, name="conv1")(x)))
        x = nn.relu(nn.GroupNorm(name="gn2")(StdConv(self.features, 3, self.stride, name="conv2")(x)))
        return nn.relu(shortcut + nn.GroupNorm(name="gn3")(StdConv(4 * self.features, 1, name="conv3")(x)))


class Stage(nn.Module):
    features: int
    units: int
    stride: int

    @nn.compact
    def __call__(self, x):
        for i in range(self.units):
            x = Unit(self.features, self.stride if i == 0 else 1, name=f"unit{i + 1}")(x)
        return x


class Original(nn.Module):
    """`vision_transformer`, with a ResNet of `layers` before it if there are any, or of its root alone for ()."""

    patch: int = 8
    token: bool = True
    hidden: int = 0
    layers: tuple[int, ...] | None = None

    @nn.compact
    def __call__(self, x):
        if self.layers is not None:
            x = nn.relu(nn.GroupNorm(name="gn_root")(StdConv(64, 7, 2, name="conv_root")(x)))
            x = nn.max_pool(x, (3, 3), (2, 2), "SAME")
            for i, units in enumerate(self.layers):
                x = Stage(64 * 2**i, units, 1 if i == 0 else 2, name=f"block{i + 1}")(x)
        x = nn.Conv(WIDTH, (self.patch,) * 2, (self.patch,) * 2, "VALID", name="embedding")(x)
        x = x.reshape(x.shape[0], -1, WIDTH)
        if self.token:
            token = self.param("cls", nn.initializers.zeros, (1, 1, WIDTH))
            x = jnp.concatenate([jnp.tile(token, (len(x), 1, 1)), x], axis=1)
        x = Encoder((1, 2, 3), positions=True, name="Transformer")(x)
        x = x[:, 0] if self.token else x.mean(axis=1)
        if self.hidden:
            x = jnp.tanh(nn.Dense(self.hidden, name="pre_logits")(x))
        return nn.Dense(CLASSES, name="head")(x)


class MapHead(nn.Module):
    @nn.compact
    def __call__(self, x):
        probe = self.param("probe", nn.initializers.zeros, (1, 1, WIDTH))
        x = nn.MultiHeadDotProductAttention(HEADS, name="MultiHeadDotProductAttention_0")(
            jnp.tile(probe, (len(x), 1, 1)), x
        )
        return (x + Mlp(name="MlpBlock_0")(nn.LayerNorm(name="LayerNorm_0")(x)))[:, 0]


def sincos(h: int, w: int) -> jnp.ndarray:
    y, x = np.mgrid[:h, :w]
    omega = 1.0 / 10_000 ** (np.arange(WIDTH // 4) / (WIDTH // 4 - 1))
    x, y = x.reshape(-1, 1) * omega, y.reshape(-1, 1) * omega
    return jnp.asarray(np.concatenate([np.sin(x), np.cos(x), np.sin(y), np.cos(y)], axis=1), jnp.float32)[None]


class Plain(nn.Module):
    """`big_vision`."""

    patch: int = 8
    pool: str = "gap"
    hidden: int = 0
    table: bool = True
    scan: bool = False

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(WIDTH, (self.patch,) * 2, (self.patch,) * 2, "VALID", name="embedding")(x)
        n, h, w, _ = x.shape
        x = x.reshape(n, h * w, WIDTH)
        x = x + (self.param("pos_embedding", nn.initializers.zeros, (1, h * w, WIDTH)) if self.table else sincos(h, w))
        if self.pool == "tok":
            token = self.param("cls", nn.initializers.zeros, (1, 1, WIDTH))
            x = jnp.concatenate([jnp.tile(token, (n, 1, 1)), x], axis=1)
        x = Encoder((0, 1, 0), scan=self.scan, name="Transformer")(x)
        if self.pool == "map":
            x = MapHead(name="MAPHead_0")(x)
        if self.pool != "map":
            x = x[:, 0] if self.pool == "tok" else x.mean(axis=1)
        if self.hidden:
            x = jnp.tanh(nn.Dense(self.hidden, name="pre_logits")(x))
        return nn.Dense(CLASSES, name="head")(x)


@dataclass(frozen=True)
class Case:
    """A model and the sizes it is asked at; the first is its own."""

    model: nn.Module
    sizes: tuple[tuple[int, int], ...] = ((32, 32), (48, 48), (24, 24))
    options: dict[str, Any] = field(default_factory=dict)


CASES = {
    "token": Case(Original()),
    "gap": Case(Original(token=False)),
    "pre_logits": Case(Original(hidden=24)),
    "hybrid": Case(Original(patch=1, layers=(1, 2)), ((32, 32), (40, 40))),
    "root": Case(Original(patch=2, layers=()), ((32, 32), (40, 40))),
    "bv_gap": Case(Plain()),
    "bv_tok": Case(Plain(pool="tok")),
    "bv_map": Case(Plain(pool="map")),
    "bv_rep": Case(Plain(hidden=24)),
    "bv_scan": Case(Plain(scan=True)),
    "bv_sincos": Case(Plain(table=False), ((32, 32), (24, 40))),
}


def zoom(name: str, array: np.ndarray, old: tuple[int, int], new: tuple[int, int]) -> np.ndarray:
    """A position table at another size, as both code bases resize it; anything else as it is."""
    if not name.endswith("pos_embedding") or old == new:
        return array
    rows = round(array.shape[1] ** 0.5)
    first = array.shape[1] - rows * rows
    grid = array[0, first:].reshape(rows, rows, -1)
    grid = scipy.ndimage.zoom(grid, (new[0] / old[0], new[1] / old[1], 1), order=1)
    return np.concatenate([array[:, :first], grid.reshape(1, -1, grid.shape[-1])], axis=1)


def record(case: Case) -> dict[str, Any]:
    """Names, shapes and logits of one case."""
    first = case.sizes[0]
    picture = jnp.zeros((1, *first, 3))
    variables = jax.eval_shape(case.model.init, jax.random.PRNGKey(0), picture)
    flat = flax.traverse_util.flatten_dict(variables["params"], sep="/")
    shapes = {name: list(value.shape) for name, value in sorted(flat.items())}
    weights, logits = filled(shapes), {}
    for height, width in case.sizes:
        here = {name: zoom(name, array, first, (height, width)) for name, array in weights.items()}
        params = flax.traverse_util.unflatten_dict(here, sep="/")
        x = jnp.asarray(pixels(height, width).transpose(0, 2, 3, 1))
        found = np.asarray(case.model.apply({"params": params}, x))
        logits[f"{height}x{width}"] = [[float(f"{value:.9g}") for value in row] for row in found]
    return {"shapes": shapes, "logits": logits}


def main() -> None:
    """Record all cases, one line a shape and one a picture's logits, so that a change shows in a diff."""
    made = {name: record(case) for name, case in CASES.items()}
    words = {
        "command": "python -m tests.weights.formats.jax_home",
        "versions": {"jax": jax.__version__, "flax": flax.__version__},
        "cases": made,
    }
    text = re.sub(
        r"\[\s+([^\[\]]*?)\s+\]", lambda found: f"[{' '.join(found[1].split())}]", json.dumps(words, indent=1)
    )
    GOLDEN.write_text(text + "\n")


if __name__ == "__main__":
    main()
