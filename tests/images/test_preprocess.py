"""Pictures to arrays: against Pillow step by step, and what must hold for any picture."""

from __future__ import annotations

import dataclasses
import math
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from PIL import Image

from vitrine.config.options import PreprocessConfig
from vitrine.errors import BadData
from vitrine.images.preprocess import (
    FILTERS,
    convert,
    normalise,
    pixels,
    preprocess,
    resized_size,
    view,
)

SMALL = PreprocessConfig(size=(24, 24))


def noise(width: int, height: int, channels: int = 3, seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)
    return Image.fromarray(values if channels == 3 else values[:, :, 0])


@pytest.mark.parametrize("name", FILTERS)
@pytest.mark.parametrize("size", [(31, 47), (47, 31), (24, 24), (200, 90), (7, 5)])
@pytest.mark.parametrize("crop_pct", [1.0, 0.875, 0.9])
def test_equals_resize_and_crop_step_by_step(name: str, size: tuple[int, int], crop_pct: float) -> None:
    """Shorter side to floor(24 / crop_pct), longer side in proportion and rounded down, centre crop."""
    settings = dataclasses.replace(SMALL, crop_pct=crop_pct, interpolation=name)
    picture = noise(*size)
    short = math.floor(24 / crop_pct)
    long = int(short * max(size) / min(size))
    wide, high = (short, long) if size[0] <= size[1] else (long, short)
    left, top = round((wide - 24) / 2), round((high - 24) / 2)
    cropped = picture.resize((wide, high), FILTERS[name]).crop((left, top, left + 24, top + 24))
    assert np.array_equal(pixels(picture, settings), np.asarray(cropped))


def test_imagenet_numbers() -> None:
    settings = PreprocessConfig(size=(224, 224), crop_pct=0.875)
    assert resized_size((640, 480), settings) == (341, 256)
    assert resized_size((480, 640), settings) == (256, 341)
    assert resized_size((640, 480), PreprocessConfig()) == (330, 248)
    assert resized_size((640, 480), PreprocessConfig(resize="squash")) == (224, 224)


def test_squash_is_one_resize() -> None:
    settings = PreprocessConfig(size=(20, 30), resize="squash", interpolation="bilinear")
    picture = noise(41, 17)
    wanted = np.asarray(picture.resize((30, 20), Image.Resampling.BILINEAR))
    assert np.array_equal(pixels(picture, settings), wanted)
    assert view(picture.size, settings) == (0, 0, 41, 17)


@pytest.mark.parametrize("resize", ["shorter", "squash"])
@pytest.mark.parametrize("name", FILTERS)
def test_a_picture_of_the_right_size_is_untouched(resize: str, name: str) -> None:
    settings = PreprocessConfig(size=(24, 30), crop_pct=1.0, resize=resize, interpolation=name)
    picture = noise(30, 24)
    assert np.array_equal(pixels(picture, settings), np.asarray(picture))


