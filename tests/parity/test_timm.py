"""The same random weights through timm's Vision Transformer and ours, under timm's own parameter names."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.models.toys import SIZE, pictures, randomise
from tests.parity.peers import timm, timm_vit
from vitrine.config.models import named
from vitrine.config.options import ModelConfig
from vitrine.models.vit import VisionTransformer, use_attention

CLOSE = {"rtol": 0, "atol": 1e-5}

# timm's options and ours for the same network.
VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "token": ({}, {}),
    "avg": ({"global_pool": "avg"}, {"global_pool": "avg_then_norm"}),
    "avg without fc_norm": ({"global_pool": "avg", "fc_norm": False}, {"global_pool": "norm_then_avg"}),
    "no_embed_class": ({"no_embed_class": True}, {"no_embed_class": True}),
    "no class token": (
        {"class_token": False, "global_pool": "avg"},
        {"class_token": False, "global_pool": "avg_then_norm"},
    ),
    "no positions": ({"pos_embed": "none"}, {"pos_embed": "none"}),
    "no qkv bias": ({"qkv_bias": False}, {"qkv_bias": False}),
    "no head": ({"num_classes": 0}, {"num_classes": 0}),
    "grey": ({"in_chans": 1}, {"in_chans": 1}),
    "wide": ({"img_size": (16, 40)}, {"img_size": (16, 40)}),
    **{act: ({"act_layer": act}, {"act_layer": act}) for act in ("gelu_tanh", "quick_gelu", "relu")},
}


def pair(theirs: dict[str, Any], ours: dict[str, Any]) -> tuple[torch.nn.Module, VisionTransformer]:
    """timm's model with every parameter random, and ours with its weights, loaded strictly."""
    torch.manual_seed(0)
    peer = randomise(timm_vit(**{**SIZE, "dynamic_img_size": True, **theirs}))
    model = VisionTransformer(ModelConfig(**{**SIZE, **ours})).eval()
    assert list(model.state_dict()) == list(peer.state_dict())
    model.load_state_dict(peer.state_dict(), strict=True)
    return peer, model


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_logits_equal_timms(variant: str) -> None:
    peer, model = pair(*VARIANTS[variant])
    for sides in (model.config.size, (48, 48), (24, 56), (16, 16)):
        images = pictures(2, model.config.in_chans, *sides)
        theirs = peer(images)
        torch.testing.assert_close(model(images), theirs, **CLOSE)
        assert theirs.std() > 0.05
    use_attention(model, "written")
    torch.testing.assert_close(model(images), theirs, **CLOSE)


@pytest.mark.parametrize("variant", ["token", "avg", "no_embed_class"])
def test_gradients_equal_timms(variant: str) -> None:
    peer, model = pair(*VARIANTS[variant])
    for sides in ((32, 32), (24, 40)):
        for net in (peer.train(), model.train()):
            net.zero_grad()
            F.cross_entropy(net(pictures(4, 3, *sides)), torch.arange(4)).backward()
        for (name, mine), theirs in zip(model.named_parameters(), peer.parameters(), strict=True):
            torch.testing.assert_close(mine.grad, theirs.grad, **CLOSE, msg=lambda text, name=name: f"{name}: {text}")
            assert mine.grad.abs().max() > 1e-4 or not theirs.grad.any(), name


@torch.no_grad()
def test_logits_equal_timms_at_full_size() -> None:
    config = named("vit_base_patch16_224")
    torch.manual_seed(0)
    model = VisionTransformer(config).eval()
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1 or name in ("cls_token", "head.weight"):
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    peer = timm_vit(img_size=224, patch_size=16, embed_dim=768, depth=12, num_heads=12, weight_init="skip")
    peer.load_state_dict(model.state_dict(), strict=True)
    images = pictures(1, 3, 224, 224)
    logits = model(images)
    assert logits.shape == (1, 1000)
    assert logits.std() > 0.5
    torch.testing.assert_close(logits, peer(images), **CLOSE)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_base_patch32_384", "vit_large_patch14_224"])
def test_named_models_have_timms_names_and_shapes(name: str) -> None:
    with torch.device("meta"):
        model = VisionTransformer(named(name, depth=2))
        peer = timm.create_model(name, depth=2)
    theirs = {key: value.shape for key, value in peer.state_dict().items()}
    assert {key: value.shape for key, value in model.state_dict().items()} == theirs


def test_the_jax_scheme_against_timms_of_that_name() -> None:
    """Equal deviations in every layer both fill alike; q, k, v differ by the fan of the fused matrix."""
    size = {**SIZE, "embed_dim": 192}
    torch.manual_seed(0)
    model = VisionTransformer(ModelConfig(**size))
    peer = timm_vit(**size, weight_init="jax")
    theirs = dict(peer.named_parameters())
    for name, mine in model.named_parameters():
        other = theirs[name]
        ratio = math.sqrt(2) if name.endswith("qkv.weight") else 1.0
        if name == "cls_token":
            assert other.abs().max() < 1e-5
        elif not other.any():
            assert not mine.any(), name
        elif other.std() == 0:
            assert torch.equal(mine, other), name
        else:
            rel = 0.02 if mine.numel() > 10_000 else 0.2
            assert mine.std().item() == pytest.approx(ratio * other.std().item(), rel=rel), name


@pytest.mark.parametrize("name", ["patch_embed.proj.weight", "head.weight", "blocks.1.attn.qkv.weight"])
def test_timms_default_scheme(name: str) -> None:
    size = {**SIZE, "embed_dim": 192, "num_classes": 100}
    torch.manual_seed(0)
    mine = VisionTransformer(ModelConfig(**size, weight_init="timm")).get_parameter(name)
    other = timm_vit(**size).get_parameter(name)
    assert mine.std().item() == pytest.approx(other.std().item(), rel=0.02)
