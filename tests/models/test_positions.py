"""Position embeddings: their kinds, where they are added, and their resizing."""

from __future__ import annotations

import math

import pytest
import scipy.ndimage
import torch
import torch.nn.functional as F

from tests.models.toys import pictures, toy, toy_config
from vitrine.models import positions

CONVENTIONS = {
    "timm": {"antialias": True, "align_corners": False},
    "torchvision": {"antialias": False, "align_corners": True},
    "transformers": {"antialias": False, "align_corners": False},
}


@pytest.mark.parametrize("grid", [(3, 5), (4, 4), (1, 2)])
@pytest.mark.parametrize("dim", [4, 8, 48])
def test_sincos2d_against_a_double_loop(grid: tuple[int, int], dim: int) -> None:
    quarter, rows = dim // 4, []
    for y in range(grid[0]):
        for x in range(grid[1]):
            omega = [10000 ** (-i / (quarter - 1)) if quarter > 1 else 1.0 for i in range(quarter)]
            parts = [[f(side * o) for o in omega] for side in (x, y) for f in (math.sin, math.cos)]
            rows.append([value for part in parts for value in part])
    torch.testing.assert_close(
        positions.sincos2d(grid, dim), torch.tensor(rows, dtype=torch.float64), rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("grid", [(3, 5), (4, 4), (1, 2)])
@pytest.mark.parametrize("dim", [4, 8, 48])
def test_maes_sincos2d_against_a_double_loop(grid: tuple[int, int], dim: int) -> None:
    rows = []
    for y in range(grid[0]):
        for x in range(grid[1]):  # "here w goes first" (facebookresearch/mae, util/pos_embed.py)
            omega = [1 / 10000 ** (i / (dim / 4)) for i in range(dim // 4)]
            rows.append([f(side * o) for side in (x, y) for f in (math.sin, math.cos) for o in omega])
    expected = torch.tensor(rows, dtype=torch.float64)
    torch.testing.assert_close(positions.sincos2d_mae(grid, dim), expected, rtol=0, atol=1e-12)
    if dim > 4 and grid != (1, 2):
        assert (expected - positions.sincos2d(grid, dim)).abs().max() > 0.01


def test_sincos1d_is_that_of_the_transformer() -> None:
    made = positions.sincos1d(50, 512)
    assert made.shape == (50, 512)
    for place, i in ((0, 0), (1, 0), (7, 3), (49, 255)):
        angle = place / 10000 ** (2 * i / 512)
        assert made[place, 2 * i].item() == pytest.approx(math.sin(angle), abs=1e-12)
        assert made[place, 2 * i + 1].item() == pytest.approx(math.cos(angle), abs=1e-12)


@pytest.mark.parametrize("no_embed_class", [False, True])
def test_the_class_token_is_place_0_of_the_sequence(no_embed_class: bool) -> None:
    config = toy_config(pos_embed="sincos1d", no_embed_class=no_embed_class, reg_tokens=2)
    table = positions.table(config, None, (2, 3), torch.zeros(1, dtype=torch.float64))[0]
    made = positions.sincos1d(7, 48)
    assert not table[1:3].any()  # registers lie nowhere
    if no_embed_class:
        assert not table[0].any()
        assert torch.equal(table[3:], made[:6])
    else:
        assert torch.equal(table[[0, 3, 4, 5, 6, 7, 8]], made)


def test_learned_axes_are_joined_across_and_down() -> None:
    model = toy(pos_embed="learn2d", img_size=(16, 24), no_embed_class=True)
    table = model.pos_embed(model.config, (2, 3))[0]
    assert (model.pos_embed.x.shape, model.pos_embed.y.shape) == ((1, 3, 24), (1, 2, 24))
    for row in range(2):
        for column in range(3):
            expected = torch.cat([model.pos_embed.x[0, column], model.pos_embed.y[0, row]])
            assert torch.equal(table[row * 3 + column], expected)


@pytest.mark.parametrize("antialias", [False, True])
def test_learned_axes_are_resized_in_one_dimension(antialias: bool) -> None:
    model = toy(pos_embed="learn2d", pos_antialias=antialias)
    table = model.pos_embed(model.config, (2, 7))[0, 1:].unflatten(0, (2, 7))
    for axis, side, half in ((model.pos_embed.x, 7, table[0, :, :24]), (model.pos_embed.y, 2, table[:, 0, 24:])):
        # A picture whose rows are all alike is resized along the other axis alone.
        image = axis[0].T[None, :, None, :].expand(1, 24, 4, 4)
        wide = F.interpolate(image, size=(4, side), mode="bicubic", antialias=antialias)[0, :, 2]
        torch.testing.assert_close(half, wide.T, rtol=0, atol=1e-6)


def test_sincos2d_follows_the_dtype_of_the_tokens() -> None:
    config = toy_config(pos_embed="sincos2d")
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        table = positions.table(config, None, (2, 3), torch.zeros(1, 6, 48, dtype=dtype))
        assert table is not None
        assert (table.dtype, table.shape) == (dtype, (1, 7, 48))


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("mode", ["bicubic", "bilinear"])
@pytest.mark.parametrize(("old", "new"), [((4, 4), (6, 6)), ((4, 4), (2, 3)), ((3, 5), (4, 2)), ((3, 5), (7, 9))])
def test_resize_is_interpolate_and_keeps_the_prefix(
    convention: str, mode: str, old: tuple[int, int], new: tuple[int, int]
) -> None:
    how = CONVENTIONS[convention]
    for prefix in (0, 1, 2):
        learned = pictures(1, prefix + old[0] * old[1], 8)
        resized = positions.resize(learned, old, new, interpolation=mode, **how)
        assert torch.equal(resized[:, :prefix], learned[:, :prefix])
        image = learned[0, prefix:].T.reshape(1, 8, *old)
        expected = F.interpolate(image, size=new, mode=mode, **how)[0].reshape(8, -1).T
        torch.testing.assert_close(resized[0, prefix:], expected, rtol=0, atol=1e-6)


def test_the_conventions_differ() -> None:
    learned = pictures(1, 17, 8)
    made = [positions.resize(learned, (4, 4), (2, 3), **how) for how in CONVENTIONS.values()]
    made.append(positions.resize(learned, (4, 4), (2, 3), interpolation="bilinear"))
    for i, one in enumerate(made):
        for other in made[:i]:
            assert (one - other).abs().max() > 1e-2


@pytest.mark.parametrize(
    ("old", "new"), [((14, 14), (24, 24)), ((24, 24), (14, 14)), ((4, 4), (3, 7)), ((3, 5), (6, 2))]
)
def test_bilinear_with_corners_aligned_is_scipys_zoom_of_order_1(old: tuple[int, int], new: tuple[int, int]) -> None:
    """As the paper's code resizes positions (`vit_jax/checkpoint.py`, `interpolate_posembed`)."""
    learned = pictures(1, 1 + old[0] * old[1], 8, dtype=torch.float64)
    made = positions.resize(learned, old, new, interpolation="bilinear", align_corners=True)
    zoom = (new[0] / old[0], new[1] / old[1], 1)
    expected = scipy.ndimage.zoom(learned[0, 1:].reshape(*old, 8).numpy(), zoom, order=1)
    assert expected.shape == (*new, 8)
    torch.testing.assert_close(made[0, 1:], torch.from_numpy(expected).reshape(-1, 8), rtol=0, atol=1e-12)


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize(
    ("old", "new"), [((37, 37), (16, 16)), ((37, 37), (47, 21)), ((4, 4), (6, 5)), ((4, 4), (4, 7))]
)
def test_the_offset_is_that_of_dinov2(old: tuple[int, int], new: tuple[int, int], antialias: bool) -> None:
    """`interpolate_pos_encoding` of dinov2/models/vision_transformer.py: through the scale, not through the size."""
    learned = pictures(1, 1 + old[0] * old[1], 8)
    side = math.sqrt(old[0] * old[1])
    image = learned[:, 1:].reshape(1, int(side), int(side), 8).permute(0, 3, 1, 2)
    scale = float((new[0] + 0.1) / side), float((new[1] + 0.1) / side)
    expected = F.interpolate(image, scale_factor=scale, mode="bicubic", antialias=antialias)
    assert expected.shape[2:] == new
    made = positions.resize(learned, old, new, offset=0.1, antialias=antialias)
    assert torch.equal(made[:, :1], learned[:, :1])
    assert torch.equal(made[:, 1:], expected.permute(0, 2, 3, 1).flatten(1, 2))
    assert (made - positions.resize(learned, old, new, antialias=antialias)).abs().max() > 1e-3


@pytest.mark.parametrize("new", [(n, m) for n in range(1, 60, 7) for m in (1, 13, 59)])
def test_the_offset_never_changes_the_size(new: tuple[int, int]) -> None:
    for old in ((37, 37), (14, 14), (7, 9), (1, 1)):
        learned = pictures(1, old[0] * old[1], 2)
        assert positions.resize(learned, old, new, offset=0.1, antialias=False).shape == (1, new[0] * new[1], 2)


def test_every_layer_is_resized_alike() -> None:
    learned = pictures(3, 1 + 16, 8)
    made = positions.resize(learned, (4, 4), (5, 6))
    for layer in range(3):
        assert torch.equal(made[layer : layer + 1], positions.resize(learned[layer : layer + 1], (4, 4), (5, 6)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_resize_to_the_same_grid_changes_nothing(dtype: torch.dtype) -> None:
    learned = pictures(1, 16, 8, dtype=dtype)
    for how in CONVENTIONS.values():
        resized = positions.resize(learned, (2, 8), (2, 8), **how)
        torch.testing.assert_close(resized, learned, rtol=0, atol=1e-6 if dtype != torch.float64 else 1e-14)
    table = positions.table(toy_config(img_size=(16, 64), class_token=False, global_pool="norm_then_avg"),
                            learned, (2, 8), torch.zeros(1, 16, 8, dtype=dtype))  # fmt: skip
    assert table is not None
    assert torch.equal(table, learned)


def test_resize_reads_the_grid_row_by_row() -> None:
    learned = torch.arange(6.0).reshape(1, 6, 1)
    wide = positions.resize(learned, (2, 3), (2, 5), interpolation="bilinear", align_corners=True)
    torch.testing.assert_close(wide.flatten(), torch.tensor([0, 0.5, 1, 1.5, 2, 3, 3.5, 4, 4.5, 5]))


@pytest.mark.parametrize(
    ("overrides", "slots"),
    [
        ({}, 17),
        ({"no_embed_class": True}, 16),
        ({"class_token": False, "global_pool": "norm_then_avg"}, 16),
        ({"pos_embed": "sincos2d"}, 0),
        ({"pos_embed": "none"}, 0),
        ({"img_size": (16, 40)}, 11),
    ],
)
def test_the_number_of_learned_positions(overrides: dict[str, object], slots: int) -> None:
    model = toy(**overrides)
    assert positions.num_slots(model.config) == slots
    assert (0 if model.pos_embed is None else model.pos_embed.shape[1]) == slots


@pytest.mark.parametrize("no_embed_class", [False, True])
def test_what_the_class_token_is_given(no_embed_class: bool) -> None:
    model = toy(no_embed_class=no_embed_class)
    tokens = model.embed(pictures(2, 3, 32, 32))
    expected = model.cls_token[0, 0] + (0 if no_embed_class else model.pos_embed[0, 0])
    torch.testing.assert_close(tokens[:, 0], expected.expand(2, -1))


@pytest.mark.parametrize("kind", ["learn", "sincos2d", "none"])
def test_the_patches_are_given_their_positions(kind: str) -> None:
    model, images = toy(pos_embed=kind), pictures(1, 3, 32, 32)
    added = model.embed(images)[0, 1:] - model.patch_embed(images)[0]
    expected = {
        "learn": lambda: model.pos_embed[0, 1:],
        "sincos2d": lambda: positions.sincos2d((4, 4), 48).float(),
        "none": lambda: torch.zeros(16, 48),
    }[kind]()
    torch.testing.assert_close(added, expected, rtol=0, atol=1e-5)


def test_a_model_takes_the_convention_of_its_config() -> None:
    conventions = (
        {}, {"pos_antialias": False}, {"pos_align_corners": True}, {"pos_interpolation": "bilinear"},
        {"pos_offset": 0.1},
    )  # fmt: skip
    images = pictures(1, 3, 24, 40)
    made = [toy(**options).embed(images).detach() for options in conventions]
    for i, one in enumerate(made):
        for other in made[:i]:
            assert (one - other).abs().max() > 1e-3
