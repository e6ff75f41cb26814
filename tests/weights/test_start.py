from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.made import bundle, small
from vitrine.config.architecture import ResNetConfig
from vitrine.errors import BadConfig
from vitrine.models import init as scheme
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
    assert any("first filter" in note for note in notes)


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


def test_a_model_without_a_head_gets_one_and_one_with_a_head_can_lose_it() -> None:
    bare = bundle(num_classes=0)
    model, notes = initialise(config_from(bare, ABC), ABC, bare)
    assert notes == ["head: fresh and zero, for 3 classes"]
    assert not model.head.weight.any() and torch.equal(model.state_dict()["norm.weight"], bare.tensors["norm.weight"])
    headed = bundle()
    model, notes = initialise(config_from(headed, ()), (), headed)
    assert notes == ["head: dropped, none is wanted"] and "head.weight" not in model.state_dict()
    assert initialise(bare.model, (), bare)[1] == ["head: none, as before"]


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
    assert config == replace(old.model, num_classes=len(names), representation_size=0, weight_init="jax")
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


STEM = ResNetConfig(layers=(), preact=False, padding="same", conv_eps=1e-5, conv_eps_at="std", norm_eps=1e-6)
HYBRID: dict[str, Any] = {"family": "hybrid", "patch_size": 1, "resnet": STEM}


def test_nothing_is_initialised_that_would_be_overwritten(monkeypatch: pytest.MonkeyPatch) -> None:
    old = bundle()

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("random numbers were drawn")

    state = torch.random.get_rng_state()
    for name in ("trunc_normal_", "normal_", "xavier_uniform_", "uniform_"):
        monkeypatch.setattr(scheme.nn.init, name, lambda x, *_, **__: x if x.is_meta else refuse())
    model, _ = initialise(config_from(old, ("x", "y")), ("x", "y"), old)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not any(x.is_meta for x in (*model.parameters(), *model.buffers()))
    assert model.training and all(x.requires_grad and x.dtype == torch.float32 for x in model.parameters())


