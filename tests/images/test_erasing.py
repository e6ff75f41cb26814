"""Random erasing against timm's limits, and boxes that other libraries draw for a crop."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch
from PIL import Image

from tests.parity.peers import timm
from vitrine.config.options import AugmentConfig
from vitrine.images.augment import crop_box, draw_table
from vitrine.images.erasing import PER_PICTURE, erase, erased_box


def boxes_of_timm(num: int, size: tuple[int, int]) -> np.ndarray:
    """(top, left, height, width) of what timm erases from pictures of ones: found by where noise is."""
    random.seed(0)
    erasing = timm.data.random_erasing.RandomErasing(1.0, mode="pixel", device="cpu")
    found = []
    for _ in range(num):
        noise = erasing(torch.full((1, *size), 9.0))[0] != 9
        rows, columns = noise.any(1).nonzero()[:, 0], noise.any(0).nonzero()[:, 0]
        found.append((rows[0], columns[0], len(rows), len(columns)))
    return np.array(found, float)


def test_boxes_are_timms() -> None:
    """Mean and deviation of place and size, and what fits both ways."""
    size = (40, 56)
    theirs = boxes_of_timm(3000, size)
    numbers = np.random.default_rng(0).random((3000, 10, 4))
    drawn = [erased_box(size, row) for row in numbers]
    ours = np.array([(box[1], box[0], box[3], box[2]) for box in drawn if box is not None], float)
    assert len(ours) == 3000
    assert np.abs(ours.mean(0) - theirs.mean(0)).max() < 0.8
    assert np.abs(ours.std(0) / theirs.std(0) - 1).max() < 0.06
    area = ours[:, 2] * ours[:, 3] / (40 * 56)
    assert 0.015 < area.min() < 0.04 and 0.3 < area.max() < 0.35
    assert (ours[:, 2] < 40).all() and (ours[:, 3] < 56).all()


def test_a_box_that_never_fits_is_none() -> None:
    assert erased_box((1, 500), np.random.default_rng(0).random((10, 4))) is None


def test_a_share_of_the_pictures_gets_normal_noise_in_one_box() -> None:
    x = torch.full((600, 3, 20, 20), 7.0)
    numbers = np.random.default_rng(1).random((600, PER_PICTURE))
    result = erase(x, 0.25, numbers)
    changed = (result != 7).flatten(1).any(1)
    assert 0.2 < changed.float().mean() < 0.3
    noise = result[result != 7]
    assert abs(float(noise.mean())) < 0.02 and float(noise.std()) == pytest.approx(1, abs=0.02)
    for picture in result[changed]:
        rows = (picture != 7).any(0).any(1).nonzero()
        columns = (picture != 7).any(0).any(0).nonzero()
        assert (picture[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] != 7).all()
    assert torch.equal(result[100:200], erase(x[100:200], 0.25, numbers[100:200]))
    assert torch.equal(erase(x, 0.0, numbers), x) and (x == 7).all()


def drawn(convention: str, size: tuple[int, int], num: int = 4000, least: float = 0.08) -> np.ndarray:
    settings = AugmentConfig(crop_min_area=least, convention=convention)  # type: ignore[arg-type]
    return np.array([crop_box(size, (224, 224), row, settings) for row in draw_table(5, 0, num)])


@pytest.mark.parametrize("size", [(300, 400), (120, 100), (64, 300)])
def test_torchs_crops_are_timms(size: tuple[int, int]) -> None:
    """Mean and deviation of place and size, over many draws; a strip falls back on its middle."""
    random.seed(0)
    picture = Image.new("L", size[::-1])
    crop = timm.data.transforms.RandomResizedCropAndInterpolation.get_params
    theirs = np.array([crop(picture, (0.08, 1.0), (3 / 4, 4 / 3)) for _ in range(4000)])[:, [1, 0, 3, 2]]
    ours = drawn("torch", size)
    spread = np.maximum(theirs.std(0), 1)
    assert (np.abs(ours.mean(0) - theirs.mean(0)) < 0.08 * spread).all()
    assert np.abs(ours.std(0) / spread - 1).max() < 0.06
    assert (ours[:, 0] + ours[:, 2] <= size[1]).all() and (ours[:, 1] + ours[:, 3] <= size[0]).all()


def test_torchs_last_resort() -> None:
    boxes = drawn("torch", (10, 400), 50, least=0.9)
    assert boxes.tolist() == [[(400 - 13) // 2, 0, 13, 10]] * 50


def test_googles_crops() -> None:
    """Aspect ratio uniform, height uniform between the limits, the area never below the least; a whole strip."""
    boxes = drawn("google", (300, 300), 6000, least=0.05)
    width, height = boxes[:, 2], boxes[:, 3]
    assert (width * height).min() >= 0.05 * 300 * 300
    ratios = width / height
    assert ratios.mean() == pytest.approx((3 / 4 + 4 / 3) / 2, abs=0.01)
    assert np.quantile(ratios, 0.25) == pytest.approx(0.75 + (4 / 3 - 0.75) / 4, abs=0.02)
    narrow = height[(width / height > 0.95) & (width / height < 1)]
    least = math.sqrt(0.05 * 300 * 300)
    assert narrow.mean() == pytest.approx((least + 300) / 2, rel=0.03)
    assert narrow.std() == pytest.approx((300 - least) / math.sqrt(12), rel=0.04)
    assert (boxes[:, 0] + width <= 300).all() and (boxes[:, 1] + height <= 300).all()
    assert drawn("google", (10, 400), 20, least=0.9).tolist() == [[0, 0, 400, 10]] * 20
