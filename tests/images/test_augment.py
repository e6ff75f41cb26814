"""Random numbers that depend on seed, epoch and picture alone, and what is done to a picture with them."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from vitrine.config.options import AugmentConfig, PreprocessConfig
from vitrine.images.augment import (
    NUM_DRAWS,
    Draw,
    Stream,
    crop_box,
    distort,
    draw_table,
    draws,
    generator,
    order,
    random_crop,
)
from vitrine.images.preprocess import normalise

OFF = AugmentConfig()
RGB = PreprocessConfig(size=(16, 16), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
PLAIN = PreprocessConfig(size=(16, 16), mean=(0.0,) * 3, std=(1.0,) * 3)
GREY = PreprocessConfig(size=(16, 16), mean=(0.3,), std=(0.2,))
ALL = AugmentConfig(flip=True, shift=0.2, rotate_deg=20, zoom=0.2, jitter=0.4)


def batch(num: int = 5, channels: int = 3, height: int = 16, width: int = 16) -> Tensor:
    random = torch.Generator().manual_seed(3)
    return torch.randint(0, 256, (num, channels, height, width), dtype=torch.uint8, generator=random)


def middle(num: int, **changed: float) -> np.ndarray:
    """Draws that change nothing (0.5 everywhere is the middle of each range), but for the named columns."""
    table = np.full((num, NUM_DRAWS), 0.5)
    for name, value in changed.items():
        table[:, Draw[name.upper()]] = value
    return table


@pytest.mark.parametrize("seed", [0, 7, 2**63, 2**64 + 5])
def test_a_row_is_found_without_those_before_it(seed: int) -> None:
    table = draw_table(seed, 3, 50)
    assert table.shape == (50, NUM_DRAWS)
    for index in (0, 1, 2, 17, 49):
        assert np.array_equal(draws(seed, 3, index), table[index])


def test_draws_far_out() -> None:
    assert not np.array_equal(draws(0, 0, 10**12), draws(0, 0, 10**12 + 1))


def test_draws_are_uniform_and_differ_by_seed_epoch_and_picture() -> None:
    table = draw_table(1, 2, 4000)
    assert table.min() >= 0 and table.max() < 1
    assert np.abs(table.mean(0) - 0.5).max() < 0.03
    assert np.abs(table.var(0) - 1 / 12).max() < 0.005
    correlations = np.corrcoef(table.T) - np.eye(NUM_DRAWS)
    assert np.abs(correlations).max() < 0.08
    first = draws(1, 2, 0)
    for other in (draws(2, 2, 0), draws(1, 3, 0), draws(1, 2, 1), draws(2, 1, 0)):
        assert not np.intersect1d(first, other).size


def test_streams_share_no_number() -> None:
    seen = [generator(5, 1, stream).random(2000) for stream in Stream]
    assert len(np.unique(np.concatenate(seen))) == 2000 * len(Stream)


def test_the_numbers_stay_what_they_are() -> None:
    """Recorded once: a change here changes every training run."""
    assert draws(0, 0, 0)[:3].tolist() == [0.011546754286331562, 0.24154919656271812, 0.11142585551493822]
    assert order(0, 0, np.arange(8)).tolist() == [7, 4, 2, 6, 5, 0, 1, 3]


def test_order_is_a_permutation_of_its_own() -> None:
    indices = np.arange(100, 300)
    first = order(0, 0, indices)
    assert sorted(first) == indices.tolist()
    assert np.array_equal(first, order(0, 0, indices))
    for other in (order(1, 0, indices), order(0, 1, indices), indices):
        assert (first == other).mean() < 0.1
    assert np.array_equal(indices, np.arange(100, 300))


def test_order_is_uniform() -> None:
    places = np.stack([order(0, epoch, np.arange(4)) for epoch in range(4000)])
    counts = np.stack([(places == value).mean(0) for value in range(4)])
    assert np.abs(counts - 0.25).max() < 0.03


@pytest.mark.parametrize("size", [(300, 400), (400, 300), (64, 64), (50, 900), (1, 7)])
def test_crop_areas_and_ratios(size: tuple[int, int]) -> None:
    settings = AugmentConfig(crop_min_area=0.3, crop_max_ratio=4 / 3)
    height, width = size
    boxes = np.array([crop_box(size, (16, 16), row, settings) for row in draw_table(0, 0, 1500)])
    left, top, w, h = boxes.T
    assert (left >= 0).all() and (top >= 0).all() and (w >= 1).all() and (h >= 1).all()
    assert (left + w <= width).all() and (top + h <= height).all()
    if min(size) >= 64:
        area = w * h / (width * height)
        assert area.max() <= 1.02 and 0.28 < area.min() < 0.33
        ratio = w / h
        assert 0.72 < ratio.min() < 0.78 and 1.28 < ratio.max() < 1.38
    if size == (50, 900):
        assert (w / h).max() < 1.4, "what does not fit is shrunk, not stretched"
    if width > 40:
        assert len(np.unique(left)) > 20


@pytest.mark.parametrize("convention", ["own", "torch", "google"])
@pytest.mark.parametrize("size", [(120, 160), (200, 90), (64, 64)])
def test_a_simple_crop_is_the_largest_at_a_random_place(size: tuple[int, int], convention: Any) -> None:
    """The whole of the shorter side, as DeiT-III's simple random crop; all the randomness is in the place."""
    settings = AugmentConfig(crop="simple", crop_min_area=1.0, convention=convention)
    boxes = np.array([crop_box(size, (32, 32), row, settings) for row in draw_table(0, 0, 400)])
    side = min(size)
    assert (boxes[:, 2:] == side).all()
    for column, room in ((0, size[1] - side), (1, size[0] - side)):
        assert set(boxes[:, column]) == set(range(room + 1)) or len(set(boxes[:, column])) > 0.9 * min(400, room)
        assert boxes[:, column].min() >= 0 and boxes[:, column].max() <= room


