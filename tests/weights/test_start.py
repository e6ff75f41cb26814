from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.made import bundle, small
from vitrine.errors import BadConfig
from vitrine.models import positions
from vitrine.weights.bundle import build
from vitrine.weights.start import adapt_channels, config_from, initialise

ABC = ("a", "b", "c")


def test_without_a_model_to_start_from_the_weights_are_fresh() -> None:
    torch.manual_seed(0)
    model, notes = initialise(small(weight_init="timm"), ABC)
    assert notes == ["weights: fresh, the timm initialisation"]
    assert model.head.weight.any()


@pytest.mark.parametrize(("have", "wanted"), [(3, 1), (1, 3)])
def test_a_grey_picture_gives_the_same_tokens_with_other_channels(have: int, wanted: int) -> None:
    old = bundle(in_chans=have)
    model, notes = initialise(replace(old.model, in_chans=wanted), ABC, old)
    grey = torch.randn(2, 1, 16, 16)
    before = build(old).forward_features(grey.expand(-1, have, -1, -1))
    after = model.eval().forward_features(grey.expand(-1, wanted, -1, -1))
    torch.testing.assert_close(after, before, atol=1e-5, rtol=0)
    assert any("patch filter" in note for note in notes)


@pytest.mark.parametrize(("have", "wanted"), [(3, 4), (1, 4), (4, 3), (2, 1)])
def test_other_numbers_of_channels_are_refused(have: int, wanted: int) -> None:
    with pytest.raises(BadConfig, match=rf"model\.in_chans = {wanted}: a filter of {have} channels goes to 1 or 3"):
        adapt_channels(torch.ones(2, have, 4, 4), wanted)


def test_the_same_channels_leave_the_filter_alone() -> None:
    weight = torch.randn(2, 4, 3, 3)
    assert adapt_channels(weight, 4) == (weight, [])


def test_with_nothing_changed_everything_is_kept() -> None:
    old = bundle(representation_size=8)
    assert config_from(old, ABC) == old.model
    model, notes = initialise(old.model, ABC, old)
    assert notes == ["head: kept, the classes are the same"]
    assert all(torch.equal(tensor, old.tensors[name]) for name, tensor in model.state_dict().items())


def test_positions_are_resized_and_all_else_carried_over() -> None:
    old = bundle()
    wide = replace(old.model, img_size=(24, 32))
    model, notes = initialise(wide, ABC, old)
    assert "positions: resized in 2-D from 4x4 to 6x8 patches" in notes
    found = model.state_dict()
    expected = positions.resize(
        old.tensors["pos_embed"], (4, 4), (6, 8), interpolation="bicubic", antialias=True, align_corners=False
    )
    assert torch.equal(found.pop("pos_embed"), expected)
    assert all(torch.equal(tensor, old.tensors[name]) for name, tensor in found.items())


@pytest.mark.parametrize("names", [("a", "b", "d"), ("b", "a", "c"), ("a", "b"), ("w", "x", "y", "z")])
def test_other_classes_get_a_head_of_zeros_and_no_hidden_layer(names: tuple[str, ...]) -> None:
    old = bundle(representation_size=8, weight_init="timm")
    config = config_from(old, names)
    assert config == replace(old.model, num_classes=len(names), representation_size=0)
    model, notes = initialise(config, names, old)
    assert f"head: fresh and zero, for {len(names)} classes" in notes
    assert not model.head.weight.any() and not model.head.bias.any()
    assert model.head.weight.shape == (len(names), 16)
    assert not any(name.startswith("pre_logits") for name in model.state_dict())
    assert torch.equal(model.blocks[0].attn.qkv.weight, old.tensors["blocks.0.attn.qkv.weight"])


def test_sin_cos_positions_need_no_resizing() -> None:
    old = bundle(pos_embed="sincos2d")
    model, notes = initialise(replace(old.model, img_size=32), ABC, old)
    assert model(torch.randn(1, 3, 32, 32)).shape == (1, 3)
    assert not any("positions" in note for note in notes)


def test_another_architecture_is_refused_by_its_options() -> None:
    with pytest.raises(BadConfig) as caught:
        initialise(small(depth=2, act_layer="relu", img_size=32), ABC, bundle())
    said = str(caught.value)
    assert "depth = 2 (it has 1)" in said and "act_layer = 'relu' (it has 'gelu')" in said
    assert "img_size" not in said


def test_dropout_and_the_way_to_resize_are_free() -> None:
    old = bundle()
    free = replace(old.model, drop_rate=0.1, drop_path_rate=0.2, pos_interpolation="bilinear", weight_init="timm")
    model, _ = initialise(free, ABC, old)
    assert model.config == free


def test_the_model_to_start_from_is_left_as_it_was() -> None:
    old = bundle()
    before = {name: tensor.clone() for name, tensor in old.tensors.items()}
    model, _ = initialise(old.model, ABC, old)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert all(torch.equal(tensor, before[name]) for name, tensor in old.tensors.items())
