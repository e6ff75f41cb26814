"""The model as a backbone: maps of chosen layers, at any size, with gradients, without the head."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.models.toys import pictures, toy
from vitrine.config.architecture import ResNetConfig
from vitrine.errors import UsageError

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "no class token": {"class_token": False, "global_pool": "norm_then_avg"},
    "registers": {"reg_tokens": 3},
    "distilled": {"distilled": True},
    "rotary": {"pos_embed": "rope2d", "pos_at": "layers"},
    "relative": {"pos_embed": "rel_shaw", "pos_at": "layers_shared"},
    "no head": {"num_classes": 0},
    "hybrid": {"family": "hybrid", "patch_size": 1, "resnet": ResNetConfig(layers=(1, 1))},
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("sides", [(32, 32), (16, 40)])
@torch.no_grad()
def test_a_cell_of_a_map_is_the_token_of_its_patch(variant: str, sides: tuple[int, int]) -> None:
    model, images = toy(**VARIANTS[variant]), pictures(2, 3, *sides)
    (found,) = model.features(images)
    tokens, grid = model.forward_features(images), model.grid(images)
    assert found.shape == (2, 48, sides[0] // 8, sides[1] // 8)
    for row in range(grid[0]):
        for column in range(grid[1]):
            token = tokens[:, model.num_prefix_tokens + row * grid[1] + column]
            torch.testing.assert_close(found[:, :, row, column], token, rtol=0, atol=1e-6)


@torch.no_grad()
def test_layers_come_in_the_order_that_was_asked_for() -> None:
    model, images = toy(depth=4), pictures(1, 3, 32, 32)
    every = model.features(images, [0, 1, 2, 3], norm=False)
    for layers in ([3, 0], [-1, 1, 1], [-4], []):
        found = model.features(images, layers, norm=False)
        assert len(found) == len(layers)
        for layer, one in zip(layers, found, strict=True):
            torch.testing.assert_close(one, every[layer], rtol=0, atol=1e-6)
    x = model.embed(images)
    for block, one in zip(model.blocks, every, strict=True):
        x = block(x)
        torch.testing.assert_close(one.flatten(2).mT, x[:, 1:], rtol=0, atol=1e-6)


@torch.no_grad()
def test_norm_is_the_final_one() -> None:
    model, images = toy(), pictures(1, 3, 32, 32)
    (bare,), (normed,) = (model.features(images, [0], norm=norm) for norm in (False, True))
    torch.testing.assert_close(model.norm(bare.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), normed, rtol=0, atol=1e-6)
    assert (bare - normed).abs().max() > 0.1


@torch.no_grad()
def test_later_layers_are_not_computed() -> None:
    model, called = toy(depth=4), []
    for number, block in enumerate(model.blocks):
        block.register_forward_hook(lambda *_, number=number: called.append(number))
    model.features(pictures(1, 3, 32, 32), [1, 0])
    assert called == [0, 1]


def test_gradients_reach_the_picture_and_what_made_the_map() -> None:
    model, images = toy(depth=3), pictures(2, 3, 24, 40).requires_grad_()
    (found,) = model.features(images, [1])
    found[:, :, 1, 2].square().sum().backward()
    assert (images.grad.abs().amax((1, 2, 3)) > 0).all()
    reached = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert {"patch_embed.proj.weight", "pos_embed", "blocks.1.mlp.fc2.bias", "norm.weight"} <= reached
    assert not any(name.startswith(("blocks.2", "head")) for name in reached)


@pytest.mark.parametrize("layer", [2, -3, 99])
def test_a_layer_that_is_not_there_is_refused(layer: int) -> None:
    with pytest.raises(UsageError, match=rf"layer {layer}: the model has 2 layers, 0 to 1"):
        toy().features(pictures(1, 3, 32, 32), [0, layer])
