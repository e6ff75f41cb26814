from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.made import small
from vitrine.config.options import AugmentConfig, Config, OptimConfig, PreprocessConfig
from vitrine.data.loader import Batch
from vitrine.models.vit import VisionTransformer
from vitrine.train.losses import losses, soft_targets, weighted_mean
from vitrine.train.objective import classify
from vitrine.train.optim import optimizer
from vitrine.train.step import at_step, inputs, train_step


def batch(n: int = 6, weights: list[float] | None = None, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    return Batch(
        images=torch.randint(0, 256, (n, 3, 16, 16), generator=generator, dtype=torch.uint8),
        labels=torch.arange(n) % 3,
        weights=torch.tensor(weights) if weights else torch.ones(n),
        index=torch.arange(n),
        draws=torch.rand(n, 16, generator=generator, dtype=torch.float64),
    )


def config(**options: Any) -> Config:
    made = {"model": small(), "preprocess": PreprocessConfig(size=(16, 16)), "label_smoothing": 0.2, **options}
    return Config(**made)


def step(model: VisionTransformer, one: Batch, settings: Config, **how: Any) -> Any:
    how = {"step": 0, "num_steps": 10, "dtype": None, "objective": classify(settings), **how}
    return train_step(model, optimizer(model, settings.optim), one, settings, **how)


def fresh(seed: int = 0) -> VisionTransformer:
    torch.manual_seed(seed)
    return VisionTransformer(small(weight_init="timm")).train()


def test_soft_targets_are_rows_that_sum_to_one() -> None:
    found = soft_targets(torch.tensor([2, 0]), 4, 0.2)
    torch.testing.assert_close(found, torch.tensor([[0.05, 0.05, 0.85, 0.05], [0.85, 0.05, 0.05, 0.05]]))
    assert torch.equal(soft_targets(torch.tensor([1]), 3, 0.0), torch.tensor([[0.0, 1.0, 0.0]]))


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_with_all_weights_one_the_loss_is_torchs_cross_entropy(smoothing: float) -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(7, 4, dtype=torch.float64), torch.arange(7) % 4
    found = losses(logits, soft_targets(labels, 4, smoothing).double()).mean()
    expected = F.cross_entropy(logits, labels, label_smoothing=smoothing)
    torch.testing.assert_close(found, expected, atol=5e-7, rtol=0)  # the targets are float32


def test_the_loss_is_the_mean_over_the_pictures_that_count() -> None:
    logits, targets = torch.randn(4, 3), soft_targets(torch.tensor([0, 1, 2, 0]), 3, 0.1)
    each = losses(logits, targets)
    torch.testing.assert_close(weighted_mean(each, torch.tensor([1.0, 0.0, 1.0, 0.0])), each[::2].mean())
    assert weighted_mean(each, torch.zeros(4)) == 0


def test_a_picture_of_weight_zero_changes_nothing() -> None:
    one = batch(weights=[1.0, 1.0, 0.0, 1.0, 1.0, 0.0])
    other = batch(weights=[1.0, 1.0, 0.0, 1.0, 1.0, 0.0])
    other.images[[2, 5]] = 0
    other.labels[[2, 5]] = torch.tensor([0, 1])
    first, second = fresh(), fresh()
    seen = [step(first, one, config()), step(second, other, config())]
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-7, rtol=0)
    assert seen[0].weight == 4
    torch.testing.assert_close(seen[0].loss, seen[1].loss)
    assert seen[0].correct == seen[1].correct


@pytest.mark.parametrize("name", ["sgd", "adamw", "lamb"])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_a_few_steps_bring_the_loss_of_a_batch_down(name: str, dtype: torch.dtype | None) -> None:
    optim = OptimConfig(name=name, lr={"sgd": 0.3, "adamw": 1e-2, "lamb": 1e-1}[name])  # type: ignore[arg-type]
    settings = config(optim=optim, label_smoothing=0.0)
    torch.manual_seed(0)
    model, one = VisionTransformer(small(global_pool="norm_then_avg")).train(), batch()
    one.images[:] = 100 * one.labels[:, None, None, None]
    made = optimizer(model, settings.optim)
    how: dict[str, Any] = {"num_steps": 40, "dtype": dtype, "objective": classify(settings)}
    losses = [float(train_step(model, made, one, settings, step=k, **how).loss) for k in range(20)]
    assert losses[-1] < 0.6 * losses[0]
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())


def test_one_step_is_the_literal_one() -> None:
    """Plain SGD without momentum: w - lr (clipped gradient + decay w)."""
    settings = config(optim=OptimConfig(name="sgd", lr=0.5, momentum=0.0, weight_decay=0.1, clip_norm=0.01))
    model, twin, one = fresh(), fresh(), batch()
    seen = step(model, one, settings)
    pixels = (one.images.float() / 255 - 0.5) / 0.5
    loss = F.cross_entropy(twin(pixels), one.labels, label_smoothing=0.2)
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in twin.named_parameters()}
    norm = torch.stack([g.norm() for g in gradients.values() if g is not None]).norm()
    assert norm > 0.1
    torch.testing.assert_close(seen.grad_norm, norm)
    torch.testing.assert_close(seen.loss, loss.detach() * 6)
    for (name, before), after in zip(twin.named_parameters(), model.parameters(), strict=True):
        decay = 0.1 if before.ndim >= 2 and name not in ("cls_token", "pos_embed") else 0.0
        gradient = gradients[name]
        assert gradient is not None
        torch.testing.assert_close(after, before - 0.5 * (gradient * 0.01 / norm + decay * before), atol=1e-6, rtol=0)


def test_the_learning_rate_is_that_of_the_step() -> None:
    settings = config(optim=OptimConfig(lr=1.0, warmup_steps=4))
    model = fresh()
    made = optimizer(model, settings.optim)
    train_step(model, made, batch(), settings, step=1, num_steps=10, dtype=None, objective=classify(settings))
    assert [group["lr"] for group in made.param_groups] == [0.5, 0.5]


def test_with_mixing_a_step_depends_on_its_number_and_the_seed_alone() -> None:
    settings = config(augment=AugmentConfig(mixup=0.5, cutmix=1.0, rotate_deg=10, shift=0.1))
    first, again, later = (step(fresh(), batch(), settings, step=k).loss for k in (3, 3, 4))
    assert first == again
    assert first != later


def test_the_last_share_of_the_steps_has_neither_mixing_nor_policy() -> None:
    augment = AugmentConfig(policy="trivial", mixup=0.4, cutmix=1.0, erase=0.5, flip=True, mix_off_share=0.3)
    late = AugmentConfig(erase=0.5, flip=True, mix_off_share=0.3)
    found = [at_step(augment, step, 20) for step in range(20)]
    assert found == [augment] * 14 + [late] * 6
    assert at_step(AugmentConfig(mixup=0.4), 19, 20).mixup == 0.4


def test_what_the_model_is_given_follows_the_share() -> None:
    one, cpu = batch(), torch.device("cpu")
    settings = config(augment=AugmentConfig(policy="rand-p1", cutmix=1.0, mix_off_share=0.5))
    plain = inputs(one, config(), 9, cpu, 10)
    late, early = inputs(one, settings, 5, cpu, 10), inputs(one, settings, 4, cpu, 10)
    assert torch.equal(late[0], plain[0]) and torch.equal(late[1], plain[1])
    assert not torch.equal(early[0], plain[0]) and not torch.equal(early[1], plain[1])
