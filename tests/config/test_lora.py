from __future__ import annotations

from typing import Any

import pytest

from vitrine.config.lora import TARGETS, LoraConfig
from vitrine.config.text import from_dict
from vitrine.errors import BadConfig


def test_the_papers_matrices_are_the_default() -> None:
    assert LoraConfig().targets == ("q", "v")
    assert TARGETS == ("q", "k", "v", "attn.proj", "mlp.fc1", "mlp.fc2")
    assert LoraConfig(targets=TARGETS).rank == 8


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"rank": 0}, "lora.rank = 0: must be at least 1"),
        ({"alpha": 0.0}, "lora.alpha = 0.0: must be above 0"),
        ({"dropout": 1.0}, r"lora.dropout = 1.0: must be in \[0, 1\)"),
        ({"targets": ()}, "must be some of q, k, v, attn.proj"),
        ({"targets": ("q", "q")}, "each once"),
    ],
)
def test_what_cannot_hold_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(BadConfig, match=said):
        LoraConfig(**options)


def test_a_matrix_that_there_is_not_is_refused() -> None:
    with pytest.raises(BadConfig, match=r"targets = 'qkv': must be one of q, k, v, attn\.proj"):
        from_dict(LoraConfig, {"targets": ["qkv"]})
