"""The same random weights through transformers' Vision Transformer and ours."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.models.toys import SIZE, pictures, randomise, toy_config
from tests.parity.peers import DINOv3ViTConfig, dinov3, hf_vit
from vitrine.config.architecture import ModelConfig
from vitrine.config.models import named
from vitrine.models.rotary import rotate, turn
from vitrine.models.vit import VisionTransformer

CLOSE = {"rtol": 0, "atol": 1e-5}

OUR_NAMES = {
    r"^vit\.embeddings\.cls_token$": "cls_token",
    r"^vit\.embeddings\.position_embeddings$": "pos_embed",
    r"^vit\.embeddings\.patch_embeddings\.projection\.": "patch_embed.proj.",
    r"^vit\.layers\.(\d+)\.attention\.o_proj\.": r"blocks.\1.attn.proj.",
    r"^vit\.layers\.(\d+)\.layernorm_before\.": r"blocks.\1.norm1.",
    r"^vit\.layers\.(\d+)\.layernorm_after\.": r"blocks.\1.norm2.",
    r"^vit\.layers\.(\d+)\.mlp\.": r"blocks.\1.mlp.",
    r"^vit\.layernorm\.": "norm.",
    r"^classifier\.": "head.",
}


def our_state(theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Their state under our names, q, k and v stacked in this order."""
    ours: dict[str, Tensor] = {}
    for name, value in theirs.items():
        if match := re.fullmatch(r"vit\.layers\.(\d+)\.attention\.q_proj\.(weight|bias)", name):
            stacked = [theirs[name.replace("q_proj", f"{part}_proj")] for part in "qkv"]
            ours[f"blocks.{match[1]}.attn.qkv.{match[2]}"] = torch.cat(stacked)
        elif not re.search(r"\.[kv]_proj\.", name):
            (renamed,) = (re.sub(old, new, name) for old, new in OUR_NAMES.items() if re.search(old, name))
            ours[renamed] = value
    return ours


def pair(config: ModelConfig, **theirs: Any) -> tuple[torch.nn.Module, VisionTransformer]:
    torch.manual_seed(0)
    peer = hf_vit(
        hidden_size=config.embed_dim, num_hidden_layers=config.depth, num_attention_heads=config.num_heads,
        intermediate_size=config.mlp_dim, image_size=config.size[0], patch_size=config.patch_size,
        num_labels=config.num_classes, layer_norm_eps=config.norm_eps, num_channels=config.in_chans, **theirs,
    )  # fmt: skip
    model = VisionTransformer(config).eval()
    model.load_state_dict(our_state(randomise(peer, seed=2).state_dict()), strict=True)
    return peer, model


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [({}, {}), ({"qkv_bias": False}, {"qkv_bias": False}), ({"act_layer": "relu"}, {"hidden_act": "relu"})],
)
@torch.no_grad()
def test_logits_equal_transformers(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    peer, model = pair(ModelConfig(**{**SIZE, **ours}), **theirs)
    images = pictures(3, 3, 32, 32)
    expected = peer(images).logits
    assert expected.std() > 0.05
    torch.testing.assert_close(model(images), expected, **CLOSE)


@pytest.mark.parametrize("sides", [(48, 48), (16, 24), (64, 32)])
@torch.no_grad()
def test_other_sizes_equal_transformers_without_smoothing(sides: tuple[int, int]) -> None:
    peer, model = pair(ModelConfig(**SIZE, pos_antialias=False))
    images = pictures(2, 3, *sides)
    expected = peer(images, interpolate_pos_encoding=True).logits
    torch.testing.assert_close(model(images), expected, **CLOSE)
    if min(sides) < 32:
        smoothing = VisionTransformer(ModelConfig(**SIZE)).eval()
        smoothing.load_state_dict(model.state_dict())
        assert (smoothing(images) - expected).abs().max() > 1e-3


@pytest.mark.parametrize("sides", [(32, 32), (24, 56), (256, 192)])
@torch.no_grad()
def test_rotary_positions_are_dinov3s(sides: tuple[int, int]) -> None:
    config = toy_config(pos_embed="rope2d", pos_at="layers", embed_dim=192, num_heads=3)
    peer = dinov3.DINOv3ViTRopePositionEmbedding(
        DINOv3ViTConfig(hidden_size=192, num_attention_heads=3, image_size=32, patch_size=8, rope_theta=100.0)
    ).eval()
    grid = sides[0] // 8, sides[1] // 8
    expected = peer(pictures(1, 3, *sides))
    made = turn(config, grid, torch.zeros(1))
    assert made is not None
    for one, other in zip(made, expected, strict=True):
        # DINOv3's own code divides by the periods, transformers multiplies by their inverse: 2e-6 of 2 pi.
        torch.testing.assert_close(one, other, rtol=0, atol=5e-6)
    q, k = (pictures(2, 3, 5 + grid[0] * grid[1], 64, seed=seed) for seed in (0, 1))
    theirs = dinov3.apply_rotary_pos_emb(q, k, *made)
    assert torch.equal(rotate(q, made), theirs[0])
    assert torch.equal(rotate(k, made), theirs[1])


@torch.no_grad()
def test_logits_equal_transformers_at_full_size() -> None:
    config = named("vit_base_patch16_224", num_classes=10)
    torch.manual_seed(0)
    model = VisionTransformer(config).eval()
    peer = hf_vit(layer_norm_eps=config.norm_eps, num_labels=10)
    for name, parameter in peer.named_parameters():
        if parameter.dim() == 1 or name == "classifier.weight":
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    model.load_state_dict(our_state(peer.state_dict()), strict=True)
    images = pictures(1, 3, 224, 224)
    expected = peer(images).logits
    assert expected.std() > 0.1
    torch.testing.assert_close(model(images), expected, **CLOSE)
