"""Rotary positions against DINOv3's figures, and what they promise: products depend on differences alone."""

from __future__ import annotations

import math

import pytest
import torch

from tests.models.toys import pictures, toy, toy_config
from vitrine.models.rotary import Turn, rotate, turn

CONFIG = toy_config(pos_embed="rope2d", pos_at="layers")  # heads of 16


def turns(grid: tuple[int, int], dtype: torch.dtype = torch.float64) -> Turn:
    found = turn(CONFIG, grid, torch.zeros(1, dtype=dtype))
    assert found is not None
    return found


@pytest.mark.parametrize("grid", [(4, 4), (2, 7), (1, 1)])
def test_the_angles_patch_by_patch(grid: tuple[int, int]) -> None:
    cosine, sine = turns(grid)
    for row in range(grid[0]):
        for column in range(grid[1]):
            y, x = 2 * (row + 0.5) / grid[0] - 1, 2 * (column + 0.5) / grid[1] - 1
            angles = [2 * math.pi * side / 100 ** (m / 4) for side in (y, x) for m in range(4)] * 2
            patch = row * grid[1] + column
            torch.testing.assert_close(
                cosine[patch], torch.tensor(angles, dtype=torch.float64).cos(), rtol=0, atol=1e-12
            )
            torch.testing.assert_close(sine[patch], torch.tensor(angles, dtype=torch.float64).sin(), rtol=0, atol=1e-12)


def test_angles_are_float32_at_least() -> None:
    for dtype, made in (
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ):
        assert [part.dtype for part in turns((2, 2), dtype)] == [made, made]
        assert rotate(pictures(1, 3, 5, 16, dtype=dtype), turns((2, 2), dtype)).dtype == dtype
    assert turn(toy_config(), (2, 2), torch.zeros(1)) is None


def test_patches_keep_their_length_and_prefix_tokens_stay() -> None:
    x = pictures(2, 3, 2 + 12, 16, dtype=torch.float64)
    turned = rotate(x, turns((3, 4)))
    assert torch.equal(turned[:, :, :2], x[:, :, :2])
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1), rtol=0, atol=1e-12)
    assert (turned[:, :, 2:] - x[:, :, 2:]).abs().amin((0, 1, 3)).max() > 0
    assert ((turned - x)[:, :, 2:].abs().amax((0, 1, 3)) > 0.1).all()


def test_a_product_depends_on_the_difference_of_places_alone() -> None:
    q, k = (pictures(1, 1, 1, 16, seed=seed, dtype=torch.float64).expand(1, 1, 20, 16) for seed in (0, 1))
    products = (rotate(q, turns((4, 5))) @ rotate(k, turns((4, 5))).mT)[0, 0].unflatten(0, (4, 5)).unflatten(2, (4, 5))
    torch.testing.assert_close(products[0, 0, 1, 1], products[2, 3, 3, 4], rtol=0, atol=1e-12)
    torch.testing.assert_close(products[3, 0, 1, 2], products[2, 2, 0, 4], rtol=0, atol=1e-12)
    assert (products[0, 0, 1, 1] - products[0, 0, 1, 2]).abs() > 1e-3


def test_theta_is_the_base_of_the_periods() -> None:
    images, options = pictures(1, 3, 32, 32), {"pos_embed": "rope2d", "pos_at": "layers"}
    assert (toy(**options)(images) - toy(rope_theta=10_000.0, **options)(images)).abs().max() > 1e-4


def test_there_is_nothing_to_store() -> None:
    rotary, plain = toy(pos_embed="rope2d", pos_at="layers"), toy(pos_embed="none")
    assert list(rotary.state_dict()) == list(plain.state_dict())
    assert list(rotary.buffers()) == []