def test_a_simple_crop_of_a_part_is_that_part_of_the_largest() -> None:
    """big_vision's resize to 448 and crop of 384: 6/7 of the side; with squash the picture keeps its aspect ratio."""
    settings = AugmentConfig(crop="simple", crop_min_area=(384 / 448) ** 2)
    row = draw_table(0, 0, 1)[0]
    left, top, w, h = crop_box((448, 700), (384, 384), row, settings)
    assert (w, h) == (384, 384)
    assert (left, top) == (int(row[Draw.CROP_X] * (700 - 384 + 1)), int(row[Draw.CROP_Y] * (448 - 384 + 1)))
    assert crop_box((448, 700), (384, 384), row, settings, squash=True)[2:] == (600, 384)


def test_crop_equals_the_formula() -> None:
    """Area 0.3 + 0.7 u of 200 x 100, ratio (4/3)^(2 v - 1), place by the last two draws."""
    row = middle(1, crop_area=0.1, crop_aspect=0.75, crop_x=0.25, crop_y=0.999)[0]
    area, ratio = (0.3 + 0.7 * 0.1) * 200 * 100, (4 / 3) ** 0.5
    w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
    wanted = (int(0.25 * (200 - w + 1)), 100 - h, w, h)
    assert crop_box((100, 200), (16, 16), row, AugmentConfig(crop_min_area=0.3)) == wanted


def test_the_ratio_is_that_of_the_target() -> None:
    settings = AugmentConfig(crop_min_area=0.2, crop_max_ratio=1.0)
    boxes = np.array([crop_box((300, 300), (16, 32), row, settings) for row in draw_table(0, 0, 300)])
    assert np.abs(boxes[:, 2] / boxes[:, 3] - 2).max() < 0.03


