"""What fits into memory, and when blocks are computed again."""

from __future__ import annotations

from typing import Any

import pytest

from tests.made import bundle, small
from tests.train.test_plan import facts
from vitrine.config.architecture import ResNetConfig
from vitrine.config.models import named
from vitrine.train.memory import kept_bytes, room, settled
from vitrine.train.plan import decide

LARGE = named("vit_base_patch16_224", img_size=1024)
GIB = 1 << 30


def chosen(memory: int, wanted: int, choice: Any = "auto", **how: Any) -> tuple[int, str, list[str]]:
    return settled(LARGE, memory, wanted, choice, **{"asked": False, "parts": 1, **how})


def test_a_base_model_at_1024_pixels_fits_24_gib_with_checkpointing() -> None:
    assert room(LARGE, 24 * GIB, checkpointing=False) < 4
    assert room(LARGE, 24 * GIB, checkpointing=True) >= 16
    batch, way, said = chosen(24 * GIB, 64)
    assert (batch, way) == (16, "on") and "computed again" in said[0] and "more than half of 24.0 GiB" in said[0]


def test_a_batch_that_fits_is_left_alone() -> None:
    assert chosen(1 << 50, 64) == (64, "off", [])
    assert chosen(1 << 50, 64, "on") == (64, "on", [])
    # 32 is a sensible batch: it is made smaller to there first.
    enough = 2 * 32 * kept_bytes(LARGE, checkpointing=False)
    assert chosen(enough, 64) == (32, "off", [])
    assert chosen(enough - (1 << 20), 64)[:2] == (64, "on")


def test_the_users_batch_and_choice_stay() -> None:
    assert chosen(24 * GIB, 64, asked=True)[:2] == (64, "on")
    assert chosen(24 * GIB, 64, "off", asked=True) == (64, "off", [])
    assert chosen(24 * GIB, 1, asked=True) == (1, "off", [])
    assert chosen(24 * GIB, 64, "off")[0] == 2
    assert chosen(24 * GIB, 64, asked=True, parts=64)[:2] == (64, "off")


def test_a_frozen_model_keeps_nothing_and_a_resnet_has_no_blocks() -> None:
    assert chosen(24 * GIB, 16, frozen=True) == (16, "off", [])
    resnet = small(family="resnet", resnet=ResNetConfig(layers=(1, 1)), img_size=64)
    assert settled(resnet, 1 << 20, 64, "auto", asked=True, parts=1)[1] == "off"


@pytest.mark.parametrize(("memory", "way"), [(64 << 30, "off"), (1 << 29, "on")])
def test_the_plan_says_so(memory: int, way: str) -> None:
    start = bundle(img_size=224, patch_size=8, embed_dim=192, depth=12, num_heads=3)
    config, reasons = decide(facts(init=start, memory_bytes=memory), {})
    assert config.grad_checkpointing == way
    assert any("computed again on the way back" in reason for reason in reasons) == (way == "on")
    asked, _ = decide(facts(init=start, memory_bytes=memory), {"grad_checkpointing": "off"})
    assert asked.grad_checkpointing == "off"
