"""Parameter and operation counts against the published figures, and against what a forward pass really does."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.models.toys import toy, toy_config
from vitrine.config.models import NAMES, named
from vitrine.models.cost import macs, num_parameters
from vitrine.models.vit import VisionTransformer, use_attention

# Millions of parameters and GFLOP of a forward pass, 1,000 classes.
PUBLISHED = {
    "vit_tiny_patch16_224": (5.72, 2.51),
    "vit_small_patch16_224": (22.05, 9.20),
    "vit_base_patch32_224": (88.22, 8.82),
    "vit_base_patch16_224": (86.57, 35.13),
    "vit_large_patch16_224": (304.33, 123.1),
    "vit_huge_patch14_224": (632.05, 334.6),
    "vit_base_patch16_384": (86.86, 111.0),
}

VARIANTS = [
    {},
    {"class_token": False, "global_pool": "avg_then_norm"},
    {"head_dim": 10, "mlp_ratio": 3.3},
    {"representation_size": 9, "img_size": (16, 40)},
    {"in_chans": 1, "qkv_bias": False, "pos_embed": "none", "no_embed_class": True},
    {"num_classes": 0, "pos_embed": "sincos2d"},
]


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_and_operations_are_the_published_ones(name: str) -> None:
    millions, giga = PUBLISHED[name]
    assert num_parameters(named(name)) / 1e6 == pytest.approx(millions, abs=0.0051)
    assert 2 * macs(named(name)) / 1e9 == pytest.approx(giga, rel=0.01)


@pytest.mark.parametrize("name", NAMES)
def test_every_named_model_can_be_built(name: str) -> None:
    with torch.device("meta"):
        model = VisionTransformer(named(name, depth=1))
    assert model.patch_embed.proj.weight.device.type == "meta"


@pytest.mark.parametrize("name", ["vit_base_patch16_224", "vit_giant_patch14_224", "vit_micro_patch2_8"])
def test_a_named_model_runs_on_the_meta_device(name: str) -> None:
    config = named(name, num_classes=3)
    with torch.device("meta"):
        assert VisionTransformer(config)(torch.empty(2, 3, *config.size)).shape == (2, 3)


@pytest.mark.parametrize("options", VARIANTS)
def test_macs_are_those_of_a_forward_pass(options: dict[str, object]) -> None:
    model = toy(**options)
    # The counter takes the fused kernel for one operation, so the products are written out.
    use_attention(model, "written")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.randn(1, model.config.in_chans, *model.config.size))
    assert counter.get_total_flops() == 2 * macs(model.config)


@pytest.mark.parametrize("options", VARIANTS)
def test_num_parameters_are_those_of_the_model(options: dict[str, object]) -> None:
    assert num_parameters(toy_config(**options)) == sum(p.numel() for p in toy(**options).parameters())
