"""What layer each parameter is in, for every kind of network, and how the step uses it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from tests.made import small
from tests.train.test_step import batch, config
from vitrine.config.architecture import ModelConfig, ResNetConfig
from vitrine.config.options import OptimConfig
from vitrine.models.networks import network
from vitrine.models.vit import VisionTransformer
from vitrine.train.groups import decays, layer_scales, layers
from vitrine.train.objective import classify
from vitrine.train.optim import optimizer
from vitrine.train.step import train_step


def numbers(model: nn.Module) -> dict[str, int]:
    return layers([name for name, _ in model.named_parameters()])


@pytest.mark.parametrize(
    "options",
    [
        {"distilled": True, "reg_tokens": 2, "init_values": 0.1, "qk_norm": True, "mlp_layer": "swiglu"},
        {"pos_embed": "learn", "pos_at": "layers", "pre_norm": True},
        {"pos_embed": "rel_shaw", "pos_at": "layers_shared", "representation_size": 8},
        {"pos_embed": "rel1d", "pos_at": "layers", "global_pool": "avg_then_norm"},
        {"pos_embed": "rope2d", "pos_at": "layers", "embed_dim": 32, "global_pool": "map"},
        {"family": "hybrid", "resnet": ResNetConfig(layers=(2, 1)), "img_size": 32, "patch_size": 2},
    ],
)
def test_every_parameter_of_a_vit_is_before_in_or_after_the_blocks(options: dict[str, Any]) -> None:
    found = numbers(VisionTransformer(small(depth=3, **options)))
    for name, number in found.items():
        first, _, rest = name.partition(".")
        if first == "blocks":
            assert number == int(rest.partition(".")[0]) + 1, name
        elif first in ("head", "head_dist", "pre_logits", "attn_pool", "fc_norm"):
            assert number == 4, name
        else:
            assert number == (3 if first == "norm" else 0), name
    assert {name.partition(".")[0] for name in found} >= {"patch_embed", "blocks", "head"}
    assert set(found.values()) == {0, 1, 2, 3, 4}


def test_the_units_of_a_resnet_count_through_its_stages() -> None:
    bare = ResNetConfig(layers=(1, 2))
    found = numbers(network(ModelConfig(family="resnet", resnet=bare, img_size=32, num_classes=3)))
    assert found["stem.conv.weight"] == 0 and found["stages.0.blocks.0.conv1.weight"] == 1
    assert found["stages.1.blocks.0.conv1.weight"] == 2 and found["stages.1.blocks.1.conv2.weight"] == 3
    assert found["norm.weight"] == 3 and found["head.weight"] == 4


def test_the_scale_is_a_power_of_the_distance_to_the_last_layer() -> None:
    found = layer_scales(VisionTransformer(small(depth=2)), 0.5)
    assert [found[name] for name in ("pos_embed", "blocks.0.norm1.bias", "norm.bias", "head.bias")] == [
        0.125, 0.25, 0.5, 1.0,
    ]  # fmt: skip
    headless = layer_scales(VisionTransformer(small(depth=2, num_classes=0)), 0.5)
    assert headless["cls_token"] == 0.25 and headless["norm.weight"] == 1.0
    assert set(layer_scales(VisionTransformer(small()), 1.0).values()) == {1.0}


@pytest.mark.parametrize("name", ["adamw", "sgd", "muon", "lamb"])
def test_a_step_moves_each_layer_by_its_share_of_the_rate(name: str) -> None:
    """The same step with and without decay of the rate: what a parameter moves by is its scale times as much."""
    torch.manual_seed(0)
    begun = VisionTransformer(small(depth=2, weight_init="timm")).state_dict()
    moved = []
    for share in (1.0, 0.5):
        model = VisionTransformer(small(depth=2)).train()
        model.load_state_dict(begun, strict=True)
        optim = OptimConfig(name=name, lr=1e-2, layer_decay=share, weight_decay=0.1)  # type: ignore[arg-type]
        made = optimizer(model, optim)
        settings = config(model=small(depth=2), optim=optim)
        train_step(model, made, batch(), settings, step=0, num_steps=9, dtype=None, objective=classify(settings))
        listed = [p for group in made.param_groups for p in group["params"]]
        assert len(listed) == len(set(listed)) == len(begun)
        decayed = {p for group in made.param_groups if group["weight_decay"] for p in group["params"]}
        assert decayed == {p for name, p in model.named_parameters() if decays(name, p)}
        moved.append({key: tensor - begun[key] for key, tensor in model.state_dict().items()})
    scales = layer_scales(VisionTransformer(small(depth=2)), 0.5)
    for key, whole in moved[0].items():
        assert whole.abs().max() > 1e-6
        torch.testing.assert_close(moved[1][key], scales[key] * whole, atol=2e-7, rtol=1e-4)