@pytest.mark.parametrize(
    ("size", "target", "box"),
    [
        ((30, 50), (16, 16), (10, 0, 30, 30)),
        ((50, 30), (16, 16), (0, 10, 30, 30)),
        ((40, 40), (16, 32), (0, 10, 40, 20)),
        ((16, 16), (16, 16), (0, 0, 16, 16)),
    ],
)
def test_no_random_crop_is_the_largest_centred_one(
    size: tuple[int, int], target: tuple[int, int], box: tuple[int, int, int, int]
) -> None:
    for row in draw_table(0, 0, 5):
        assert crop_box(size, target, row, OFF) == box


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(90, 120), (11, 13)])
def test_crop_is_pillows_resize_within_rounding(channels: int, size: tuple[int, int]) -> None:
    height, width = size
    pixels = batch(1, channels, height, width)[0].permute(1, 2, 0).numpy()
    row = draw_table(4, 0, 1)[0]
    settings = AugmentConfig(crop_min_area=0.5)
    result = random_crop(pixels, (24, 20), row, settings)
    left, top, w, h = crop_box(size, (24, 20), row, settings)
    crop = Image.fromarray(np.squeeze(pixels[top : top + h, left : left + w]))
    wanted = np.asarray(crop.resize((20, 24), Image.Resampling.BILINEAR)).reshape(24, 20, channels)
    assert result.is_contiguous()
    assert np.abs(result.permute(1, 2, 0).numpy().astype(int) - wanted).max() <= 1


def test_crop_takes_what_cannot_be_written() -> None:
    pixels = np.asarray(Image.new("RGB", (16, 16), (1, 2, 3)))
    assert not pixels.flags.writeable
    result = random_crop(pixels, (16, 16), draws(0, 0, 0), OFF)
    assert result[:, 5, 5].tolist() == [1, 2, 3]


@pytest.mark.parametrize(("channels", "settings"), [(3, RGB), (1, GREY)])
def test_all_off_is_normalise(channels: int, settings: PreprocessConfig) -> None:
    images = batch(4, channels)
    result = distort(images, draw_table(0, 0, 4), OFF, settings)
    wanted = [normalise(image.permute(1, 2, 0).numpy(), settings) for image in images]
    assert np.array_equal(result.numpy(), np.stack(wanted))


def test_flip_mirrors_the_drawn_pictures() -> None:
    images, table = batch(8), draw_table(0, 0, 8)
    result = distort(images, table, AugmentConfig(flip=True), RGB)
    plain = distort(images, table, OFF, RGB)
    mirrored = table[:, Draw.FLIP] < 0.5
    assert 0 < mirrored.sum() < 8
    for i in range(8):
        assert torch.equal(result[i], torch.flip(plain[i], [2]) if mirrored[i] else plain[i])


@pytest.mark.parametrize(("dx", "dy"), [(3, 0), (0, -2), (-4, 1)])
def test_a_whole_pixel_shift_moves_pixels(dx: int, dy: int) -> None:
    """Right by dx and down by dy of 20 x 16 pixels; the edge is repeated."""
    images = batch(2, 3, 16, 20)
    table = middle(2, shift_x=0.5 + dx / 20 / 0.5 / 2, shift_y=0.5 + dy / 16 / 0.5 / 2)
    result = distort(images, table, AugmentConfig(shift=0.5), PLAIN)
    rows = np.clip(np.arange(16) - dy, 0, 15)
    columns = np.clip(np.arange(20) - dx, 0, 19)
    wanted = images.float()[:, :, rows][:, :, :, columns] / 255
    assert (result - wanted).abs().max() < 1e-5


@pytest.mark.parametrize("size", [(16, 16), (17, 17)])
def test_a_quarter_turn_is_clockwise(size: tuple[int, int]) -> None:
    images = batch(2, 3, *size)
    result = distort(images, middle(2, rotate=1.0), AugmentConfig(rotate_deg=90), PLAIN)
    assert (result - torch.rot90(images, -1, (2, 3)) / 255).abs().max() < 1e-4


def test_a_half_turn_of_an_oblong_picture() -> None:
    images = batch(2, 3, 12, 20)
    result = distort(images, middle(2, rotate=1.0), AugmentConfig(rotate_deg=180), PLAIN)
    assert (result - images.flip(2, 3) / 255).abs().max() < 1e-4


