from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from tests.made import small
from vitrine.config.options import OptimConfig
from vitrine.models.vit import VisionTransformer
from vitrine.train.groups import decays
from vitrine.train.optim import Average, learning_rate, optimizer


def rates(num_steps: int = 20, **options: object) -> list[float]:
    config = OptimConfig(**{"lr": 2.0, **options})  # type: ignore[arg-type]
    return [learning_rate(config, step, num_steps) for step in range(num_steps)]


def test_the_warm_up_is_linear_and_ends_at_the_peak() -> None:
    assert rates(warmup_steps=4)[:5] == pytest.approx([0.5, 1.0, 1.5, 2.0, 2.0])
    assert rates(warmup_steps=0)[0] == 2.0


def test_cosine() -> None:
    expected = [0.1 + 1.9 * 0.5 * (1 + math.cos(math.pi * k / 16)) for k in range(16)]
    assert rates(warmup_steps=4, min_lr=0.1)[4:] == pytest.approx(expected)


def test_linear() -> None:
    assert rates(warmup_steps=4, schedule="linear")[4:] == pytest.approx([2 * (1 - k / 16) for k in range(16)])


def test_constant() -> None:
    assert rates(warmup_steps=4, schedule="constant")[3:] == [2.0] * 17


def test_rsqrt_is_big_visions() -> None:
    """Of `create_learning_rate_schedule`, from the end of the warm-up; the cool-down multiplies it."""
    found = rates(warmup_steps=4, schedule="rsqrt", timescale_steps=5, cooldown_steps=6)
    expected = [2 / math.sqrt(1 + (k - 4) / 5) * min(1, (20 - k) / 6) for k in range(4, 20)]
    assert found[4:] == pytest.approx(expected)
    assert found[:4] == pytest.approx([0.5, 1.0, 1.5, 2.0])
    assert rates(schedule="rsqrt", timescale_steps=5)[15] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("supports", "shares"),
    [
        ([100, 200, 300, 400, 500], (0.4, 0.6, 0.8)),
        ([500, 3000, 6000, 9000, 10_000], (0.3, 0.6, 0.9)),
        ([500, 6000, 12_000, 18_000, 20_000], (0.3, 0.6, 0.9)),
    ],
)
def test_steps_are_those_of_bits_rule(supports: list[int], shares: tuple[float, ...]) -> None:
    """`get_lr` of big_transfer, of which the warm-up begins a step earlier, so that no step is lost."""
    config = OptimConfig(name="sgd", lr=0.003, schedule="steps", warmup_steps=supports[0], step_at=shares)
    for step in range(supports[0], supports[-1]):
        expected = 0.003 / 10 ** sum(at < step for at in supports[1:])
        assert learning_rate(config, step, supports[-1]) == pytest.approx(expected), step
    assert learning_rate(config, 0, supports[-1]) == pytest.approx(0.003 / supports[0])


def test_the_least_rate_holds_for_rsqrt_and_steps_and_the_cool_down_ends_there() -> None:
    for schedule in ("rsqrt", "steps"):
        found = rates(schedule=schedule, timescale_steps=1, min_lr=0.9, step_at=(0.5,))
        assert found[0] == 2.0 and found[-1] == 0.9
    found = rates(schedule="constant", cooldown_steps=4, min_lr=1.0)
    assert found == pytest.approx([2.0] * 17 + [1.75, 1.5, 1.25])
    assert learning_rate(OptimConfig(lr=2.0, cooldown_steps=4), 99, 20) == 0.0


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_the_end_and_beyond_is_min_lr(schedule: str) -> None:
    config = OptimConfig(lr=1.0, warmup_steps=3, schedule=schedule, min_lr=0.25)  # type: ignore[arg-type]
    assert learning_rate(config, 20, 20) == learning_rate(config, 99, 20) == 0.25
    assert learning_rate(config, 19, 20) > 0.25


def test_a_warm_up_may_begin_above_zero() -> None:
    found = rates(warmup_steps=4, lr=1.0, warmup_lr=0.2, schedule="constant")
    assert found[:5] == pytest.approx([0.4, 0.6, 0.8, 1.0, 1.0])
    assert rates(warmup_steps=4, lr=1.0, warmup_lr=0.0) == rates(warmup_steps=4, lr=1.0)


def test_a_warm_up_longer_than_the_run_only_rises() -> None:
    assert rates(num_steps=5, warmup_steps=10) == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])


@pytest.mark.parametrize("name", ["adamw", "sgd", "lamb"])
def test_weight_decay_is_for_matrices_and_filters_alone(name: str) -> None:
    model = VisionTransformer(small(representation_size=8))
    made = optimizer(model, OptimConfig(name=name, weight_decay=0.3))  # type: ignore[arg-type]
    names = {parameter: name for name, parameter in model.named_parameters()}
    decayed, free = ([names[p] for p in group["params"]] for group in made.param_groups)
    assert [group["weight_decay"] for group in made.param_groups] == [0.3, 0.0]
    assert set(decayed) == {
        "patch_embed.proj.weight", "blocks.0.attn.qkv.weight", "blocks.0.attn.proj.weight",
        "blocks.0.mlp.fc1.weight", "blocks.0.mlp.fc2.weight", "pre_logits.fc.weight", "head.weight",
    }  # fmt: skip
    assert set(free) == set(names.values()) - set(decayed)
    assert {"cls_token", "pos_embed", "norm.weight", "head.bias"} <= set(free)


@pytest.mark.parametrize(
    "options",
    [
        {
            "distilled": True,
            "reg_tokens": 2,
            "init_values": 0.1,
            "qk_norm": True,
            "mlp_layer": "swiglu",
            "pre_norm": True,
        },
        {"pos_embed": "learn", "pos_at": "layers"},
        {"pos_embed": "learn2d"},
        {"pos_embed": "rel1d", "pos_at": "layers"},
        {"pos_embed": "rel_shaw", "pos_at": "layers_shared"},
        {"pos_embed": "rel_bias2d", "pos_at": "layers_shared", "global_pool": "map"},
    ],
)
def test_tokens_and_positions_of_every_kind_have_no_decay(options: dict[str, Any]) -> None:
    model = VisionTransformer(small(**options))
    decayed = {name for name, parameter in model.named_parameters() if decays(name, parameter)}
    layers = [name for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    assert decayed == {f"{name}.weight" for name in layers}


def test_decays() -> None:
    assert decays("head.weight", torch.ones(2, 2)) and not decays("norm.weight", torch.ones(2))
    assert not decays("pos_embed", torch.ones(1, 2, 2))


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9, 0.9999])
def test_the_average_is_the_literal_loop(decay: float) -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 2).double()
    average = Average(model, decay)
    expected = model.weight.detach().clone()
    for step in range(30):
        with torch.no_grad():
            model.weight += torch.randn(2, 3, dtype=torch.float64)
        average.update(step)
        d = min(decay, (1 + step) / (10 + step))
        expected = d * expected + (1 - d) * model.weight.detach()
    averaged = average.model.get_parameter("weight")
    torch.testing.assert_close(averaged, expected, rtol=1e-12, atol=1e-12)
    assert not averaged.requires_grad and not average.model.training
    assert model.weight.requires_grad and model.training


def test_a_run_begins_in_the_average_soon_forgotten() -> None:
    model = nn.Linear(1, 1)
    nn.init.constant_(model.weight, 100.0)
    average = Average(model, 0.9999)
    nn.init.zeros_(model.weight)
    for step in range(50):
        average.update(step)
    assert float(average.model.get_parameter("weight")) < 1e-3
