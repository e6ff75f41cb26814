"""Parameter and operation counts against the published figures, and against what a forward pass really does."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.models.toys import toy, toy_config
from vitrine.config.architecture import ModelConfig, ResNetConfig
from vitrine.config.models import NAMES, STEM, named
from vitrine.models.cost import macs, num_kept, num_parameters
from vitrine.models.networks import first_filter, network
from vitrine.models.vit import use_attention

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
    {"reg_tokens": 3, "distilled": True, "init_values": 0.1},
    {"mlp_layer": "swiglu", "qk_norm": True},
    {"pos_embed": "rel1d", "pos_at": "layers"},
    {"pos_embed": "rel_shaw", "pos_at": "layers", "pos_clip": 2, "reg_tokens": 1},
    {"pos_embed": "rel_bias2d", "pos_at": "layers", "no_embed_class": True},
    {"pos_embed": "rope2d", "pos_at": "layers", "num_heads": 4},
]

CONVOLVED: dict[str, ModelConfig] = {
    "resnet": toy_config(family="resnet", resnet=ResNetConfig(layers=(1, 2))),
    "resnet wide and not square": toy_config(
        family="resnet", resnet=ResNetConfig(layers=(1, 1), width_factor=2), img_size=(32, 48), in_chans=1
    ),
    "hybrid": toy_config(family="hybrid", resnet=ResNetConfig(layers=(1, 1), **STEM), patch_size=2),
    "hybrid of the bare root": toy_config(family="hybrid", resnet=ResNetConfig(layers=(), **STEM), patch_size=4),
    "hybrid without a border": toy_config(
        family="hybrid", resnet=ResNetConfig(layers=(1, 2), preact=False, pool_padding=False), patch_size=1,
        img_size=(32, 48),
    ),
}  # fmt: skip

# Parameters of timm 1.0.31's model of that name with 1,000 classes; of DINOv3 with the biases of the keys too, which
# timm leaves out, and of those that timm does not have the sum by hand.
PARAMETERS = {
    "vit_tiny_r_s16_p8_224": 6_337_704,
    "vit_small_r26_s32_224": 36_431_912,
    "vit_base_r26_s32_224": 101_383_976,
    "vit_base_r50_s16_384": 98_950_952,
    "vit_large_r50_s32_384": 329_092_136,
    "deit_base_distilled_patch16_384": 87_630_032,
    "deit3_medium_patch16_224": 38_849_512,
    "deit3_huge_patch14_224": 632_126_440,
    "vit_giant_patch14_dinov2": 1_138_016_232,
    "vit_large_patch14_reg4_dinov2": 305_395_688,
    "vit_small_plus_patch16_dinov3": 29_077_480 + 12 * 384,
    "vit_huge_plus_patch16_dinov3": 841_872_360 + 32 * 1280,
    "vit_7b_patch16_dinov3": 6_720_127_976 + 40 * 3 * 4096,
    "vit_large_patch14_clip_quickgelu_224": 304_204_776,
    "vit_so400m_patch14_siglip_224": 428_833_704,
    "resnetv2_50x1_bit": 25_549_352,
    "resnetv2_50x3_bit": 217_319_080,
    "resnetv2_101x1_bit": 44_541_480,
    "resnetv2_101x3_bit": 387_934_888,
    "resnetv2_152x2_bit": 236_335_208,
    "resnetv2_152x4_bit": 936_533_224,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_and_operations_are_the_published_ones(name: str) -> None:
    millions, giga = PUBLISHED[name]
    assert num_parameters(named(name)) / 1e6 == pytest.approx(millions, abs=0.0051)
    assert 2 * macs(named(name)) / 1e9 == pytest.approx(giga, rel=0.01)


@pytest.mark.parametrize("name", NAMES)
def test_every_named_model_can_be_built(name: str) -> None:
    config = named(name, depth=1)
    with torch.device("meta"):
        model = network(config)
    assert model.get_parameter(first_filter(config)).device.type == "meta"


@pytest.mark.parametrize(
    "name",
    [
        "vit_base_patch16_224", "vit_giant_patch14_224", "vit_micro_patch2_8", "vit_tiny_r_s16_p8_224",
        "vit_base_r50_s16_224", "vit_small_patch16_dinov3", "vit_base_patch16_siglip_224", "resnetv2_50x1_bit",
    ],
)  # fmt: skip
def test_a_named_model_runs_on_the_meta_device(name: str) -> None:
    config = named(name, num_classes=3)
    with torch.device("meta"):
        assert network(config)(torch.empty(2, 3, *config.size)).shape == (2, 3)


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_are_timms(name: str) -> None:
    assert num_parameters(named(name)) == PARAMETERS[name]


@pytest.mark.parametrize("options", VARIANTS)
def test_macs_are_those_of_a_forward_pass(options: dict[str, object]) -> None:
    model = toy(**options)
    # The counter takes the fused kernel for one operation, so the products are written out.
    use_attention(model, "written")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.randn(1, model.config.in_chans, *model.config.size))
    assert counter.get_total_flops() == 2 * macs(model.config)


@pytest.mark.parametrize("depth", [1, 2, 5])
@pytest.mark.parametrize("options", [*VARIANTS, {"pos_at": "layers"}, {"global_pool": "map"}])
def test_num_parameters_are_those_of_the_model(options: dict[str, object], depth: int) -> None:
    deep = {**options, "depth": depth}
    assert num_parameters(toy_config(**deep)) == sum(p.numel() for p in toy(**deep).parameters())


@pytest.mark.parametrize("name", CONVOLVED)
def test_macs_are_those_of_every_convolution(name: str) -> None:
    config = CONVOLVED[name]
    model = network(config).eval()
    use_attention(model, "written")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.randn(1, config.in_chans, *config.size))
    assert counter.get_total_flops() == 2 * macs(config)
    assert num_parameters(config) == sum(p.numel() for p in model.parameters())


def test_macs_of_attention_pooling() -> None:
    """By hand beside the pooled mean: q, proj D^2 each, keys and values 2 N D^2, two products N D, the MLP 2 D M."""
    plain, D, M, N = toy_config(class_token=False, global_pool="norm_then_avg"), 48, 96, 16
    pooled = toy_config(class_token=False, global_pool="map")
    assert macs(pooled) - macs(plain) == 2 * D * D + 2 * N * D * D + 2 * N * D + 2 * D * M


@pytest.mark.parametrize("name", ["resnet", "resnet wide and not square"])
def test_what_training_keeps_of_a_picture_is_about_what_is_saved(name: str) -> None:
    config = CONVOLVED[name]
    model = network(config).train()
    own = {parameter.data_ptr() for parameter in model.parameters()}

    def saved(batch: int) -> float:
        seen: dict[int, torch.Tensor] = {}
        with torch.autograd.graph.saved_tensors_hooks(lambda t: seen.setdefault(t.data_ptr(), t), lambda t: t):
            model(torch.randn(batch, config.in_chans, *config.size)).sum()
        return sum(t.numel() * t.element_size() / 4 for place, t in seen.items() if place not in own)

    assert num_kept(config) == pytest.approx(saved(3) - saved(2), rel=0.2)
