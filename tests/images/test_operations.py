"""Each operation of the policies against Pillow's, on grey and coloured pictures of several sizes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from torch import Tensor

from tests.parity.peers import timm
from vitrine.images.operations import Op, operate
from vitrine.images.policy import rotation

SIZES = [(32, 32), (33, 47), (3, 5), (64, 20)]
FILL = (100, 150, 200)


def pictures(channels: int, size: tuple[int, int]) -> Tensor:
    """Noise, a slope with a narrow range, one even grey, two levels only, and a smooth one with noise."""
    height, width = size
    random = np.random.default_rng(height)
    noise = random.integers(0, 256, (channels, height, width))
    slope = np.broadcast_to(np.linspace(40, 180, width).astype(int), (channels, height, width))
    even = np.full((channels, height, width), 77)
    two = np.where(noise < 100, 13, 250)
    smooth = (np.add.outer(np.arange(height), np.arange(width)) * 3 + noise // 16).clip(0, 255)
    return torch.from_numpy(np.stack([noise, slope, even, two, smooth]).astype(np.uint8))


def numbers(num: int, *given: float) -> Tensor:
    return torch.tensor([[*given, *[0.0] * (6 - len(given))]] * num, dtype=torch.float32)


def of_pillow(x: Tensor, change: Callable[[Image.Image], Image.Image]) -> Tensor:
    done = []
    for picture in x:
        array = picture.permute(1, 2, 0).squeeze(2).numpy() if len(picture) == 1 else picture.permute(1, 2, 0).numpy()
        result = np.asarray(change(Image.fromarray(array)))
        done.append(torch.from_numpy(np.array(result)).reshape(*picture.shape[1:], len(picture)).permute(2, 0, 1))
    return torch.stack(done)


def fill(channels: int) -> Tensor:
    return torch.tensor(FILL[:channels], dtype=torch.uint8)[:, None, None]


def difference(a: Tensor, b: Tensor) -> Tensor:
    return (a.int() - b.int()).abs()


PLAIN: list[tuple[Op, tuple[float, ...], Callable[[Image.Image], Image.Image], int]] = [
    (Op.IDENTITY, (), lambda p: p, 0),
    (Op.AUTOCONTRAST, (), ImageOps.autocontrast, 1),
    (Op.EQUALIZE, (), ImageOps.equalize, 0),
    (Op.INVERT, (), ImageOps.invert, 0),
    *[(Op.POSTERIZE, (bits,), lambda p, bits=bits: ImageOps.posterize(p, bits), 0) for bits in (1, 4, 7, 8)],
    *[(Op.SOLARIZE, (t,), lambda p, t=t: ImageOps.solarize(p, t), 0) for t in (0, 64, 127.5, 255, 256)],
    *[(Op.COLOR, (f,), lambda p, f=f: ImageEnhance.Color(p).enhance(f), 1) for f in (0, 0.01, 0.7, 1, 1.99)],
    *[(Op.CONTRAST, (f,), lambda p, f=f: ImageEnhance.Contrast(p).enhance(f), 1) for f in (0, 0.01, 0.7, 1, 1.99)],
    *[(Op.BRIGHTNESS, (f,), lambda p, f=f: ImageEnhance.Brightness(p).enhance(f), 1) for f in (0, 0.7, 1, 1.99, 2.8)],
    *[(Op.SHARPNESS, (f,), lambda p, f=f: ImageEnhance.Sharpness(p).enhance(f), 1) for f in (0, 0.3, 1, 1.99)],
    *[(Op.BLUR, (r,), lambda p, r=r: p.filter(ImageFilter.GaussianBlur(r)), 1) for r in (0.1, 0.5, 1, 1.6, 2)],
]  # fmt: skip

# Pillow's 64-bit scale times a difference may fall below a whole number, as that of the brightest pixels does.
OFTEN = {Op.AUTOCONTRAST: 0.3}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("op", "given", "theirs", "most"), PLAIN, ids=lambda value: getattr(value, "name", None))
def test_colours_are_pillows(
    op: Op,
    given: tuple[float, ...],
    theirs: Callable[[Image.Image], Image.Image],
    most: int,
    size: tuple[int, int],
    channels: int,
) -> None:
    x = pictures(channels, size)
    before = x.clone()
    result = operate(op, x, numbers(len(x), *given), fill(channels), smooth=True)
    apart = difference(result, of_pillow(x, theirs))
    assert apart.max() <= most
    assert (apart > 0).float().mean() < OFTEN.get(op, 0.02), "a grey level apart is the exception"
    assert torch.equal(x, before)


@pytest.mark.parametrize("add", [0, 55, 128, 220])
@pytest.mark.parametrize("channels", [1, 3])
def test_solarize_add_is_timms(channels: int, add: int) -> None:
    x = pictures(channels, (32, 32))
    result = operate(Op.SOLARIZE_ADD, x, numbers(len(x), add), fill(channels), smooth=True)
    assert torch.equal(result, of_pillow(x, lambda p: timm.data.auto_augment.solarize_add(p, add)))


MAPS = {
    "shear x": lambda H, W: (1, -0.3, 0, 0, 1, 0),
    "shear y": lambda H, W: (1, 0, 0, 0.99, 1, 0),
    "right": lambda H, W: (1, 0, -5.3, 0, 1, 0),
    "up": lambda H, W: (1, 0, 0, 0, 1, 7.25),
    "away": lambda H, W: (1, 0, 2 * W, 0, 1, 0),
    "turn": lambda H, W: tuple(rotation(np.array([29.0]), (H, W))[0]),
    "back": lambda H, W: tuple(rotation(np.array([-133.0]), (H, W))[0]),
}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("smooth", [True, False])
@pytest.mark.parametrize("name", MAPS)
def test_maps_are_pillows(name: str, smooth: bool, size: tuple[int, int], channels: int) -> None:
    """Bilinear to a grey level; in 64 bits a pixel in two hundred falls elsewhere."""
    height, width = size
    data = MAPS[name](height, width)
    x = pictures(channels, size)
    result = operate(Op.AFFINE, x, numbers(len(x), *data), fill(channels), smooth=smooth)
    way = Image.Resampling.BILINEAR if smooth else Image.Resampling.NEAREST
    filler = FILL[0] if channels == 1 else FILL
    wanted = of_pillow(x, lambda p: p.transform(p.size, Image.Transform.AFFINE, data, way, fillcolor=filler))
    assert (difference(result, wanted) > 1).float().mean() < 0.005


@pytest.mark.parametrize("degrees", [-135.0, -7.0, 30.0, 90.0, 180.0])
@pytest.mark.parametrize("size", SIZES)
def test_a_rotation_is_pillows(degrees: float, size: tuple[int, int]) -> None:
    x = pictures(3, size)
    data = torch.from_numpy(rotation(np.full(len(x), degrees), size)).float()
    result = operate(Op.AFFINE, x, data, fill(3), smooth=True)
    wanted = of_pillow(x, lambda p: p.rotate(degrees, Image.Resampling.BILINEAR, fillcolor=FILL))
    inner = difference(result, wanted)
    # Pillow turns by quarters without sampling: on our way a pixel of the edge may count as outside.
    assert (inner > 1).float().mean() < (0.12 if degrees in (90.0, 180.0) else 0.005)


def test_an_even_picture_stays_even_under_maps() -> None:
    x = torch.full((3, 3, 21, 17), 77, dtype=torch.uint8)
    data = torch.from_numpy(rotation(np.array([5.0, -20.0, 77.0]), (21, 17))).float()
    result = operate(Op.AFFINE, x, data, torch.full((3, 1, 1), 77, dtype=torch.uint8), smooth=True)
    assert torch.equal(result, x)


def test_no_bits_are_black() -> None:
    """Where timm's scale ends; Pillow refuses it since version 10."""
    assert not operate(Op.POSTERIZE, pictures(3, (8, 8)), numbers(5, 0), fill(3), smooth=True).any()