def test_a_model_is_filled_without_torchs_compiler() -> None:
    # Drawing random numbers for tensors without storage imports it, which takes seconds.
    script = """
import sys
from tests.made import bundle
from vitrine.weights.start import initialise
for options in ({}, {"family": "resnet", "img_size": 32}):
    old = bundle(**options)
    initialise(old.model, old.class_names, old)
assert "torch._dynamo" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "options",
    [
        {"pos_embed": "rope2d", "pos_at": "layers"},
        {"pos_embed": "rel_bias2d", "pos_at": "layers_shared"},
        {"pos_embed": "learn2d"},
        {"family": "resnet", "resnet": ResNetConfig(layers=(1, 1))},
        HYBRID,
    ],
    ids=str,
)
def test_every_family_and_kind_of_positions_goes_on_at_another_size(options: dict[str, Any]) -> None:
    old = bundle(**options)
    model, _ = initialise(replace(old.model, img_size=(32, 24)), ABC, old)
    x = torch.randn(2, 3, 32, 24)
    torch.testing.assert_close(model.eval()(x), build(old)(x), atol=1e-5, rtol=0)


def test_other_patches_get_the_filter_resized_and_the_grid_kept() -> None:
    old = bundle()
    model, notes = initialise(replace(old.model, img_size=32, patch_size=8), ABC, old)
    assert any("4 to 8 by the pseudo-inverse" in note for note in notes)
    small_pictures = torch.randn(2, 3, 4, 4, 4, 4)  # (B, C, rows, columns, p, p): patches by themselves
    large = torch.nn.functional.interpolate(
        small_pictures.reshape(-1, 1, 4, 4), size=(8, 8), mode="bilinear", align_corners=False
    ).reshape(2, 3, 4, 4, 8, 8)
    before, after = (x.permute(0, 1, 2, 4, 3, 5).flatten(2, 3).flatten(3) for x in (small_pictures, large))
    torch.testing.assert_close(model.eval()(after), build(old)(before), atol=1e-5, rtol=0)


def test_the_cost_of_a_smaller_grid_without_training_is_not_said_where_training_follows() -> None:
    old = bundle()
    _, notes = initialise(replace(old.model, img_size=8), ABC, old)
    assert "positions: resized in 2-D from 4x4 to 2x2 patches" in notes
    assert not any("warning" in note for note in notes)


def test_positions_are_resized_by_the_convention_asked_for() -> None:
    old = bundle()
    options: dict[str, Any] = {"pos_interpolation": "bilinear", "pos_align_corners": True, "pos_antialias": False}
    model, _ = initialise(replace(old.model, img_size=32, **options), ABC, old)
    expected = positions.resize(
        old.tensors["pos_embed"], (4, 4), (8, 8), interpolation="bilinear", antialias=False, align_corners=True
    )
    assert torch.equal(model.state_dict()["pos_embed"], expected)


def test_both_heads_of_a_distilled_model_are_fresh_for_other_classes() -> None:
    old = bundle(distilled=True)
    model, notes = initialise(config_from(old, ("x", "y")), ("x", "y"), old)
    for head in (model.head, model.head_dist):
        assert head.weight.shape == (2, 16) and not head.weight.any() and not head.bias.any()
    assert torch.equal(model.dist_token, old.tensors["dist_token"])
    assert "head: fresh and zero, for 2 classes" in notes
    kept, _ = initialise(old.model, ABC, old)
    assert torch.equal(kept.head_dist.weight, old.tensors["head_dist.weight"])


def test_the_hidden_layer_is_kept_where_its_width_is_asked_for() -> None:
    old = bundle(representation_size=8)
    wanted = replace(old.model, num_classes=2)
    model, notes = initialise(wanted, ("x", "y"), old)
    assert torch.equal(model.pre_logits.fc.weight, old.tensors["pre_logits.fc.weight"])
    assert not model.head.weight.any()
    assert "head: fresh and zero, for 2 classes, on the hidden layer it had" in notes


@pytest.mark.parametrize("bias", [0.0, -10.0])
@pytest.mark.parametrize("scheme", ["jax", "timm"])
def test_a_fresh_head_begins_as_the_scheme_has_it_and_with_its_bias(scheme: str, bias: float) -> None:
    torch.manual_seed(0)
    old = bundle(distilled=True, embed_dim=64, head_bias=-3.0)
    going_on = config_from(old, ("x", "y"))
    assert going_on.head_bias == 0.0 and config_from(old, ABC).head_bias == -3.0
    model, notes = initialise(replace(going_on, weight_init=scheme, head_bias=bias), ("x", "y"), old)
    for head in (model.head, model.head_dist):
        assert head.weight.std().item() == pytest.approx(0.02 if scheme == "timm" else 0.0, rel=0.2)
        assert (head.bias == bias).all()
    plain = scheme == "jax" and not bias
    assert f"head: fresh and {'zero' if plain else 'small'}, for 2 classes" in notes


def test_a_hidden_layer_of_another_width_is_fresh() -> None:
    torch.manual_seed(0)
    old = bundle()
    model, notes = initialise(replace(old.model, num_classes=2, representation_size=64), ("x", "y"), old)
    assert model.pre_logits.fc.weight.std().item() == pytest.approx(16**-0.5, rel=0.1)
    assert not model.pre_logits.fc.bias.any() and not model.head.weight.any()
    assert "head: fresh and zero, for 2 classes, with a fresh hidden layer" in notes


@pytest.mark.parametrize(("had", "asked"), [(8, 0), (0, 8), (8, 4)])
def test_mistake_5_a_head_is_not_kept_without_the_hidden_layer_it_stands_on(had: int, asked: int) -> None:
    old = bundle(representation_size=had)
    with pytest.raises(BadConfig, match=rf"representation_size = {asked}: the head is kept.*hidden layer of {had}"):
        initialise(replace(old.model, representation_size=asked), ABC, old)


def test_mistake_14_a_head_of_as_many_classes_by_other_names_is_not_kept() -> None:
    old = bundle()
    model, _ = initialise(config_from(old, ("c", "b", "a")), ("c", "b", "a"), old)
    assert not model.head.weight.any()


def test_a_hybrids_root_takes_grey_pictures_and_coloured_ones() -> None:
    grey = bundle(**HYBRID, in_chans=1)
    model, notes = initialise(replace(grey.model, in_chans=3), ABC, grey)
    x = torch.randn(2, 1, 16, 16)
    # The group norm after the root takes out the scale that standardising the filters puts in.
    torch.testing.assert_close(model.eval()(x.expand(-1, 3, -1, -1)), build(grey)(x), atol=1e-3, rtol=0)
    coloured = bundle(**HYBRID)
    model, notes = initialise(replace(coloured.model, in_chans=1), ABC, coloured)
    key = "patch_embed.backbone.stem.conv.weight"
    assert torch.equal(model.state_dict()[key], coloured.tensors[key].sum(dim=1, keepdim=True))
    assert any("standardised" in note for note in notes)


def test_a_resnets_root_takes_grey_pictures() -> None:
    old = bundle(family="resnet", resnet=ResNetConfig(layers=(1,)))
    model, _ = initialise(replace(old.model, in_chans=1), ABC, old)
    assert model.state_dict()["stem.conv.weight"].shape[1] == 1
    assert model(torch.zeros(1, 1, 16, 16)).shape == (1, 3)


def test_half_precision_weights_train_in_float32() -> None:
    old = bundle()
    half = replace(old, tensors={name: x.half() for name, x in old.tensors.items()})
    model, _ = initialise(old.model, ABC, half)
    assert all(x.dtype == torch.float32 for x in model.parameters())
