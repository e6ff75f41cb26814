"""The same random weights through timm's hybrids and BiT ResNets and ours, carried over by the rules of the formats."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.models.toys import pictures, randomise
from tests.parity.peers import timm, timm_vit
from vitrine.config.architecture import ModelConfig, ResNetConfig
from vitrine.config.models import HYBRIDS, named
from vitrine.models.cost import macs
from vitrine.models.networks import network
from vitrine.weights.formats.resnet_rules import network_rules, stem_config, stem_rules
from vitrine.weights.rules import Rule, give, same, take

CLOSE = {"rtol": 0, "atol": 1e-4}
THEIRS = "patch_embed.backbone."

SIZE: dict[str, Any] = {"embed_dim": 48, "depth": 2, "num_heads": 3, "mlp_ratio": 2.0, "num_classes": 5}


def theirs_hybrid(layers: tuple[int, ...], patch: int) -> torch.nn.Module:
    from timm.layers import HybridEmbed
    from timm.models.vision_transformer_hybrid import _resnetv2

    embed = partial(HybridEmbed, backbone=_resnetv2(layers=layers))
    return timm_vit(img_size=64, patch_size=patch, embed_layer=embed, dynamic_img_size=True, **SIZE)


def theirs_bit(layers: tuple[int, ...], width: int = 1) -> torch.nn.Module:
    from timm.layers import StdConv2d
    from timm.models.resnetv2 import ResNetV2

    channels = (256, 512, 1024, 2048)[: len(layers)]
    conv = partial(StdConv2d, eps=1e-8)
    model = ResNetV2(
        list(layers), channels=channels, num_classes=5, stem_type="fixed", conv_layer=conv, width_factor=width
    )
    return model.eval()


def hybrid_rules(peer: torch.nn.Module, config: ModelConfig) -> list[Rule]:
    rest = [same(name, name) for name in peer.state_dict() if not name.startswith(THEIRS)]
    return rest + stem_rules(config.resnet, "timm", THEIRS)


@pytest.mark.parametrize(("layers", "patch"), [((1, 2), 2), ((), 8), ((1, 1, 1), 1)])
@torch.no_grad()
def test_logits_of_hybrids_equal_timms(layers: tuple[int, ...], patch: int) -> None:
    torch.manual_seed(0)
    peer = randomise(theirs_hybrid(layers, patch))
    resnet = stem_config(peer.state_dict(), "timm", THEIRS)
    assert (resnet.layers, resnet.preact, resnet.padding) == (layers, False, "same")
    config = ModelConfig(family="hybrid", resnet=resnet, img_size=64, patch_size=patch, **SIZE)
    model = network(config).eval()
    rules = hybrid_rules(peer, config)
    model.load_state_dict(take(rules, peer.state_dict()).tensors, strict=True)
    for sides in ((64, 64), (96, 64), (32, 128)):
        images = pictures(2, 3, *sides)
        expected = peer(images)
        assert expected.std() > 0.05
        torch.testing.assert_close(model(images), expected, **CLOSE)
    back = give(rules, model.state_dict())
    assert back.keys() == peer.state_dict().keys()
    assert all(torch.equal(back[name], value) for name, value in peer.state_dict().items())


@pytest.mark.parametrize(("layers", "width"), [((1, 2), 1), ((1, 1, 1), 1), ((1,), 2)])
@torch.no_grad()
def test_logits_of_bit_equal_timms(layers: tuple[int, ...], width: int) -> None:
    torch.manual_seed(0)
    peer = randomise(theirs_bit(layers, width))
    resnet = stem_config(peer.state_dict(), "timm")
    assert resnet == ResNetConfig(layers=layers, width_factor=width, conv_eps=1e-8)
    config = ModelConfig(family="resnet", resnet=resnet, img_size=32, num_classes=5)
    model = network(config).eval()
    model.load_state_dict(take(network_rules(config, "timm"), peer.state_dict()).tensors, strict=True)
    for sides in ((32, 32), (96, 64)):
        images = pictures(2, 3, *sides)
        expected = peer(images)
        assert expected.std() > 0.05
        torch.testing.assert_close(model(images), expected, **CLOSE)


@torch.no_grad()
def test_timm_reads_the_npz_we_write(tmp_path: Path) -> None:
    """BiT's own names and shapes, by a reader that is not ours."""
    peer = theirs_bit((1, 1, 2, 1))
    config = ModelConfig(
        family="resnet", resnet=ResNetConfig(layers=(1, 1, 2, 1), conv_eps=1e-8), img_size=32, num_classes=5
    )
    torch.manual_seed(0)
    model = randomise(network(config)).eval()
    written = give(network_rules(config, "bit", "resnet/"), model.state_dict())
    np.savez(tmp_path / "bit.npz", **{name: value.numpy() for name, value in written.items()})
    peer.load_pretrained(str(tmp_path / "bit.npz"))
    images = pictures(2, 3, 64, 32)
    torch.testing.assert_close(peer(images), model(images), **CLOSE)


@pytest.mark.parametrize("name", ["resnetv2_50x1_bit", "resnetv2_101x3_bit", "resnetv2_152x4_bit"])
def test_named_resnets_have_timms_names_and_shapes(name: str) -> None:
    config = named(name)
    with torch.device("meta"):
        state, peer = network(config).state_dict(), timm.create_model(name).state_dict()
    found = take(network_rules(config, "timm"), peer).tensors
    assert {key: value.shape for key, value in found.items()} == {key: value.shape for key, value in state.items()}
    assert stem_config(peer, "timm").layers == config.resnet.layers


@pytest.mark.parametrize("name", ["resnetv2_50x1_bit", "resnetv2_152x2_bit"])
def test_operations_are_those_of_timms_convolutions(name: str) -> None:
    with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():
        timm.create_model(name).eval()(torch.empty(1, 3, 224, 224))
    assert counter.get_total_flops() == 2 * macs(named(name))


@pytest.mark.parametrize("name", ["vit_tiny_r_s16_p8_224", "vit_small_r26_s32_384"])
def test_named_hybrids_have_timms_names_and_shapes(name: str) -> None:
    config = named(name)
    assert config.resnet.layers == HYBRIDS[name.rpartition("_")[0]].layers
    with torch.device("meta"):
        state = network(config).state_dict()
    peer = timm.create_model(name)
    found = take(hybrid_rules(peer, config), peer.state_dict()).tensors
    assert {key: value.shape for key, value in found.items()} == {key: value.shape for key, value in state.items()}
