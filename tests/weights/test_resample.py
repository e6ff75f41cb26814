"""Models at another size: positions by every convention, patch filters by the pseudo-inverse."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.made import bundle
from tests.parity.peers import timm
from vitrine.config.architecture import ResNetConfig
from vitrine.errors import BadConfig, UsageError
from vitrine.models.networks import network
from vitrine.weights.bundle import Bundle
from vitrine.weights.resample import COST, resize_filter, resize_matrix, resized

KINDS: list[dict[str, Any]] = [
    {"pos_embed": "learn"},
    {"pos_embed": "learn", "no_embed_class": True},
    {"pos_embed": "learn", "pos_at": "layers"},
    {"pos_embed": "learn", "pos_at": "layers_shared"},
    {"pos_embed": "learn", "pos_antialias": False, "pos_offset": 0.1},
    {"pos_embed": "learn", "pos_interpolation": "bilinear", "pos_align_corners": True},
    {"pos_embed": "learn2d"},
    {"pos_embed": "rel1d", "pos_at": "layers"},
    {"pos_embed": "rel_bias2d", "pos_at": "layers_shared"},
    {"pos_embed": "rel_shaw", "pos_at": "layers"},
    {"pos_embed": "rope2d", "pos_at": "layers"},
    {"pos_embed": "sincos2d"},
    {"pos_embed": "sincos1d"},
    {"pos_embed": "none"},
]
HYBRID: dict[str, Any] = {
    "family": "hybrid", "patch_size": 2, "img_size": 32,
    "resnet": {"layers": (), "preact": False, "padding": "same", "conv_eps": 1e-5, "conv_eps_at": "std"},
}  # fmt: skip


def hybrid(**overrides: Any) -> Bundle:
    return bundle(**{**HYBRID, "resnet": ResNetConfig(**HYBRID["resnet"]), **overrides})


def logits(config: Any, tensors: Any, x: torch.Tensor) -> torch.Tensor:
    """What a model of `config` and `tensors` says, loaded strictly."""
    model = network(config).eval()
    model.load_state_dict(tensors, strict=True)
    with torch.no_grad():
        return model(x)


@pytest.mark.parametrize("size", [(24, 24), (12, 20), (16, 16)], ids=str)
@pytest.mark.parametrize("options", KINDS, ids=str)
def test_a_resized_model_says_what_the_old_one_says_of_pictures_of_that_size(
    options: dict[str, Any], size: tuple[int, int]
) -> None:
    old = bundle(**options)
    x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
    config, tensors, notes = resized(old.model, old.tensors, size)
    assert config == replace(old.model, img_size=size)
    torch.testing.assert_close(logits(config, tensors, x), logits(old.model, old.tensors, x), atol=1e-5, rtol=0)
    learned = options["pos_embed"] in ("learn", "learn2d", "rel1d", "rel_bias2d")
    assert any("positions" in note for note in notes) == (learned and size != (16, 16))


def test_tensors_that_stay_are_not_copied_and_the_old_ones_are_left_alone() -> None:
    old = bundle()
    before = {name: x.clone() for name, x in old.tensors.items()}
    _, tensors, notes = resized(old.model, old.tensors)
    assert notes == () and all(tensors[name] is x for name, x in old.tensors.items())
    _, tensors, _ = resized(old.model, old.tensors, 32, 8)
    assert {name for name, x in tensors.items() if x is not old.tensors[name]} == {"patch_embed.proj.weight"}
    assert all(torch.equal(x, before[name]) for name, x in old.tensors.items())


def test_mistake_13_a_smaller_grid_is_warned_of_with_the_known_cost() -> None:
    old = bundle()
    assert f"warning: {COST}" in resized(old.model, old.tensors, 8)[2]
    assert "9.5 points" in COST and "issue 6" in COST
    assert not any("warning" in note for note in resized(old.model, old.tensors, 32)[2])
    # More pixels and more to a patch are fewer patches all the same.
    assert any("warning" in note for note in resized(old.model, old.tensors, 24, 8)[2])
    fixed = bundle(pos_embed="sincos2d")
    assert resized(fixed.model, fixed.tensors, 8)[2] == ()


def test_mistake_20_grids_that_are_no_squares_keep_their_rows_and_columns() -> None:
    old = bundle(img_size=(8, 32))  # 2 x 8 patches, as many as 4 x 4
    _, tensors, notes = resized(old.model, old.tensors, (16, 16))
    assert notes == ("positions: resized in 2-D from 2x8 to 4x4 patches",)
    image = old.tensors["pos_embed"][:, 1:].reshape(1, 2, 8, 16).permute(0, 3, 1, 2)
    expected = F.interpolate(image, size=(4, 4), mode="bicubic", antialias=True)
    torch.testing.assert_close(tensors["pos_embed"][:, 1:], expected.permute(0, 2, 3, 1).reshape(1, 16, 16))


@pytest.mark.parametrize(("old", "new"), [(4, 6), (6, 4), (16, 32), (32, 14), (16, 8), (3, 3)])
def test_the_pseudo_inverse_is_timms(old: int, new: int) -> None:
    weight = 0.1 * torch.randn(5, 3, old, old, generator=torch.Generator().manual_seed(0))
    theirs = timm.layers.resample_patch_embed(weight, [new, new], interpolation="bilinear", antialias=False)
    torch.testing.assert_close(resize_filter(weight, (new, new)), theirs, atol=1e-5, rtol=0)


def test_the_pseudo_inverse_is_that_of_the_whole_matrix() -> None:
    weight = torch.randn(2, 1, 4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    whole = np.linalg.pinv(np.kron(resize_matrix(4, 7).numpy(), resize_matrix(6, 5).numpy()).T)
    expected = torch.from_numpy(weight.flatten(2).numpy() @ whole.T).reshape(2, 1, 7, 5)
    torch.testing.assert_close(resize_filter(weight, (7, 5)), expected, atol=1e-10, rtol=0)


def test_a_larger_patch_gives_a_resized_picture_the_tokens_of_the_old_one() -> None:
    weight = torch.randn(5, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    patch = torch.randn(1, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    larger = F.interpolate(patch, size=(7, 7), mode="bilinear", align_corners=False)
    tokens = F.conv2d(larger, resize_filter(weight, (7, 7))).flatten()
    torch.testing.assert_close(tokens, F.conv2d(patch, weight).flatten(), atol=1e-10, rtol=0)
    # Resizing the filter as if it were a picture does not.
    naive = F.interpolate(weight, size=(7, 7), mode="bilinear", align_corners=False)
    assert (F.conv2d(larger, naive).flatten() - tokens).abs().max() > 1.0


def test_another_patch_size_keeps_the_grid_where_the_picture_grows_with_it() -> None:
    old = bundle()
    config, tensors, notes = resized(old.model, old.tensors, 32, 8)
    assert (config.grid, config.patch_size, tensors["patch_embed.proj.weight"].shape) == ((4, 4), 8, (16, 3, 8, 8))
    assert len(notes) == 1 and "4 to 8 by the pseudo-inverse" in notes[0]
    assert tensors["pos_embed"] is old.tensors["pos_embed"]
    config, tensors, notes = resized(old.model, old.tensors, None, 8)
    assert config.grid == (2, 2) and tensors["pos_embed"].shape[1] == 5 and len(notes) == 3


def test_in_a_hybrid_the_patches_lie_on_the_map() -> None:
    old = hybrid()
    assert old.model.grid == (4, 4)
    x = torch.randn(2, 3, 48, 40, generator=torch.Generator().manual_seed(1))
    config, tensors, _ = resized(old.model, old.tensors, (48, 40))
    assert config.grid == (6, 5)
    torch.testing.assert_close(logits(config, tensors, x), logits(old.model, old.tensors, x), atol=1e-5, rtol=0)
    config, tensors, _ = resized(old.model, old.tensors, None, 4)
    assert config.grid == (2, 2) and tensors["patch_embed.proj.weight"].shape == (16, 64, 4, 4)
    assert logits(config, tensors, torch.zeros(1, 3, 32, 32)).isfinite().all()


def test_sizes_that_do_not_fit_are_refused() -> None:
    old = bundle()
    with pytest.raises(BadConfig, match=r"img_size = 18: must be a multiple of .*4"):
        resized(old.model, old.tensors, 18)
    bare = {name: x for name, x in old.tensors.items() if name != "patch_embed.proj.weight"}
    with pytest.raises(UsageError, match=r"--model\.patch-size 8: a vit has no patches"):
        resized(old.model, bare, None, 8)


def test_the_dtype_stays() -> None:
    weight = torch.randn(2, 3, 4, 4).bfloat16()
    assert resize_filter(weight, (8, 8)).dtype == torch.bfloat16