def test_rotation_keeps_angles_in_an_oblong_picture() -> None:
    """A dot right of the centre of 21 x 41 pixels lands as far below it after a quarter turn."""
    images = torch.zeros(1, 3, 21, 41, dtype=torch.uint8)
    images[0, :, 10, 26] = 255
    result = distort(images, middle(1, rotate=1.0), AugmentConfig(rotate_deg=90), PLAIN)
    assert divmod(int(result[0, 0].argmax()), 41) == (16, 20)


def test_zoom_enlarges_about_the_centre() -> None:
    images = batch(1, 3, 16, 16)
    result = distort(images, middle(1, zoom=1.5), AugmentConfig(zoom=0.5), PLAIN)  # 1 + 0.5 x 2 = twice
    assert result.std() > 0
    coarse = images[0, 0].float() / 255
    # Twice as large, landing pixel i comes from 8 + (i + 0.5 - 8) / 2 - 0.5 = i / 2 + 3.75.
    wanted = 0.75 * (0.75 * coarse[4, 4] + 0.25 * coarse[4, 3]) + 0.25 * (0.75 * coarse[3, 4] + 0.25 * coarse[3, 3])
    assert float(result[0, 0, 0, 0]) == pytest.approx(float(wanted), abs=1e-5)


def slow_jitter(picture: np.ndarray, row: np.ndarray, amount: float) -> np.ndarray:
    """Brightness, contrast, saturation of one (3, H, W) picture in [0, 1], a step at a time."""
    scale = {name: 1 + amount * (2 * row[Draw[name]] - 1) for name in ("BRIGHTNESS", "CONTRAST", "SATURATION")}
    luma = np.array([0.299, 0.587, 0.114])
    x = np.clip(picture * scale["BRIGHTNESS"], 0, 1)
    mean = np.tensordot(luma, x, 1).mean()
    x = np.clip(mean + (x - mean) * scale["CONTRAST"], 0, 1)
    grey = np.tensordot(luma, x, 1)[None]
    return np.clip(grey + (x - grey) * scale["SATURATION"], 0, 1)


def test_jitter_equals_the_formula() -> None:
    images, table = batch(6), draw_table(9, 0, 6)
    result = distort(images, table, AugmentConfig(jitter=0.6), PLAIN).numpy()
    for i in range(6):
        wanted = slow_jitter(images[i].double().numpy() / 255, table[i], 0.6)
        assert np.abs(result[i] - wanted).max() < 1e-5


def test_jitter_of_grey_stays_in_range() -> None:
    plain = PreprocessConfig(size=(16, 16), mean=(0.0,), std=(1.0,))
    result = distort(batch(6, 1), draw_table(0, 0, 6), AugmentConfig(jitter=3.0), plain)
    assert result.shape == (6, 1, 16, 16)
    assert result.min() >= 0 and result.max() <= 1


@pytest.mark.parametrize("part", ["flip", "shift", "rotate_deg", "zoom", "jitter", None])
def test_a_picture_does_not_depend_on_its_batch(part: str | None) -> None:
    settings = ALL if part is None else dataclasses.replace(OFF, **{part: getattr(ALL, part)})
    images, table = batch(6), draw_table(0, 0, 6)
    together = distort(images, table, settings, RGB)
    for i in range(6):
        alone = distort(images[i : i + 1], table[i : i + 1], settings, RGB)
        assert (together[i] - alone[0]).abs().max() < 1e-5
    assert (together - distort(images, table, OFF, RGB)).abs().max() > 0.1


def test_the_middle_of_every_range_changes_nothing() -> None:
    settings = dataclasses.replace(ALL, flip=False)
    images = batch(3, 3, 16, 24)
    changed = distort(images, middle(3), settings, RGB) - distort(images, middle(3), OFF, RGB)
    assert changed.abs().max() < 1e-4


def test_draws_as_tensor_or_array_and_nothing_is_altered() -> None:
    images, table = batch(3), draw_table(0, 0, 3)
    before, table_before = images.clone(), table.copy()
    first = distort(images, table, ALL, RGB)
    assert torch.equal(first, distort(images, torch.from_numpy(table), ALL, RGB))
    table.setflags(write=False)
    assert torch.equal(first, distort(images, table, ALL, RGB))
    assert torch.equal(images, before) and np.array_equal(table, table_before)
