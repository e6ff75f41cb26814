"""How weights begin: the bounds and deviations each scheme states."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from tests.models.toys import pictures, toy_config
from vitrine.config.architecture import ResNetConfig
from vitrine.models.init import TRUNCATED_STD, initialise, lecun_normal, zero_head
from vitrine.models.vit import VisionTransformer

D, M, R = 192, 384, 128
TOLERANCE = 0.02


@pytest.fixture(scope="module")
def jax() -> VisionTransformer:
    torch.manual_seed(0)
    return VisionTransformer(toy_config(embed_dim=D, patch_size=16, img_size=224, representation_size=R))


@pytest.fixture(scope="module")
def timm() -> VisionTransformer:
    torch.manual_seed(0)
    return VisionTransformer(toy_config(embed_dim=D, img_size=128, num_classes=1000, weight_init="timm"))


def assert_xavier(weight: torch.Tensor, fan_in: int, fan_out: int) -> None:
    bound = math.sqrt(6 / (fan_in + fan_out))
    assert 0.995 * bound < weight.abs().max() <= bound
    assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=TOLERANCE)
    assert weight.mean().abs() < 5 * bound / math.sqrt(3) / math.sqrt(weight.numel())


def assert_lecun(weight: torch.Tensor) -> None:
    deviation = 1 / math.sqrt(weight[0].numel())
    assert weight.std().item() == pytest.approx(deviation, rel=TOLERANCE)
    cut = 2 * deviation / TRUNCATED_STD
    assert 0.97 * cut < weight.abs().max() <= cut * (1 + 1e-6)


def test_jax_queries_keys_and_values_each_have_their_own_fan(jax: VisionTransformer) -> None:
    for block in jax.blocks:
        for part in block.attn.qkv.weight.chunk(3):
            assert_xavier(part, D, D)
            assert part.abs().max() > 1.2 * math.sqrt(6 / (D + 3 * D))


def test_jax_the_other_products_are_xavier(jax: VisionTransformer) -> None:
    for block in jax.blocks:
        assert_xavier(block.attn.proj.weight, D, D)
        assert_xavier(block.mlp.fc1.weight, D, M)
        assert_xavier(block.mlp.fc2.weight, M, D)


def test_jax_biases(jax: VisionTransformer) -> None:
    mlp = torch.cat([layer.bias for block in jax.blocks for layer in (block.mlp.fc1, block.mlp.fc2)])
    assert mlp.std().item() == pytest.approx(1e-6, rel=0.1)
    for block in jax.blocks:
        assert not block.attn.qkv.bias.any()
        assert not block.attn.proj.bias.any()
    assert not jax.patch_embed.proj.bias.any()
    assert not jax.pre_logits.fc.bias.any()


def test_jax_patch_filter_and_pre_training_layer_are_lecun_normal(jax: VisionTransformer) -> None:
    assert_lecun(jax.patch_embed.proj.weight)
    assert_lecun(jax.pre_logits.fc.weight)


def test_jax_head_and_class_token_are_zero_and_positions_small(jax: VisionTransformer) -> None:
    assert not jax.head.weight.any()
    assert not jax.head.bias.any()
    assert not jax.cls_token.any()
    assert jax.pos_embed.std().item() == pytest.approx(0.02, rel=TOLERANCE)
    # Not truncated: a normal of this many numbers goes past three deviations.
    assert jax.pos_embed.abs().max() > 0.06


def test_norms_begin_as_the_identity(jax: VisionTransformer, timm: VisionTransformer) -> None:
    for model in (jax, timm):
        for norm in [model.norm, *(n for block in model.blocks for n in (block.norm1, block.norm2))]:
            assert (norm.weight == 1).all()
            assert not norm.bias.any()


def test_timm_every_linear_layer_has_deviation_002(timm: VisionTransformer) -> None:
    linears = [m for m in timm.modules() if isinstance(m, torch.nn.Linear)]
    assert len(linears) == 4 * 2 + 1
    for layer in linears:
        assert layer.weight.std().item() == pytest.approx(0.02, rel=TOLERANCE)
        assert not layer.bias.any()
    assert timm.pos_embed.std().item() == pytest.approx(0.02, rel=TOLERANCE)
    assert 0 < timm.cls_token.std() < 2e-6


def test_all_blocks_differ(jax: VisionTransformer, timm: VisionTransformer) -> None:
    for model in (jax, timm):
        one, other = model.blocks
        for name, parameter in one.named_parameters():
            if name.endswith("weight") and "norm" not in name:
                assert not torch.equal(parameter, other.get_parameter(name)), name
        q, k, v = one.attn.qkv.weight.chunk(3)
        assert not torch.equal(q, k)
        assert not torch.equal(k, v)


@pytest.mark.parametrize("scheme", ["jax", "timm"])
def test_the_seed_alone_decides(scheme: str) -> None:
    def made(seed: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(seed)
        return VisionTransformer(toy_config(weight_init=scheme)).state_dict()

    one, same, other = made(1), made(1), made(2)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["blocks.0.attn.qkv.weight"], other["blocks.0.attn.qkv.weight"])


@pytest.mark.parametrize("scheme", ["jax", "timm"])
def test_initialise_fills_every_matrix_anew(scheme: str) -> None:
    model = VisionTransformer(toy_config(weight_init=scheme, representation_size=9))
    names = [name for name, p in model.named_parameters() if p.dim() > 1 and not name.startswith("patch_embed")]
    with torch.no_grad():
        for name in names:
            model.get_parameter(name).fill_(7.0)
    initialise(model)
    assert [name for name in names if (model.get_parameter(name) == 7.0).any()] == []


@pytest.mark.parametrize("scheme", ["jax", "timm"])
@pytest.mark.parametrize("lean", [{"qkv_bias": False}, {"num_classes": 0}, {"pos_embed": "none"},
                                  {"class_token": False, "global_pool": "avg_then_norm"}])  # fmt: skip
def test_a_model_without_a_part_begins_well(scheme: str, lean: dict[str, object]) -> None:
    model = VisionTransformer(toy_config(weight_init=scheme, **lean))
    assert all(parameter.isfinite().all() for parameter in model.parameters())


VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "distilled": {"distilled": True},
    "registers": {"reg_tokens": 3},
    "LayerScale": {"init_values": 1e-3},
    "qk_norm": {"qk_norm": True},
    "swiglu": {"mlp_layer": "swiglu"},
    "pre_norm": {"pre_norm": True},
    "no final norm": {"final_norm": False},
    "map": {"global_pool": "map", "class_token": False},
    "mean": {"global_pool": "avg_then_norm"},
    "hidden layer": {"representation_size": 7},
    "hybrid": {"family": "hybrid", "patch_size": 1, "resnet": ResNetConfig(layers=(1, 2), preact=False)},
    "hybrid, the root alone": {"family": "hybrid", "patch_size": 2, "resnet": ResNetConfig(layers=(), preact=False)},
    "learnt in every layer": {"pos_embed": "learn", "pos_at": "layers"},
    "axes": {"pos_embed": "learn2d"},
    **{
        f"{kind} {place}": {"pos_embed": kind, "pos_at": place}
        for kind in ("rel1d", "rel_shaw", "rel_bias2d")
        for place in ("layers", "layers_shared")
    },
}


@pytest.fixture
def memory_of_nan() -> Iterator[None]:
    """Memory that is not filled holds NaN, not what happens to lie there."""
    before = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = before


@pytest.mark.parametrize("scheme", ["jax", "timm"])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.usefixtures("memory_of_nan")
def test_every_parameter_of_every_variant_is_filled(variant: str, scheme: str) -> None:
    assert torch.empty(3).isnan().all()
    torch.manual_seed(0)
    model = VisionTransformer(toy_config(weight_init=scheme, **VARIANTS[variant]))
    assert [name for name, parameter in model.named_parameters() if not parameter.isfinite().all()] == []
    assert list(model.buffers()) == []
    assert model.train()(pictures(2, 3, 32, 32)).isfinite().all()


@pytest.mark.parametrize("scheme", ["jax", "timm"])
def test_positions_and_additional_tokens_have_deviation_002(scheme: str) -> None:
    torch.manual_seed(0)
    size = {"embed_dim": 192, "weight_init": scheme}
    for options, names in (
        ({"pos_embed": "learn", "pos_at": "layers", "distilled": True}, ["pos_embed", "dist_token"]),
        ({"pos_embed": "learn2d", "reg_tokens": 3}, ["pos_embed.x", "pos_embed.y", "reg_token"]),
        ({"pos_embed": "rel1d", "pos_at": "layers"}, ["blocks.1.attn.rel_pos.keys"]),
        ({"pos_embed": "rel_shaw", "pos_at": "layers_shared"}, ["shared_rel_pos.keys", "shared_rel_pos.values"]),
        ({"pos_embed": "rel_bias2d", "pos_at": "layers"}, ["blocks.0.attn.rel_pos.relative_position_bias_table"]),
    ):
        model = VisionTransformer(toy_config(**size, **options))
        for name in names:
            assert model.get_parameter(name).std().item() == pytest.approx(0.02, rel=0.15), name
    assert len({tuple(token.tolist()) for token in VisionTransformer(toy_config(reg_tokens=4)).reg_token[0]}) == 4


def test_layer_scale_begins_at_its_value() -> None:
    model = VisionTransformer(toy_config(init_values=1e-3))
    for block in model.blocks:
        for scale in (block.ls1, block.ls2):
            assert (scale.gamma == 1e-3).all()


def test_jax_attention_pooling_is_big_visions() -> None:
    torch.manual_seed(0)
    pool = VisionTransformer(toy_config(embed_dim=D, global_pool="map", class_token=False)).attn_pool
    for part in (pool.q.weight, *pool.kv.weight.chunk(2), pool.proj.weight):
        assert_xavier(part, D, D)
    assert_xavier(pool.mlp["fc1"].weight, D, M)
    assert_xavier(pool.mlp["fc2"].weight, M, D)
    bound = math.sqrt(6 / (1 + D))  # flax's fans of a probe (1, 1, D)
    assert 0.9 * bound < pool.latent.abs().max() <= bound
    assert not any(layer.bias.any() for layer in (pool.q, pool.kv, pool.proj))


def test_both_halves_of_a_gated_mlp_have_a_fan_of_their_own() -> None:
    torch.manual_seed(0)
    for part in VisionTransformer(toy_config(embed_dim=D, mlp_layer="swiglu")).blocks[0].mlp.fc1.weight.chunk(2):
        assert_xavier(part, D, M)


def test_both_heads_begin_at_zero() -> None:
    model = VisionTransformer(toy_config(distilled=True))
    assert not model.head_dist.weight.any()
    assert not model(torch.randn(2, 3, 32, 32)).any()


def test_lecun_normal_returns_what_it_filled() -> None:
    torch.manual_seed(0)
    weight = torch.empty(512, 64)
    assert lecun_normal(weight) is weight
    assert_lecun(weight)


def test_zero_head_makes_every_class_equally_likely() -> None:
    model = VisionTransformer(toy_config(weight_init="timm"))
    assert model.head.weight.any()
    zero_head(model)
    assert not model(torch.randn(2, 3, 32, 32)).any()
    zero_head(VisionTransformer(toy_config(num_classes=0)))


def test_the_deviation_of_a_truncated_normal() -> None:
    density = math.exp(-2.0) / math.sqrt(2 * math.pi)
    mass = math.erf(2 / math.sqrt(2))
    assert pytest.approx(math.sqrt(1 - 4 * density / mass), abs=1e-12) == TRUNCATED_STD
