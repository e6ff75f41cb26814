from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tests.models.toys import pictures, randomise, toy, toy_config
from vitrine.config.architecture import ResNetConfig
from vitrine.config.models import STEM
from vitrine.explain.attention import maps
from vitrine.explain.cam import class_map
from vitrine.explain.look import look
from vitrine.explain.rollout import picture_map, rollout
from vitrine.models.networks import network
from vitrine.models.resnet import ResNet

POOLED: list[dict[str, Any]] = [
    {},
    {"global_pool": "norm_then_avg"},
    {"global_pool": "avg_then_norm", "class_token": False},
]


@pytest.mark.parametrize("options", POOLED)
def test_is_rollout_through_all_layers_and_the_heads_of_the_last(options: dict[str, Any]) -> None:
    model, images = toy(**options), pictures(2, 3, 24, 40)
    seen = look(model, images)
    assert seen.rollout.shape == (2, 3, 5)
    assert seen.heads.shape == (2, 3, 3, 5)
    np.testing.assert_allclose(seen.rollout.sum((1, 2)), 1, atol=1e-6)
    np.testing.assert_allclose(seen.heads.sum((2, 3)), 1, atol=1e-6)
    weights, prefix = maps(model, images), model.num_prefix_tokens
    joint = rollout([weights[0], weights[1]])
    expected = picture_map(joint, (3, 5), prefix, pooled=bool(options))
    np.testing.assert_array_equal(seen.rollout, expected.numpy())
    np.testing.assert_array_equal(seen.heads, picture_map(weights[1], (3, 5), prefix, bool(options)).numpy())


@pytest.mark.parametrize("options", POOLED)
def test_without_positions_permuting_the_patches_permutes_the_maps(options: dict[str, Any]) -> None:
    model = toy(pos_embed="none", **options).double()
    images = pictures(1, 3, 32, 32, dtype=torch.float64)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(3))
    patches = images.reshape(1, 3, 4, 8, 4, 8).permute(0, 2, 4, 1, 3, 5).reshape(1, 16, 3, 8, 8)[:, order]
    mixed = patches.reshape(1, 4, 4, 3, 8, 8).permute(0, 3, 1, 4, 2, 5).reshape(1, 3, 32, 32)
    plain, permuted = look(model, images), look(model, mixed)
    assert np.ptp(plain.rollout) > 1e-3
    np.testing.assert_allclose(permuted.rollout.reshape(16), plain.rollout.reshape(16)[order], atol=1e-13)
    np.testing.assert_allclose(permuted.heads.reshape(3, 16), plain.heads.reshape(3, 16)[:, order], atol=1e-13)


def test_a_batch_is_its_pictures_one_by_one() -> None:
    model, images = toy().double(), pictures(3, 3, 32, 32, dtype=torch.float64)
    together = look(model, images)
    for i in range(3):
        alone = look(model, images[i : i + 1])
        np.testing.assert_allclose(alone.rollout[0], together.rollout[i], atol=1e-13)
        np.testing.assert_allclose(alone.heads[0], together.heads[i], atol=1e-13)


def test_a_hybrid_is_looked_into_on_the_grid_of_its_map() -> None:
    model = toy(family="hybrid", resnet=ResNetConfig(layers=(1,), **STEM), patch_size=2)
    seen = look(model, pictures(2, 3, 24, 40))
    assert (seen.method, seen.rollout.shape, seen.heads.shape) == ("rollout", (2, 3, 5), (2, 3, 3, 5))
    np.testing.assert_allclose(seen.rollout.sum((1, 2)), 1, atol=1e-6)
    assert np.ptp(seen.rollout) > 1e-4


def test_a_resnet_has_a_class_map_and_no_heads() -> None:
    model = network(toy_config(family="resnet", resnet=ResNetConfig(layers=(1, 1))))
    assert isinstance(model, ResNet)
    model, images = randomise(model).eval(), pictures(2, 3, 24, 40)
    seen = look(model, images)
    assert (seen.method, seen.rollout.shape, seen.heads.shape) == ("class_map", (2, 3, 5), (2, 0, 3, 5))
    np.testing.assert_array_equal(seen.rollout, class_map(model, images).cells.numpy())
    other = look(model, images, target=1)
    np.testing.assert_allclose(other.rollout.sum((1, 2)), model(images)[:, 1].detach().numpy(), atol=1e-5)


def test_attention_pooling_is_read_from_its_own_query() -> None:
    model, images = toy(global_pool="map", reg_tokens=2).double(), pictures(2, 3, 24, 40, dtype=torch.float64)
    assert model.attn_pool is not None
    seen, tokens = look(model, images), model.forward_features(images)[:, model.num_prefix_tokens :]
    _, _, v = model.attn_pool.heads(tokens)
    heads = torch.from_numpy(seen.heads).flatten(2)
    mixed = model.attn_pool.proj((heads[:, :, None] @ v)[:, :, 0].flatten(1))  # the maps shown, times v
    pooled = mixed + model.attn_pool.mlp["fc2"](
        model.attn_pool.act(model.attn_pool.mlp["fc1"](model.attn_pool.norm(mixed)))
    )
    torch.testing.assert_close(pooled, model.pooled(model.forward_features(images)), atol=1e-12, rtol=0)
    np.testing.assert_allclose(seen.rollout.sum((1, 2)), 1, atol=1e-12)
    through = rollout(list(maps(model, images).values()))[:, model.num_prefix_tokens :, model.num_prefix_tokens :]
    row = (heads.mean(1)[:, None] @ through)[:, 0]
    np.testing.assert_allclose(seen.rollout.reshape(2, -1), row / row.sum(1, keepdim=True), atol=1e-12)
