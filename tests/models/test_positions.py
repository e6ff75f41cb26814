"""Position embeddings: their kinds, where they are added, and their resizing."""

from __future__ import annotations

import math

import pytest
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
    torch.testing.assert_close(positions.sincos2d(grid, dim), torch.tensor(rows), rtol=0, atol=1e-6)


def test_sincos2d_follows_the_dtype_of_the_tokens() -> None:
    config = toy_config(pos_embed="sincos2d")
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        table = positions.table(config, None, (2, 3), torch.zeros(1, 6, 48, dtype=dtype))
        assert table is not None
        assert (table.dtype, table.shape) == (dtype, (1, 6, 48))


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
        "sincos2d": lambda: positions.sincos2d((4, 4), 48),
        "none": lambda: torch.zeros(16, 48),
    }[kind]()
    torch.testing.assert_close(added, expected, rtol=0, atol=1e-5)


def test_a_model_takes_the_convention_of_its_config() -> None:
    conventions = ({}, {"pos_antialias": False}, {"pos_align_corners": True}, {"pos_interpolation": "bilinear"})
    images = pictures(1, 3, 24, 40)
    made = [toy(**options).embed(images).detach() for options in conventions]
    for i, one in enumerate(made):
        for other in made[:i]:
            assert (one - other).abs().max() > 1e-3
