from __future__ import annotations

import numpy as np
import pytest

from vitrine.errors import BadData, UsageError
from vitrine.figures.heatmap import colours, enlarge, inside, normalise, overlay, shrink

RNG = np.random.default_rng(0)
PICTURE = RNG.integers(0, 256, (60, 90, 3), dtype=np.uint8)
PEAK = np.zeros((7, 7))
PEAK[5, 1] = 1.0


def colourful(pixels: np.ndarray) -> np.ndarray:
    return np.ptp(pixels.astype(int), axis=-1)


def test_keeps_the_pictures_size_and_leaves_it_untouched() -> None:
    before = PICTURE.copy()
    assert overlay(PICTURE, PEAK).shape == PICTURE.shape
    assert (before == PICTURE).all()


def test_outside_the_box_there_is_neither_colour_nor_the_old_brightness() -> None:
    drawn = overlay(PICTURE, PEAK, (15, 0, 75, 60))
    outside = np.concatenate([drawn[:, :15], drawn[:, 75:]], axis=1)
    before = np.concatenate([PICTURE[:, :15], PICTURE[:, 75:]], axis=1)
    assert colourful(outside).max() == 0
    assert outside.mean() < 0.5 * before.mean()
    assert colourful(drawn[:, 15:75]).max() > 100


def test_the_peak_is_drawn_where_the_patch_lies_within_the_box() -> None:
    grey = np.full((60, 90, 3), 128, np.uint8)
    drawn = overlay(grey, PEAK, (20, 4, 76, 60)).astype(int)
    row, column = np.unravel_index(drawn[..., 0].argmax(), drawn.shape[:2])
    assert abs(row - (4 + 5.5 * 8)) <= 4
    assert abs(column - (20 + 1.5 * 8)) <= 4


def test_strength_zero_is_the_grey_picture_and_strength_shows_the_colour_of_the_peak() -> None:
    assert colourful(overlay(PICTURE, PEAK, strength=0.0)).max() == 0
    grey = np.full((7, 7, 3), 128, np.uint8)
    np.testing.assert_allclose(overlay(grey, PEAK, strength=1.0)[5, 1], colours(np.ones((1, 1)))[0, 0], atol=1)


@pytest.mark.parametrize("value", [0.0, 0.3, 1e-20, 7.0])
def test_a_constant_map_is_drawn_as_zero(value: float) -> None:
    constant = np.full((4, 4), value) * (1 + 1e-9 * RNG.random((4, 4)))
    assert (normalise(constant) == 0).all()
    assert (overlay(PICTURE, constant) == overlay(PICTURE, np.zeros((4, 4)))).all()


def test_scale_and_shift_of_the_heat_do_not_matter() -> None:
    heat = RNG.random((5, 5)).astype(np.float32)
    assert (overlay(PICTURE, heat) == overlay(PICTURE, heat * 4 + 8)).mean() > 0.999
    assert normalise(heat).min() == 0
    assert normalise(heat).max() == 1


def test_enlarging_is_smooth_and_stays_within_bounds() -> None:
    large = enlarge(PEAK, 140, 140)
    assert large.min() >= 0
    assert large.max() <= 1
    assert np.abs(np.diff(large, axis=0)).max() < 0.15


def test_box_is_rounded_and_never_empty() -> None:
    assert inside(None, PICTURE) == (0, 0, 90, 60)
    assert inside((0.4, 0.4, 89.6, 59.7), PICTURE) == (0, 0, 90, 60)
    assert inside((90 - 0.3, 0.0, 90.0, 0.2), PICTURE) == (89, 0, 90, 1)


@pytest.mark.parametrize("box", [(-1, 0, 10, 10), (0, 0, 91, 60), (10, 0, 10, 60), (50, 0, 20, 60)])
def test_a_box_outside_the_picture_is_refused(box: tuple[float, float, float, float]) -> None:
    with pytest.raises(UsageError, match="90x60"):
        overlay(PICTURE, PEAK, box)


def test_heat_that_is_not_finite_and_strength_above_one_are_refused() -> None:
    with pytest.raises(BadData, match="not finite"):
        overlay(PICTURE, np.array([[0.0, np.nan]]))
    with pytest.raises(UsageError, match=r"strength = 1\.5"):
        overlay(PICTURE, PEAK, strength=1.5)


def test_shrinking_takes_the_box_along() -> None:
    picture = np.zeros((300, 600, 3), np.uint8)
    picture[100:200, 150:450] = 255
    small, box = shrink(picture, (150.0, 100.0, 450.0, 200.0), 60)
    assert small.shape == (30, 60, 3)
    assert box == pytest.approx((15, 10, 45, 20))
    left, top, right, bottom = map(round, box)
    assert small[top + 2 : bottom - 2, left + 2 : right - 2].min() > 250
    assert small[: top - 2].max() < 5 and small[:, right + 2 :].max() < 5
    for longest in (600, 601):
        same, kept = shrink(picture, (0.0, 0.0, 600.0, 300.0), longest)
        assert same is picture and kept == (0, 0, 600, 300)
    thin, box = shrink(np.zeros((3, 999, 3), np.uint8), (0.0, 0.0, 999.0, 3.0), 10)
    assert thin.shape == (1, 10, 3) and box == pytest.approx((0, 0, 10, 1))
    assert overlay(thin, np.eye(2), box).shape == thin.shape