def test_googles_contrast_has_a_mean_of_its_own() -> None:
    """Of 224 x 224 pixels it is 196, whatever the picture."""
    x = torch.full((1, 3, 224, 224), 100, dtype=torch.uint8)
    result = operate(Op.FLAT_CONTRAST, x, numbers(1, 0.5), fill(3), smooth=False)
    assert result.unique().tolist() == [(196 + 100) // 2]


def test_cutout_is_a_square_cut_at_the_edge() -> None:
    x = torch.zeros(2, 3, 20, 30, dtype=torch.uint8)
    given = torch.tensor([[4.0, 0.5, 0.5, 0, 0, 0], [4.0, 0.0, 0.95, 0, 0, 0]])
    result = operate(Op.CUTOUT, x, given, fill(3), smooth=False)
    wanted = x.clone()
    wanted[0, :, 6:14, 11:19] = fill(3)
    wanted[1, :, 15:20, 0:4] = fill(3)
    assert torch.equal(result, wanted)


@pytest.mark.parametrize("op", [op for op in Op if op is not Op.IDENTITY])
def test_each_picture_for_itself(op: Op) -> None:
    """Together or alone, bit for bit, with numbers of its own."""
    x = pictures(3, (19, 23))
    given = torch.tensor([[1.3, 0.3], [1.8, 0.8], [1.2, 0.1], [1.7, 0.5], [1.9, 0.9]]).repeat(1, 3)
    if op is Op.AFFINE:
        given = torch.from_numpy(rotation(np.array([5.0, -20.0, 77.0, 130.0, 1.0]), (19, 23))).float()
    if op is Op.CUTOUT:
        given = torch.tensor([[2.0, 0.3, 0.8], [1.0, 0.5, 0.1], [3.0, 0.0, 0.9], [4.0, 0.9, 0.2], [1.0, 0.2, 0.2]])
        given = torch.nn.functional.pad(given, (0, 3))
    together = operate(op, x, given, fill(3), smooth=True)
    for i in range(len(x)):
        assert torch.equal(operate(op, x[i : i + 1], given[i : i + 1], fill(3), smooth=True)[0], together[i])
    assert op in (Op.POSTERIZE, Op.SOLARIZE_ADD) or not torch.equal(together, x)


def test_every_operation_is_tried() -> None:
    tried = {op for op, *_ in PLAIN} | {Op.SOLARIZE_ADD, Op.AFFINE, Op.FLAT_CONTRAST, Op.CUTOUT}
    assert tried == set(Op)
