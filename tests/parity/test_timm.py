"""The same random weights through timm's Vision Transformer and ours, under timm's own parameter names."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.models.toys import SIZE, pictures, randomise
from tests.parity.peers import VisionTransformerDistilled, VisionTransformerRelPos, timm, timm_vit
from vitrine.config.architecture import ModelConfig
from vitrine.config.models import named
from vitrine.models.vit import VisionTransformer, use_attention

CLOSE = {"rtol": 0, "atol": 1e-5}


def relative_vit(**options: Any) -> torch.nn.Module:
    """timm's model with a 2-D table of relative biases."""
    del options["dynamic_img_size"]
    return VisionTransformerRelPos(rel_pos_type="bias", **options)


# Its mlp_ratio counts gate and value together.
SWIGLU = {"mlp_layer": timm.layers.SwiGLUPacked, "act_layer": torch.nn.SiLU, "mlp_ratio": 4.0}

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
    "distilled": ({"peer": VisionTransformerDistilled}, {"distilled": True}),
    "LayerScale": ({"init_values": 1e-5}, {"init_values": 1e-5}),
    "registers": (
        {"reg_tokens": 3, "no_embed_class": True},
        {"reg_tokens": 3, "no_embed_class": True},
    ),
    "registers, mean": (
        {"reg_tokens": 2, "no_embed_class": True, "global_pool": "avg", "class_token": False},
        {"reg_tokens": 2, "no_embed_class": True, "global_pool": "avg_then_norm", "class_token": False},
    ),
    "qk_norm": ({"qk_norm": True}, {"qk_norm": True}),
    "swiglu": (SWIGLU, {"mlp_layer": "swiglu", "mlp_ratio": 2.0}),
    "pre_norm": ({"pre_norm": True}, {"pre_norm": True}),
    "no final norm": ({"final_norm": False}, {"final_norm": False}),
    "map": ({"global_pool": "map", "class_token": False}, {"global_pool": "map", "class_token": False}),
    "map beside prefix tokens": (
        {"global_pool": "map", "reg_tokens": 2, "no_embed_class": True},
        {"global_pool": "map", "reg_tokens": 2, "no_embed_class": True},
    ),
    "all at once": (
        {
            "init_values": 0.1,
            "qk_norm": True,
            "pre_norm": True,
            "reg_tokens": 4,
            "no_embed_class": True,
            "qkv_bias": False,
            **SWIGLU,
        },
        {
            "init_values": 0.1,
            "qk_norm": True,
            "pre_norm": True,
            "reg_tokens": 4,
            "no_embed_class": True,
            "qkv_bias": False,
            "mlp_layer": "swiglu",
            "mlp_ratio": 2.0,
        },
    ),
    **{act: ({"act_layer": act}, {"act_layer": act}) for act in ("gelu_tanh", "quick_gelu", "relu")},
}


def pair(theirs: dict[str, Any], ours: dict[str, Any]) -> tuple[torch.nn.Module, VisionTransformer]:
    """timm's model with every parameter random, and ours with its weights, loaded strictly."""
    torch.manual_seed(0)
    theirs = {**SIZE, "dynamic_img_size": True, **theirs}
    kind = theirs.pop("peer", timm_vit)
    peer = randomise(kind(**theirs).eval())
    model = VisionTransformer(ModelConfig(**{**SIZE, **ours})).eval()
    assert sorted(model.state_dict()) == sorted(peer.state_dict())
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


@pytest.mark.parametrize("variant", ["token", "avg", "no_embed_class", "map", "all at once"])
def test_gradients_equal_timms(variant: str) -> None:
    peer, model = pair(*VARIANTS[variant])
    for sides in ((32, 32), (24, 40)):
        for net in (peer.train(), model.train()):
            net.zero_grad()
            F.cross_entropy(net(pictures(4, 3, *sides)), torch.arange(4)).backward()
        peers = dict(peer.named_parameters())
        for name, mine in model.named_parameters():
            theirs = peers[name]
            torch.testing.assert_close(mine.grad, theirs.grad, **CLOSE, msg=lambda text, name=name: f"{name}: {text}")
            # A bias of all keys alike changes no weight: its gradient is zero but for rounding.
            assert mine.grad.abs().max() > 1e-4 or not theirs.grad.any() or name.endswith("k_norm.bias"), name


@pytest.mark.parametrize("variant", ["token", "registers, mean", "avg without fc_norm", "all at once"])
@pytest.mark.parametrize("norm", [False, True])
def test_features_equal_timms_intermediates_with_gradients(variant: str, norm: bool) -> None:
    theirs, ours = VARIANTS[variant]
    peer, model = pair({**theirs, "depth": 4}, {**ours, "depth": 4})
    for sides in ((32, 32), (24, 56)):
        images = pictures(2, 3, *sides).requires_grad_()
        expected = peer.forward_intermediates(images, indices=[0, 2, 3], norm=norm, intermediates_only=True)
        found = model.features(images, layers=[0, 2, 3], norm=norm)
        for one, other in zip(found, expected, strict=True):
            assert one.shape == (2, 48, sides[0] // 8, sides[1] // 8)
            torch.testing.assert_close(one, other, **CLOSE)
            (mine,) = torch.autograd.grad(one.square().sum(), images, retain_graph=True)
            (that,) = torch.autograd.grad(other.square().sum(), images, retain_graph=True)
            torch.testing.assert_close(mine, that, rtol=1e-4, atol=1e-4)
            assert mine.abs().max() > 1e-3


RELATIVE = {
    "own": ({}, {"pos_at": "layers"}),
    "shared": ({"shared_rel_pos": True}, {"pos_at": "layers_shared"}),
    "own, class token": ({"class_token": True, "global_pool": "token"}, {"pos_at": "layers", "class_token": True}),
}


@pytest.mark.parametrize("variant", RELATIVE)
@pytest.mark.parametrize("size", [(32, 32), (16, 40)])
@torch.no_grad()
def test_a_relative_bias_equals_timms(variant: str, size: tuple[int, int]) -> None:
    theirs, ours = RELATIVE[variant]
    pooling = "token" if ours.get("class_token") else "norm_then_avg"
    peer, model = pair(
        {"peer": relative_vit, "img_size": size, **theirs},
        {"img_size": size, "pos_embed": "rel_bias2d", "class_token": False, "global_pool": pooling,
         "init_values": 1e-6, **ours},
    )  # fmt: skip
    images = pictures(2, 3, *size)
    expected = peer(images)
    for way in ("fused", "written"):
        use_attention(model, way)
        torch.testing.assert_close(model(images), expected, **CLOSE)


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
