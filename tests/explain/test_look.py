from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tests.models.toys import pictures, toy
from vitrine.explain.attention import maps
from vitrine.explain.look import look
from vitrine.explain.rollout import picture_map, rollout

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
