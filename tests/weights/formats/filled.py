"""Numbers for a file of given names and shapes, the same on every machine and for ever, and what JAX made of them.

Nothing here needs torch or JAX. The weights are not stored: each is a hash of its name and place, exact in float32.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from functools import cache
from math import prod, sqrt
from pathlib import Path
from typing import Any

import numpy as np

GOLDEN = Path(__file__).parents[2] / "golden" / "google.json"
MASK = (1 << 64) - 1


def numbers(name: str, shape: Sequence[int]) -> np.ndarray:
    """Even random numbers in [-1, 1), multiples of 2**-23: splitmix64 of the place, begun from the name's checksum."""
    start = (zlib.crc32(name.encode()) * 0xBF58476D1CE4E5B9) & MASK
    z = np.arange(1, prod(shape) + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(start)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = (z ^ (z >> np.uint64(31))) >> np.uint64(40)
    return (z.astype(np.float64) / 2**23 - 1).astype(np.float32).reshape(shape)


def filled(shapes: Mapping[str, Sequence[int]]) -> dict[str, np.ndarray]:
    """Weights of these names and shapes, none of them neutral, so scaled that every one shows in the logits."""
    made = {}
    for name, shape in shapes.items():
        last = name.split("/")[-1]
        shift = 1.0 if last == "scale" else 0.003 if _standardised(name) else 0.0
        made[name] = (numbers(name, shape) * np.float32(_scale(name, shape)) + np.float32(shift)).astype(np.float32)
    return made


def _standardised(name: str) -> bool:
    return "conv" in name and name.endswith("/kernel")


def _scale(name: str, shape: Sequence[int]) -> float:
    """The largest number: of kernels such that outputs are about as large as inputs, and attention is not even."""
    last, layer = name.split("/")[-1], (name.split("/")[-2] if "/" in name else "")
    if _standardised(name):
        return 0.005  # so small that the 1e-5 beside the deviation shows
    if last != "kernel":
        return {"scale": 0.3, "bias": 0.2, "pos_embedding": 0.7}.get(last, 1.0)
    if layer in ("query", "key", "value"):
        return sqrt(3 / shape[-3]) * (1 if layer == "value" else 2)
    inputs = prod(shape[-3:-1]) if layer == "out" else prod(shape[:3]) if len(shape) == 4 else shape[-2]
    return sqrt(3 / inputs)


def pixels(height: int, width: int) -> np.ndarray:
    """Two pictures (2, 3, height, width) in [-1, 1)."""
    return numbers(f"{height}x{width}", (2, 3, height, width))


@cache
def recorded() -> dict[str, Any]:
    """By case: `shapes` by name as flax lays them out, `logits` by "HxW" as JAX computes them for `pixels`."""
    return json.loads(GOLDEN.read_text())["cases"]
