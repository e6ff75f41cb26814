"""Optimiser, groups and losses against timm's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from tests.made import small
from tests.parity.peers import timm, timm_vit
from vitrine.config.architecture import ModelConfig, ResNetConfig
from vitrine.config.options import OptimConfig
from vitrine.models.networks import network
from vitrine.models.vit import VisionTransformer
from vitrine.train.groups import layer_scales
from vitrine.train.losses import losses, soft_targets
from vitrine.train.optim import optimizer

VIT: dict[str, Any] = {
    "img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 3, "num_heads": 2, "mlp_ratio": 2.0, "num_classes": 3
}  # fmt: skip


@pytest.mark.parametrize("eps", [1e-6, 1e-8])
@pytest.mark.parametrize("decay", [0.0, 0.05, 0.5])
@pytest.mark.parametrize("size", [1e-3, 10.0])
def test_lamb_is_timms_step_for_step(eps: float, decay: float, size: float) -> None:
    """With gradients below norm 1, which timm does not clip, and far above, cut before ours as the step cuts them."""
    torch.manual_seed(0)
    ours = VisionTransformer(small(weight_init="timm", init_values=0.1))
    theirs = VisionTransformer(small(weight_init="timm", init_values=0.1))
    theirs.load_state_dict(ours.state_dict(), strict=True)
    config = OptimConfig(name="lamb", lr=0.02, weight_decay=decay, eps=eps)
    made = optimizer(ours, config)
    twin = dict(zip(ours.parameters(), theirs.parameters(), strict=True))
    groups = [{**group, "params": [twin[p] for p in group["params"]]} for group in made.param_groups]
    peer = timm.optim.Lamb(groups, lr=0.02, eps=eps)
    begun = [p.detach().clone() for p in ours.parameters()]
    for step in range(8):
        for p, q in twin.items():
            p.grad = size * torch.randn_like(p) * (1e-2 if size < 1 else 1)
            q.grad = p.grad.clone()
        norm = nn.utils.clip_grad_norm_(ours.parameters(), 1.0)
        assert (norm > 1) == (size > 1)
        for group in (*made.param_groups, *peer.param_groups):
            group["lr"] = 0.02 / (1 + step)
        made.step()
        peer.step()
        for p, q in twin.items():
            torch.testing.assert_close(p, q, atol=1e-6, rtol=1e-6)
    assert all((p - was).abs().max() > 1e-4 for p, was in zip(ours.parameters(), begun, strict=True))


LAYERED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "token": ({}, {}),
    "mean, then norm": ({"global_pool": "avg"}, {"global_pool": "avg_then_norm"}),
    "registers and LayerScale": ({"reg_tokens": 2, "init_values": 0.1}, {"reg_tokens": 2, "init_values": 0.1}),
    "norm before": ({"pre_norm": True}, {"pre_norm": True}),
    "attention pooling": ({"global_pool": "map"}, {"global_pool": "map"}),
}


@pytest.mark.parametrize("name", LAYERED)
def test_the_layers_and_their_decay_are_timms(name: str) -> None:
    theirs, ours = LAYERED[name]
    peer, model = timm_vit(**VIT, **theirs), VisionTransformer(ModelConfig(**VIT, **ours))
    options = {"weight_decay": 0.3, "layer_decay": 0.7, "no_weight_decay_list": [*peer.no_weight_decay(), "reg_token"]}
    wanted = timm.optim.param_groups_layer_decay(peer, **options)
    names = {p: name for name, p in peer.named_parameters()}
    expected = {names[p]: (g["lr_scale"], g["weight_decay"]) for g in wanted for p in g["params"]}
    names = {p: name for name, p in model.named_parameters()}
    made = optimizer(model, OptimConfig(weight_decay=0.3, layer_decay=0.7))
    found = {names[p]: (g["scale"], g["weight_decay"]) for g in made.param_groups for p in g["params"]}
    found = {name: pair for name, pair in found.items() if name in expected}
    if name == "attention pooling":  # timm decays the query, which is no matrix
        assert expected.pop("attn_pool.latent") == (1.0, 0.3) and found.pop("attn_pool.latent") == (1.0, 0.0)
    assert len(found) > 40 and found.keys() == expected.keys()
    for parameter, pair in expected.items():
        assert found[parameter] == pytest.approx(pair), parameter


def test_the_units_of_a_resnet_are_its_layers_as_they_are_timms() -> None:
    peer = timm.create_model("resnetv2_50x1_bit", num_classes=3)
    ours = network(ModelConfig(family="resnet", resnet=ResNetConfig(), num_classes=3, img_size=64))
    names = {p: name for name, p in peer.named_parameters()}
    groups = timm.optim.param_groups_layer_decay(peer, layer_decay=0.8)
    expected = {names[p]: group["lr_scale"] for group in groups for p in group["params"]}
    # Its head is a convolution named head.fc.
    expected = {name.replace("head.fc.", "head."): scale for name, scale in expected.items()}
    assert layer_scales(ours, 0.8) == pytest.approx(expected)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("kind", ["bce", "sigmoid"])
@pytest.mark.parametrize("weighted", [False, True])
def test_both_losses_of_sigmoids_are_timms(smoothing: float, kind: str, weighted: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    logits, labels = 3 * torch.randn(7, 5, generator=generator), torch.arange(7) % 5
    weights = torch.rand(5, generator=generator) + 0.5 if weighted else None
    options = {"smoothing": smoothing, "sum_classes": kind == "sigmoid", "weight": weights}
    found = losses(logits, soft_targets(labels, 5, smoothing), kind, class_weights=weights)  # type: ignore[arg-type]
    torch.testing.assert_close(found.mean(), timm.loss.BinaryCrossEntropy(**options)(logits, labels))
    mixed = 0.3 * soft_targets(labels, 5, smoothing) + 0.7 * soft_targets(labels.flip(0), 5, smoothing)
    for threshold in (None, 0.2, 0.5):
        peer = timm.loss.BinaryCrossEntropy(**options, target_threshold=threshold)
        found = losses(logits, mixed, kind, threshold=threshold, class_weights=weights)  # type: ignore[arg-type]
        torch.testing.assert_close(found.mean(), peer(logits, mixed))
