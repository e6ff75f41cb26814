"""Numbered lists of arrays as libaohang/ViT-NumPy saves them, against a literal forward pass."""

from __future__ import annotations

from dataclasses import replace
from math import pi, sqrt

import numpy as np
import pytest
import torch

from tests.models.toys import pictures
from tests.weights.formats.readings import gap, model_of, raw
from vitrine.weights.foreign import Raw
from vitrine.weights.formats.numpy_list import CIFAR_MEAN, FORMAT

CLOSE = 2e-5
D, P, GRID, HIDDEN, CLASSES, HEADS, DEPTH = 12, 4, 3, 20, 5, 3, 2
d = D // HEADS


def file(channels: int, *, last_norm: bool) -> Raw:
    """Random arrays in the author's order."""
    shapes: list[tuple[int, ...]] = [(P * P * channels, D), (1, 1, D), (1, GRID**2 + 1, D)]
    for _ in range(DEPTH):
        shapes += [(D,), (D,), *((d, D), (1, d)) * (3 * HEADS), (D, D), (1, D)]
        shapes += [(D,), (D,), (HIDDEN, D), (1, HIDDEN), (D, HIDDEN), (1, D)]
    shapes += [*((D,), (D,)) * last_norm, (CLASSES, D), (1, CLASSES)]
    generator = torch.Generator().manual_seed(0)
    found = {f"arr_{i}": 0.4 * torch.randn(shape, generator=generator) for i, shape in enumerate(shapes)}
    return raw(found, "npz")


def literal(file: Raw, images: np.ndarray, *, last_norm: bool) -> np.ndarray:
    """The model written out in numpy, taking one array after another."""
    arrays = iter(file.tensors[f"arr_{i}"].double().numpy() for i in range(len(file.tensors)))

    def norm(x: np.ndarray) -> np.ndarray:
        scale, shift = next(arrays), next(arrays)
        return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * scale + shift

    def linear(x: np.ndarray) -> np.ndarray:
        weight, bias = next(arrays), next(arrays)
        return x @ weight.T + bias

    def act(x: np.ndarray) -> np.ndarray:
        return 0.5 * x * (1 + np.tanh(sqrt(2 / pi) * (x + 0.044715 * x**3))) if last_norm else np.maximum(x, 0)

    B = len(images)
    tiles = images.transpose(0, 2, 3, 1).reshape(B, GRID, P, GRID, P, -1).transpose(0, 1, 3, 2, 4, 5)
    x = tiles.reshape(B, GRID * GRID, -1) @ next(arrays)
    x = np.concatenate([np.repeat(next(arrays), B, 0), x], axis=1) + next(arrays)
    for _ in range(DEPTH):
        y, mixed = norm(x), []
        for _ in range(HEADS):
            q, k, v = linear(y), linear(y), linear(y)
            scores = q @ k.transpose(0, 2, 1) / sqrt(d)
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            mixed.append(weights / weights.sum(-1, keepdims=True) @ v)
        x = x + linear(np.concatenate(mixed, -1))
        x = x + linear(act(linear(norm(x))))
    if last_norm:
        x = norm(x)
    return linear(x[:, 0])


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("last_norm", [True, False])
@torch.no_grad()
def test_a_list_equals_the_literal_forward_pass(channels: int, last_norm: bool) -> None:
    found = file(channels, last_norm=last_norm)
    assert FORMAT.fits(found)
    reading = FORMAT.read(found)
    assert set(reading.used) == set(found.tensors)
    assert set(reading.fresh) == {"patch_embed.proj.bias"}
    images = pictures(3, channels, GRID * P, GRID * P)
    wanted = torch.from_numpy(literal(found, images.double().numpy(), last_norm=last_norm)).float()
    assert gap(model_of(reading)(images), wanted) <= CLOSE
    assert (reading.model.num_heads, reading.model.depth, reading.model.final_norm) == (HEADS, DEPTH, last_norm)
    assert reading.preprocess.mean == ((0.0,) if channels == 1 else CIFAR_MEAN)


@torch.no_grad()
def test_mistake_10_epsilon_is_1e_5() -> None:
    found = file(3, last_norm=True)
    for name in ("arr_0", "arr_1", "arr_2"):  # tokens so small that the epsilon shows
        found.tensors[name].mul_(1e-3)
    images = pictures(3, 3, GRID * P, GRID * P)
    right = torch.from_numpy(literal(found, images.double().numpy(), last_norm=True)).float()
    assert gap(model_of(FORMAT.read(found))(images), right) <= CLOSE
    assert gap(model_of(FORMAT.read(replace(found, given={"norm_eps": 1e-6})))(images), right) > 1e-3


def test_the_activation_is_said_and_can_be_given() -> None:
    found = file(3, last_norm=True)
    assert any("--model.act-layer" in sentence for sentence in FORMAT.read(found).said)
    assert FORMAT.read(replace(found, given={"act_layer": "gelu"})).model.act_layer == "gelu"


def test_lists_of_other_arrays_are_none() -> None:
    found = dict(file(3, last_norm=True).tensors)
    for change in ({"arr_20": torch.ones(3, 3)}, {"extra": torch.ones(1)}, {"arr_0": torch.ones(50, D)}):
        assert not FORMAT.fits(raw({**found, **change}, "npz"))
    assert not FORMAT.fits(raw(dict(list(found.items())[:-1]), "npz"))
    assert not FORMAT.fits(raw({}, "npz"))
    assert not FORMAT.fits(raw({"arr_0": torch.ones(2, 2)}, "npz"))
