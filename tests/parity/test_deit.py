"""DeiT's recipe beside timm, which DeiT is written with: its model, optimiser, mixup, loss and schedule."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.config.test_recipes import settled
from tests.models.toys import randomise
from tests.parity.peers import timm, timm_vit
from vitrine.config.architecture import ModelConfig
from vitrine.config.options import Config
from vitrine.data.loader import Batch
from vitrine.models.vit import VisionTransformer
from vitrine.train import step as stepping
from vitrine.train.objective import classify
from vitrine.train.optim import learning_rate, optimizer

STEPS, B, K = 20, 16, 10
SIZE: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 3, "num_classes": K}


def deit(**model: Any) -> Config:
    """The recipe at its published numbers, with a small model and without stochastic depth, which is random."""
    config, _ = settled("deit")
    return replace(config, model=ModelConfig(**SIZE, drop_path_rate=0.0, weight_init="timm", **model), batch_size=B)


def models() -> tuple[nn.Module, VisionTransformer]:
    torch.manual_seed(0)
    peer = randomise(timm_vit(**SIZE)).train()
    ours = VisionTransformer(deit().model).train()
    ours.load_state_dict(peer.state_dict(), strict=True)
    return peer, ours


def timms(peer: nn.Module, config: Config) -> torch.optim.Optimizer:
    """The optimiser of `create_optimizer`, with the options of DeiT's main.py."""
    return timm.optim.create_optimizer_v2(peer, opt="adamw", lr=config.optim.lr, weight_decay=0.05, eps=1e-8)


def test_the_same_parameters_have_no_decay() -> None:
    peer, ours = models()
    config = deit()
    undecayed = []
    for model, made in ((peer, timms(peer, config)), (ours, optimizer(ours, config.optim))):
        names = {p: name for name, p in model.named_parameters()}
        assert {group["weight_decay"] for group in made.param_groups} == {0.0, 0.05}
        undecayed.append(
            {names[p] for group in made.param_groups if group["weight_decay"] == 0 for p in group["params"]}
        )
    assert undecayed[0] == undecayed[1]
    assert {"cls_token", "pos_embed", "blocks.0.norm1.weight", "head.bias"} < undecayed[0]


def test_twenty_steps_have_timms_losses(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same weights, mixed pictures and targets, at the rates of the recipe's warm-up made short."""
    peer, ours = models()
    config = deit()
    config = replace(config, optim=replace(config.optim, warmup_steps=5))
    theirs, made = timms(peer, config), optimizer(ours, config.optim)
    mixing = timm.data.Mixup(
        mixup_alpha=config.augment.mixup, cutmix_alpha=config.augment.cutmix, switch_prob=0.5, mode="batch",
        label_smoothing=config.label_smoothing, num_classes=K,
    )  # fmt: skip
    criterion, objective = timm.loss.SoftTargetCrossEntropy(), classify(config)
    np.random.seed(0)  # timm draws from the global generator
    random = torch.Generator().manual_seed(1)
    found, wanted = [], []
    for step in range(STEPS):
        pictures = torch.randn(B, 3, 32, 32, generator=random)
        labels = torch.randint(0, K, (B,), generator=random)
        images, targets = mixing(pictures.clone(), labels)
        for group in theirs.param_groups:
            group["lr"] = learning_rate(config.optim, step, STEPS)
        loss = criterion(peer(images), targets)
        theirs.zero_grad()
        loss.backward()
        theirs.step()
        wanted.append(loss.item())
        monkeypatch.setattr(
            stepping, "inputs", lambda *_, images=images, targets=targets: (images, targets, torch.ones(B))
        )
        batch = Batch(
            images=torch.zeros(B, 3, 32, 32, dtype=torch.uint8), labels=labels, weights=torch.ones(B),
            index=torch.arange(B), draws=torch.zeros(B, 16, dtype=torch.float64),
        )  # fmt: skip
        result = stepping.train_step(
            ours, made, batch, config, step=step, num_steps=STEPS, dtype=None, objective=objective
        )
        found.append(float(result.loss / result.weight))
    assert found == pytest.approx(wanted, abs=1e-5)
    assert max(wanted) - min(wanted) > 0.05
    mine = dict(ours.named_parameters())
    for name, parameter in peer.named_parameters():
        pairs = zip(mine[name].chunk(3), parameter.chunk(3), strict=True) if name.endswith("qkv.bias") else ()
        # A bias of the keys has no gradient but rounding, of which Adam makes whole steps.
        for found_part, wanted_part in [p for i, p in enumerate(pairs) if i != 1] or [(mine[name], parameter)]:
            torch.testing.assert_close(found_part, wanted_part, atol=1e-4, rtol=0)


@pytest.mark.parametrize("share", [0.2, 0.7])
def test_targets_of_a_mixed_batch_are_timms(share: float) -> None:
    """Smoothing before mixing, as here, and after it, as timm does, are the same."""
    from vitrine.images.mixing import mixup
    from vitrine.train.losses import soft_targets

    labels = torch.tensor([1, 3, 0, 2])
    ours = mixup(torch.zeros(4, 1, 1, 1), soft_targets(labels, 5, 0.1), share)[1]
    theirs = timm.data.mixup.mixup_target(labels, 5, share, 0.1)
    torch.testing.assert_close(ours, theirs)


PASSES, A_PASS = 300, 20


def rates(config: Config) -> list[float]:
    """Our rate at every step of 300 passes of 20 steps, 5 of them warm-up."""
    optim = replace(config.optim, warmup_steps=5 * A_PASS)
    return [learning_rate(optim, step, PASSES * A_PASS) for step in range(PASSES * A_PASS)]


def scheduler(config: Config, **more: Any) -> Any:
    made = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=config.optim.lr)
    usual = {"t_initial": PASSES, "lr_min": 1e-5, "warmup_t": 5, "warmup_lr_init": 1e-6}
    return timm.scheduler.CosineLRScheduler(made, **{**usual, **more})


def test_the_warm_up_is_timms_at_the_end_of_every_pass() -> None:
    config, made = deit(), scheduler(deit())
    ours = rates(config)
    for number in range(1, 5):
        assert ours[number * A_PASS - 1] == pytest.approx(made._get_lr(number)[0], rel=1e-12)
    assert ours[0] == pytest.approx(1e-6 + (1e-3 - 1e-6) / 100)


def test_the_cosine_is_timms_where_that_begins_after_the_warm_up() -> None:
    """timm's `warmup_prefix`, which DeiT does not set: so it is at most 1.6 % of the peak away, as the recipe says."""
    config, ours = deit(), rates(deit())
    after = scheduler(config, t_initial=PASSES - 5, warmup_prefix=True)
    for number in range(5, PASSES):
        assert ours[number * A_PASS] == pytest.approx(after._get_lr(number)[0], rel=1e-9)
    as_deit = scheduler(config)
    apart = max(abs(ours[n * A_PASS] - as_deit._get_lr(n)[0]) for n in range(5, PASSES)) / config.optim.lr
    assert 0.014 < apart < 0.016 and math.isclose(ours[-1], 1e-5, rel_tol=1e-2)
