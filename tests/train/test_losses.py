"""Losses by a literal loop, class weights, and the gradient of a batch in parts."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.made import photos, small, trained
from tests.train.test_step import batch, config, fresh
from vitrine.config.options import AugmentConfig, Config, OptimConfig
from vitrine.models.networks import network
from vitrine.train import task
from vitrine.train.losses import balanced, losses, soft_targets
from vitrine.train.objective import classify
from vitrine.train.optim import optimizer
from vitrine.train.step import parts, train_step


@pytest.mark.parametrize("kind", ["cross_entropy", "bce", "sigmoid"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("threshold", [None, 0.25])
def test_each_loss_is_the_literal_loop(kind: str, weighted: bool, threshold: float | None) -> None:
    torch.manual_seed(0)
    logits, labels = 2 * torch.randn(4, 3, dtype=torch.float64), torch.tensor([0, 2, 1, 1])
    targets = (0.7 * soft_targets(labels, 3, 0.1) + 0.3 * soft_targets(labels.flip(0), 3, 0.1)).double()
    weights = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64) if weighted else None
    found = losses(logits, targets, kind, threshold=threshold, class_weights=weights)  # type: ignore[arg-type]
    for i in range(4):
        z, expected = logits[i].tolist(), 0.0
        for k in range(3):
            t, w = float(targets[i, k]), float(weights[k]) if weights is not None else 1.0
            if kind == "cross_entropy":
                expected -= w * t * (z[k] - math.log(sum(map(math.exp, z))))
                continue
            t = t if threshold is None else float(t > threshold)
            s = 1 / (1 + math.exp(-z[k]))
            expected -= w * (t * math.log(s) + (1 - t) * math.log(1 - s)) / (3 if kind == "bce" else 1)
        assert float(found[i]) == pytest.approx(expected, rel=1e-12)


def test_class_weights_are_torchs() -> None:
    logits, weights = torch.randn(6, 3), torch.tensor([0.5, 1.0, 2.0])
    targets = soft_targets(torch.arange(6) % 3, 3, 0.2)
    found = losses(logits, targets, class_weights=weights).mean()
    torch.testing.assert_close(found, F.cross_entropy(logits, targets, weight=weights))


def test_a_rare_class_counts_for_as_much_as_a_frequent_one_and_the_mean_is_one() -> None:
    labels = np.array([0] * 6 + [1] * 3 + [3] * 1)
    found = balanced(labels, 4)
    np.testing.assert_allclose(found.numpy(), [10 / 18, 10 / 9, 1.0, 10 / 3], rtol=1e-6)
    assert float(found[torch.from_numpy(labels)].mean()) == pytest.approx(1.0)
    assert balanced(np.array([0, 1, 2]), 3).tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize(("bias", "loss"), [(0.0, 3 * math.log(2)), (-10.0, 10.0 + 3 * math.log1p(math.exp(-10.0)))])
@pytest.mark.parametrize("options", [{}, {"family": "resnet", "img_size": 32}])
def test_the_first_loss_is_that_of_the_heads_bias(bias: float, loss: float, options: dict[str, Any]) -> None:
    """From a zero head: K log 2, or -log s(-10) for the right class and next to nothing for each other."""
    model = network(small(head_bias=bias, **options))
    logits = model(torch.randn(2, 3, *model.config.size))
    found = losses(logits, soft_targets(torch.tensor([0, 2]), 3, 0.0), "sigmoid")
    assert found.tolist() == pytest.approx([loss, loss], rel=1e-5)


def test_both_heads_of_deit_have_the_bias() -> None:
    state = network(small(distilled=True, head_bias=-6.9, weight_init="timm")).state_dict()
    assert all((state[f"{name}.bias"] == -6.9).all() for name in ("head", "head_dist"))


@pytest.mark.parametrize("number", [2, 4, 6, 9])
@pytest.mark.parametrize("kind", ["cross_entropy", "sigmoid"])
def test_a_batch_in_parts_has_the_gradient_of_the_whole(number: int, kind: str) -> None:
    """Also of unequal parts, of one whose pictures all count for nothing, and mixed across parts."""
    one = batch(n=7, weights=[1.0, 1.0, 0.0, 0.0, 1.0, 0.0, 1.0])
    seen, gradients, models = [], [], []
    for accumulate in (1, number):
        settings = config(
            accumulate=accumulate, loss=kind, augment=AugmentConfig(mixup=0.5, cutmix=1.0, rotate_deg=5.0),
            batch_size=9, optim=OptimConfig(name="sgd", lr=0.1, clip_norm=0.05),
        )  # fmt: skip
        model = fresh()
        made = optimizer(model, settings.optim)
        weights = torch.tensor([0.5, 1.0, 1.5])
        aim = classify(settings, weights)
        seen.append(train_step(model, made, one, settings, step=3, num_steps=9, dtype=None, objective=aim))
        gradients.append([copy.deepcopy(p.grad) for p in model.parameters()])
        models.append(model)
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=0)
    for a, b in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=0)
    assert seen[0].weight == seen[1].weight == 4 and seen[0].correct == seen[1].correct
    torch.testing.assert_close(seen[0].loss, seen[1].loss)
    torch.testing.assert_close(seen[0].grad_norm, seen[1].grad_norm)
    assert seen[0].grad_norm > 0.05  # so it was clipped, after the last part


def test_parts_are_of_about_one_length() -> None:
    assert [len(part) for (part,) in parts(3, torch.arange(7))] == [3, 2, 2]
    assert torch.equal(torch.cat([part for (part,) in parts(3, torch.arange(7))]), torch.arange(7))


def test_a_run_weighs_the_classes_of_its_training_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = photos(tmp_path / "data", {"few": 10, "many": 40}, size=(16, 16))
    seen, plain = [], task.objective_of

    def watched(config: Config, class_weights: Any) -> Any:
        seen.append(class_weights)
        return plain(config, class_weights)

    monkeypatch.setattr(task, "objective_of", watched)
    options: dict[str, Any] = {"epochs": 1, "batch_size": 15, "max_time_s": 60.0}
    trained(tmp_path / "none", str(data), **options)
    assert seen and set(seen) == {None}
    trained(tmp_path / "balanced", str(data), **options, class_weights="balanced", loss="sigmoid")
    few, many = seen[-1].tolist()
    assert 6 * few == pytest.approx(24 * many) == pytest.approx(15)
