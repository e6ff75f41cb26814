"""The class map of a ResNet adds up to the score, and says what each cell adds."""

from __future__ import annotations

import pytest
import torch

from tests.models.toys import pictures, randomise, toy_config
from vitrine.config.architecture import ResNetConfig
from vitrine.errors import UsageError
from vitrine.explain.cam import class_map
from vitrine.models.networks import network
from vitrine.models.resnet import ResNet


def toy(num_classes: int = 5) -> ResNet:
    torch.manual_seed(0)
    config = toy_config(family="resnet", resnet=ResNetConfig(layers=(1, 1)), num_classes=num_classes)
    model = network(config)
    assert isinstance(model, ResNet)
    return randomise(model).double().eval()


@torch.no_grad()
def test_the_cells_sum_to_the_logit_of_the_class() -> None:
    model, images = toy(), pictures(3, 3, 32, 48, dtype=torch.float64)
    found, logits = class_map(model, images), model(images)
    assert found.cells.shape == (3, 4, 6)
    assert torch.equal(found.classes, logits.argmax(1))
    torch.testing.assert_close(found.logits, logits, rtol=0, atol=0)
    torch.testing.assert_close(found.cells.sum((1, 2)), logits.amax(1), rtol=0, atol=1e-12)
    for k in range(5):
        cells = class_map(model, images, torch.full((3,), k)).cells
        torch.testing.assert_close(cells.sum((1, 2)), logits[:, k], rtol=0, atol=1e-12)
    assert found.cells.std() > 1e-4


@torch.no_grad()
def test_a_cell_is_the_head_applied_there() -> None:
    model, images = toy(), pictures(1, 3, 32, 32, dtype=torch.float64)
    cells = class_map(model, images, torch.tensor([2])).cells[0]
    features = model.features(images)[0][0]
    for row in range(4):
        for column in range(4):
            by_hand = float(model.head.weight[2] @ features[:, row, column] + model.head.bias[2]) / 16
            assert cells[row, column].item() == pytest.approx(by_hand, abs=1e-12)


def test_the_model_is_left_in_its_mode_and_without_gradients() -> None:
    model = toy().train()
    found = class_map(model, pictures(1, 3, 32, 32, dtype=torch.float64))
    assert model.training
    assert not found.cells.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())


def test_what_has_no_class_map_is_refused() -> None:
    images = pictures(1, 3, 32, 32, dtype=torch.float64)
    with pytest.raises(UsageError, match="no head"):
        class_map(toy(num_classes=0), images)
    for number in (5, -1):
        with pytest.raises(UsageError, match=r"the model has 5, 0 to 4"):
            class_map(toy(), images, torch.tensor([number]))
    with pytest.raises(UsageError, match="cannot be cut"):
        class_map(toy(), images[..., :30])
