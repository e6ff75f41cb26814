"""What a picture's logits depend on, and what they must not; and what a model refuses."""

from __future__ import annotations

import re

import pytest
import torch

from tests.models.toys import pictures, toy
from vitrine.errors import UsageError

CLOSE = {"rtol": 0, "atol": 1e-10}


@pytest.mark.parametrize("sides", [(32, 64), (64, 32), (8, 8), (24, 40)])
@pytest.mark.parametrize("kind", ["learn", "sincos2d", "none"])
def test_any_height_and_width_that_fits(sides: tuple[int, int], kind: str) -> None:
    model, images = toy(pos_embed=kind), pictures(2, 3, *sides)
    assert model.forward_features(images).shape == (2, 1 + sides[0] * sides[1] // 64, 48)
    assert model(images).shape == (2, 5)
    assert model(images).isfinite().all()


def test_height_is_not_width() -> None:
    model, images = toy(), pictures(1, 3, 32, 64)
    assert (model(images) - model(images.transpose(2, 3))).abs().max() > 1e-3


@pytest.mark.parametrize(("sides", "fit"), [((33, 32), "32x32"), ((32, 30), "32x32"), ((3, 8), "8x8"), ((0, 8), "8x8")])
def test_sides_that_do_not_fit_are_refused(sides: tuple[int, int], fit: str) -> None:
    with pytest.raises(UsageError, match=f"{sides[0]}x{sides[1]} .*patches of 8.*resize them to {fit}"):
        toy()(torch.zeros(1, 3, *sides))


@pytest.mark.parametrize(("has", "takes"), [(1, 3), (4, 3), (3, 1)])
def test_wrong_channels_are_refused(has: int, takes: int) -> None:
    with pytest.raises(UsageError, match=f"have {has} channels, the model takes {takes}"):
        toy(in_chans=takes)(torch.zeros(1, has, 32, 32))


def test_an_empty_batch_gives_no_logits() -> None:
    assert toy()(torch.zeros(0, 3, 32, 32)).shape == (0, 5)


def permuted_patches(images: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """The pictures with their 8x8 patches in another order."""
    B, C, H, W = images.shape
    patches = images.reshape(B, C, H // 8, 8, W // 8, 8).permute(0, 2, 4, 1, 3, 5).flatten(1, 2)[:, order]
    return patches.unflatten(1, (H // 8, W // 8)).permute(0, 3, 1, 4, 2, 5).reshape(B, C, H, W)


def test_without_positions_permuting_patches_permutes_tokens() -> None:
    model, images = toy(pos_embed="none").double(), pictures(2, 3, 32, 32, dtype=torch.float64)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    shuffled = permuted_patches(images, order)
    tokens, moved = model.forward_features(images), model.forward_features(shuffled)
    torch.testing.assert_close(moved[:, 1:], tokens[:, 1:][:, order], **CLOSE)
    torch.testing.assert_close(model(shuffled), model(images), **CLOSE)


@pytest.mark.parametrize("kind", ["learn", "sincos2d"])
def test_with_positions_the_order_of_the_patches_matters(kind: str) -> None:
    model, images = toy(pos_embed=kind), pictures(2, 3, 32, 32)
    shuffled = permuted_patches(images, torch.arange(16).flip(0))
    assert (model(shuffled) - model(images)).abs().max() > 1e-3


@pytest.mark.parametrize("pooling", ["token", "norm_then_avg", "avg_then_norm"])
def test_a_batch_equals_its_pictures_one_by_one(pooling: str) -> None:
    model, images = toy(global_pool=pooling).double(), pictures(5, 3, 32, 32, dtype=torch.float64)
    alone = torch.cat([model(image[None]) for image in images])
    torch.testing.assert_close(model(images), alone, **CLOSE)
    assert (alone[0] - alone[1]).abs().max() > 1e-3


def test_eval_mode_is_deterministic() -> None:
    model, images = toy(drop_rate=0.5, drop_path_rate=0.5), pictures(4, 3, 32, 32)
    assert torch.equal(model(images), model(images))
    model.train()
    assert not torch.equal(model(images), model(images))


@pytest.mark.parametrize("key", ["pos_embed", "blocks.1.attn.qkv.weight", "head.bias", "cls_token"])
def test_loading_names_what_is_missing_unknown_or_of_another_shape(key: str) -> None:
    model = toy()
    state = model.state_dict()
    dropped = {name: value for name, value in state.items() if name != key}
    with pytest.raises(RuntimeError, match=rf'Missing key.*"{re.escape(key)}"'):
        model.load_state_dict(dropped, strict=True)
    with pytest.raises(RuntimeError, match=r'Unexpected key.*"stranger"'):
        model.load_state_dict({**state, "stranger": torch.zeros(1)}, strict=True)
    with pytest.raises(RuntimeError, match=f"size mismatch for {re.escape(key)}"):
        model.load_state_dict({**state, key: torch.zeros(*state[key].shape, 2)}, strict=True)


def test_the_names_of_the_parameters() -> None:
    assert list(toy(depth=1, representation_size=9).state_dict()) == [
        "cls_token", "pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias",
        "blocks.0.norm1.weight", "blocks.0.norm1.bias", "blocks.0.attn.qkv.weight", "blocks.0.attn.qkv.bias",
        "blocks.0.attn.proj.weight", "blocks.0.attn.proj.bias", "blocks.0.norm2.weight", "blocks.0.norm2.bias",
        "blocks.0.mlp.fc1.weight", "blocks.0.mlp.fc1.bias", "blocks.0.mlp.fc2.weight", "blocks.0.mlp.fc2.bias",
        "norm.weight", "norm.bias", "pre_logits.fc.weight", "pre_logits.fc.bias", "head.weight", "head.bias",
    ]  # fmt: skip