def test_normalise_equals_the_formula() -> None:
    settings = PreprocessConfig(size=(6, 5), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    values = np.random.default_rng(1).integers(0, 256, (6, 5, 3), dtype=np.uint8)
    result = normalise(values, settings)
    for c, (mean, std) in enumerate(zip(settings.mean, settings.std, strict=True)):
        for y in range(6):
            for x in range(5):
                assert result[c, y, x] == pytest.approx((values[y, x, c] / 255 - mean) / std, abs=1e-6)
    assert result.dtype == np.float32
    assert result.flags.c_contiguous and result.flags.writeable


def test_preprocess_is_normalised_pixels() -> None:
    picture = noise(50, 40)
    assert np.array_equal(preprocess(picture, SMALL), normalise(pixels(picture, SMALL), SMALL))
    assert preprocess(picture, SMALL).shape == (3, 24, 24)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_channels_follow_the_model(channels: int, mode: str) -> None:
    settings = PreprocessConfig(size=(8, 8), mean=(0.5,) * channels, std=(0.25,) * channels)
    picture = noise(20, 20).convert(mode)
    result = pixels(picture, settings)
    assert result.shape == (8, 8, channels)
    if channels == 3 and mode == "L":
        assert (result == result[:, :, :1]).all()


def test_grey_by_the_luma_of_601() -> None:
    values = np.asarray(noise(9, 9))
    grey = np.asarray(convert(Image.fromarray(values), 1)).astype(float)
    assert np.abs(grey - values @ [0.299, 0.587, 0.114]).max() <= 0.51


def test_convert_lays_transparency_over_white_and_refuses_floats() -> None:
    clear = Image.new("RGBA", (3, 3), (200, 0, 0, 0))
    assert np.asarray(convert(clear, 3)).min() == 255
    assert np.asarray(convert(clear, 1)).min() == 255
    with pytest.raises(BadData, match="floating-point"):
        convert(Image.new("F", (3, 3)), 1)


@given(
    width=st.integers(1, 300),
    height=st.integers(1, 300),
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    crop_pct=st.floats(0.3, 1.0),
    resize=st.sampled_from(["shorter", "squash"]),
    name=st.sampled_from(sorted(FILTERS)),
)
@hypothesis_settings(max_examples=120, deadline=None)
def test_any_picture(width: int, height: int, size: tuple[int, int], crop_pct: float, resize: str, name: str) -> None:
    """The size is the model's, the crop always fits, the view lies in the picture, one colour stays itself."""
    settings = PreprocessConfig(size=size, crop_pct=crop_pct, resize=resize, interpolation=name)
    wide, high = resized_size((width, height), settings)
    assert wide >= size[1] and high >= size[0]
    left, top, right, bottom = view((width, height), settings)
    assert 0 <= left < right <= width and 0 <= top < bottom <= height
    seen = pixels(Image.new("RGB", (width, height), (10, 200, 30)), settings)
    assert seen.shape == (*size, 3)
    assert (seen == [10, 200, 30]).all()


@given(width=st.integers(1, 2000), height=st.integers(1, 2000))
@hypothesis_settings(max_examples=200, deadline=None)
def test_the_view_has_the_shape_of_the_model(width: int, height: int) -> None:
    left, top, right, bottom = view((width, height), PreprocessConfig(size=(224, 224), crop_pct=0.875))
    across, down = right - left, bottom - top
    assert across / down == pytest.approx(1, rel=1 / 256)
    assert across == pytest.approx(min(width, height) * 0.875, rel=0.01)
    assert (left + right) / 2 == pytest.approx(width / 2, abs=width / 256)


@pytest.mark.parametrize("size", [(40, 120), (130, 44), (60, 60)])
def test_view_is_what_influences_the_result(size: tuple[int, int]) -> None:
    """A dot inside the box changes what the model sees; one beyond the reach of the filter does not."""
    settings = PreprocessConfig(size=(16, 16), crop_pct=0.8, interpolation="bilinear")
    width, height = size
    left, top, right, bottom = view(size, settings)
    reach = max((right - left) / 16, (bottom - top) / 16) + 1
    plain = pixels(Image.new("L", size), settings)
    inside = outside = 0
    for y in range(0, height, 3):
        for x in range(0, width, 3):
            dotted = Image.new("L", size)
            dotted.putpixel((x, y), 255)
            changed = not np.array_equal(pixels(dotted, settings), plain)
            if left + 1 <= x <= right - 2 and top + 1 <= y <= bottom - 2:
                assert changed
                inside += 1
            elif not (left - reach <= x <= right + reach and top - reach <= y <= bottom + reach):
                assert not changed
                outside += 1
    assert inside and (outside or size == (60, 60))


@pytest.mark.parametrize("size", [(2000, 3), (3, 2000), (40_000, 1), (1, 1)])
def test_a_ribbon_is_cheap_and_never_empty(size: tuple[int, int]) -> None:
    picture = noise(*size)
    tracemalloc.start()
    result = pixels(picture, PreprocessConfig(size=(32, 32)))
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()
    assert result.shape == (32, 32, 3)


@pytest.mark.parametrize("name", ["box", "bilinear", "hamming"])
def test_a_ribbon_equals_resize_and_crop(name: str) -> None:
    settings = PreprocessConfig(size=(24, 24), crop_pct=1.0, interpolation=name)
    ramp = np.linspace(0, 255, 600).astype(np.uint8)[None].repeat(20, 0)
    picture = Image.fromarray(ramp)
    wide, high = resized_size(picture.size, settings)
    assert wide > 10 * 24
    left = round((wide - 24) / 2)
    slow = picture.resize((wide, high), FILTERS[name]).crop((left, 0, left + 24, 24)).convert("RGB")
    assert np.abs(pixels(picture, settings).astype(int) - np.asarray(slow)).max() <= 1


def test_torch_is_not_needed() -> None:
    code = "import sys, vitrine.images.preprocess; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
