"""A model learns, and learns as it did."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.models import twenty_steps
from tests.models.toys import pictures, toy_config
from vitrine.models.vit import VisionTransformer, use_attention

GOLDEN = Path(__file__).parents[1] / "golden" / "twenty_steps.json"


@pytest.mark.parametrize("way", ["fused", "written"])
def test_eight_pictures_are_learnt_by_heart(way: str) -> None:
    torch.manual_seed(0)
    model = VisionTransformer(toy_config(num_classes=8)).train()
    use_attention(model, way)
    images, labels = pictures(8, 3, 32, 32), torch.arange(8)
    losses = twenty_steps.train(model, images, labels, 199)
    assert losses[0] == pytest.approx(torch.tensor(8.0).log().item(), abs=1e-6)
    assert losses[-1] < 0.05
    assert torch.equal(model.eval()(images).argmax(1), labels)


def test_twenty_steps_equal_the_golden_losses() -> None:
    golden = json.loads(GOLDEN.read_text())
    assert golden["command"] == twenty_steps.COMMAND
    assert len(golden["losses"]) == 20
    assert golden["losses"][-1] < golden["losses"][0] - 0.1
    assert twenty_steps.losses() == pytest.approx(golden["losses"], abs=1e-4)


def test_every_parameter_learns() -> None:
    torch.manual_seed(0)
    model = VisionTransformer(toy_config(representation_size=9)).train()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    twenty_steps.train(model, pictures(8, 3, 32, 32), torch.arange(8) % 5, 3)
    # Weight decay alone would move a parameter too: ask for the gradient.
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name
        assert not torch.equal(parameter, before[name]), name
