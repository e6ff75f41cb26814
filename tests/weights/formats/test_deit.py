"""DeiT's `.pth` files: made with its keys, against its forward pass written out, and timm's models of the family."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.models.toys import SIZE, pictures
from tests.parity.peers import timm
from tests.weights.formats import home
from tests.weights.formats.readings import gap, model_of, raw
from vitrine.errors import UsageError
from vitrine.weights.foreign import IMAGENET_MEAN, IMAGENET_STD
from vitrine.weights.formats import timm as timm_format
from vitrine.weights.formats.deit import fits, read

CLOSE = 2e-5
GIVEN = {"num_heads": 3}


def state_of(kind: str) -> dict[str, Tensor]:
    """A toy file of DeiT: `plain`, `distilled` or `third`."""
    rows = {"plain": 17, "distilled": 18, "third": 16}[kind]
    shapes = {**home.vit_shapes(rows=rows), "head.weight": (5, 48), "head.bias": (5,)}
    if kind == "distilled":
        shapes |= {"dist_token": (1, 1, 48), "head_dist.weight": (5, 48), "head_dist.bias": (5,)}
    if kind == "third":
        shapes |= {f"blocks.{i}.gamma_{j}": (48,) for i in range(2) for j in (1, 2)}
    return home.fill(shapes)


def deit(state: dict[str, Tensor], images: Tensor) -> Tensor:
    """models.py and models_v2.py of facebookresearch/deit, in evaluation mode."""
    x = home.cut(state, "patch_embed.proj", images)
    grid = images.shape[2] // 8, images.shape[3] // 8
    tokens = [state[name].expand(len(x), -1, -1) for name in ("cls_token", "dist_token") if name in state]
    third = "blocks.0.gamma_1" in state
    if third:
        x = torch.cat([*tokens, x + home.resized(state["pos_embed"], 0, grid)], dim=1)
    else:
        x = torch.cat([*tokens, x], dim=1) + home.resized(state["pos_embed"], len(tokens), grid)
    for i in range(2):
        at = f"blocks.{i}."
        q, k, v = home.linear(state, f"{at}attn.qkv", home.norm(state, f"{at}norm1", x, 1e-6)).chunk(3, dim=-1)
        y = home.linear(state, f"{at}attn.proj", home.heads(q, k, v, 3))
        x = x + (state[f"{at}gamma_1"] * y if third else y)
        y = home.gelu(home.linear(state, f"{at}mlp.fc1", home.norm(state, f"{at}norm2", x, 1e-6)))
        y = home.linear(state, f"{at}mlp.fc2", y)
        x = x + (state[f"{at}gamma_2"] * y if third else y)
    x = home.norm(state, "norm", x, 1e-6)
    logits = home.linear(state, "head", x[:, 0])
    return (logits + home.linear(state, "head_dist", x[:, 1])) / 2 if "dist_token" in state else logits


@pytest.mark.parametrize("kind", ["plain", "distilled", "third"])
def test_logits_are_deits(kind: str) -> None:
    state = state_of(kind)
    source = raw(state, "torch", wrapper="model", given=GIVEN)
    assert fits(source)
    model = model_of(read(source))
    for height, width in ((32, 32), (48, 48), (24, 24), (40, 24)):
        images = pictures(2, 3, height, width)
        with torch.no_grad():
            assert gap(model(images), deit(state, images)) <= CLOSE


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("plain", "deit_tiny_patch16_224"),
        ("distilled", "deit_tiny_distilled_patch16_224"),
        ("third", "deit3_small_patch16_224"),
    ],
)
def test_timms_model_of_the_family_agrees(kind: str, name: str, tmp_path: Any) -> None:
    state = state_of(kind)
    torch.save({"model": state}, tmp_path / "file.pth")
    overlay = {"file": str(tmp_path / "file.pth"), "num_classes": 5}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peer = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **SIZE)
    images = pictures(2, 3, 32, 32)
    with torch.no_grad():
        assert gap(model_of(read(raw(state, given=GIVEN)))(images), peer.eval()(images)) <= CLOSE


def test_mistake_04_deit_iii_places_patches_before_the_class_token_is_set() -> None:
    reading = read(raw(state_of("third"), given=GIVEN))
    assert reading.model.no_embed_class
    assert not read(raw(state_of("plain"), given=GIVEN)).model.no_embed_class
    assert reading.tensors["pos_embed"].shape[1] == 16


@pytest.mark.parametrize("kind", ["plain", "distilled", "third"])
def test_mistake_10_epsilon_is_1e_6(kind: str) -> None:
    state = home.faint(state_of(kind), "_token", "pos_embed", "patch_embed")
    images = pictures(2, 3, 32, 32)
    with torch.no_grad():
        right = deit(state, images)
        assert gap(model_of(read(raw(state, given=GIVEN)))(images), right) <= CLOSE
        assert gap(model_of(read(raw(state, given={**GIVEN, "norm_eps": 1e-5})))(images), right) > 1e-3


def test_mistake_11_and_12_imagenets_constants_and_deits_crop() -> None:
    for kind, crop in (("plain", 0.875), ("distilled", 0.875), ("third", 1.0)):
        preprocess = read(raw(state_of(kind), given=GIVEN)).preprocess
        assert (preprocess.mean, preprocess.std) == (IMAGENET_MEAN, IMAGENET_STD)
        assert (preprocess.resize, preprocess.crop_pct, preprocess.interpolation) == ("shorter", crop, "bicubic")


def test_mistake_15_tokens_are_class_then_distillation_and_both_heads_answer() -> None:
    state = state_of("distilled")
    images = pictures(2, 3, 32, 32)
    model = model_of(read(raw(state, given=GIVEN)))
    wrong = {**state, "cls_token": state["dist_token"], "dist_token": state["cls_token"]}
    with torch.no_grad():
        right = deit(state, images)
        assert gap(model(images), right) <= CLOSE
        assert gap(model_of(read(raw(wrong, given=GIVEN)))(images), right) > 1e-2
        assert gap(model.head(model.forward_features(images)[:, 0]), right) > 1e-2


def test_which_files_are_deits() -> None:
    plain, distilled, third = (state_of(kind) for kind in ("plain", "distilled", "third"))
    for state in (distilled, third):
        for source in (raw(state), raw(state, wrapper="model"), raw(state, "safetensors")):
            assert fits(source)
            assert not timm_format.fits(source)
    assert not fits(raw(plain))
    assert not fits(raw(distilled, config={"architecture": "deit_tiny_distilled_patch16_224"}))
    # As --format deit: read whatever `fits` says.
    assert read(raw(plain, given=GIVEN)).preprocess.mean == IMAGENET_MEAN


def test_heads_are_asked_for_at_a_width_that_is_not_published() -> None:
    with pytest.raises(UsageError, match=r"--model\.num-heads"):
        read(raw(state_of("plain")))


def test_every_tensor_is_accounted_for_under_its_own_name() -> None:
    state = state_of("third")
    reading = read(raw(state, given=GIVEN))
    assert set(reading.used) == set(state)
    assert not reading.dropped
