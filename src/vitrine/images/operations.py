"""The operations of augmentation policies, on batches of bytes, to the rounding of Pillow's.

Each is given n pictures and six numbers for each of them, changes no input, and treats every picture for itself:
what becomes of one does not depend on those beside it. Affine maps are worked out in 32 bits where Pillow has 64,
so a pixel may fall on the other side of a boundary. All else is Pillow's to one grey level: exactly but for a few
pixels, and where a stretch to the whole range ends.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from enum import IntEnum

import torch
import torch.nn.functional as F
from jaxtyping import Float32, Int32, UInt8
from torch import Tensor

Pictures = UInt8[Tensor, "n C H W"]
Numbers = Float32[Tensor, "n 6"]

NUM_ARGS = 6
LARGEST_RADIUS = 2.4
"""Of a blur, in pixels: three boxes of five pixels make it."""


class Op(IntEnum):
    """What is done to a picture; what its numbers are stands beside it. Those left over are 0."""

    IDENTITY = 0
    AUTOCONTRAST = 1
    EQUALIZE = 2
    INVERT = 3
    POSTERIZE = 4  # bits that stay
    SOLARIZE = 5  # level from which a pixel is inverted
    SOLARIZE_ADD = 6  # what is added to pixels below 128
    COLOR = 7  # factors: 0 is grey, all grey, black, blurred; 1 the picture
    CONTRAST = 8
    FLAT_CONTRAST = 9
    BRIGHTNESS = 10
    SHARPNESS = 11
    BLUR = 12  # deviation in pixels
    CUTOUT = 13  # half the side in pixels; place of the centre across and down, as shares
    AFFINE = 14  # Pillow's six: where from, x = a x + b y + c and y = d x + e y + f, in pixels from a corner


def operate(op: Op, x: Pictures, numbers: Numbers, fill: UInt8[Tensor, "C 1 1"], *, smooth: bool) -> Pictures:
    """The pictures after `op`. What comes from outside of a picture is `fill`; `smooth`: affine maps sample
    bilinearly, else the nearest pixel."""
    if op is Op.AFFINE:
        return affine(x, numbers, fill, smooth=smooth)
    if op is Op.CUTOUT:
        return cutout(x, numbers, fill)
    return _PLAIN[op](x, numbers)


def autocontrast(x: Pictures, numbers: Numbers) -> Pictures:
    """Each channel stretched to the whole range; Pillow, by 64-bit rounding, is at times 1 lower."""
    low, high = (end[:, :, None, None].float() for end in x.flatten(2).aminmax(dim=2))
    scale = torch.where(high > low, 255 / (high - low).clamp(min=1), 1.0)
    start = torch.where(high > low, low, 0.0)
    return x.float().sub_(start).mul_(scale).add_(1e-3).to(torch.uint8)  # a 255th part away from any other fraction


def equalize(x: Pictures, numbers: Numbers) -> Pictures:
    """Each channel by its own table, which makes its histogram flat; exactly Pillow's."""
    n, C, H, W = x.shape
    channel = 256 * torch.arange(n * C, device=x.device, dtype=torch.int32)[:, None]
    place = x.reshape(n * C, H * W).int() + channel
    histogram = torch.bincount(place.flatten(), minlength=256 * n * C).reshape(n * C, 256)
    last = histogram.gather(1, x.reshape(n * C, -1).amax(1, keepdim=True).long())
    step = (H * W - last) // 255
    table = ((step // 2 + histogram.cumsum(1) - histogram) // step.clamp(min=1)).clamp(max=255)
    table = torch.where(step > 0, table, torch.arange(256, device=x.device))
    return table.to(torch.uint8).flatten().index_select(0, place.flatten()).reshape(x.shape)


def invert(x: Pictures, numbers: Numbers) -> Pictures:
    """255 minus each pixel."""
    return 255 - x


def posterize(x: Pictures, numbers: Numbers) -> Pictures:
    """The uppermost bits of each pixel; black where none stays."""
    dropped = 2 ** (8 - numbers[:, 0].clamp(0, 8)).int()[:, None, None, None]
    return (x.int() & -dropped).to(torch.uint8)


def solarize(x: Pictures, numbers: Numbers) -> Pictures:
    """Pixels from the threshold on inverted."""
    return torch.where(x < _first(numbers), x, 255 - x)


def solarize_add(x: Pictures, numbers: Numbers) -> Pictures:
    """Pixels below 128 raised, to 255 at most."""
    added = _first(numbers).to(torch.uint8)
    return torch.where(x < 128, torch.minimum(x, 255 - added) + added, x)


def color(x: Pictures, numbers: Numbers) -> Pictures:
    """Between its grey and the picture, and beyond; a grey picture stays."""
    return x if x.shape[1] == 1 else _blend(_grey(x), x, numbers)


def contrast(x: Pictures, numbers: Numbers) -> Pictures:
    """Between the mean of its grey, rounded, and the picture, and beyond."""
    size = x.shape[2] * x.shape[3]
    mean = (2 * _grey(x).sum((2, 3), keepdim=True) + size) // (2 * size)
    return _blend(mean, x, numbers)


def flat_contrast(x: Pictures, numbers: Numbers) -> Pictures:
    """Google's: instead of the mean grey, a 256th of the number of pixels, 255 at most."""
    mean = min(255, x.shape[2] * x.shape[3] // 256)
    return _blend(torch.full((1, 1, 1, 1), mean, device=x.device), x, numbers)


def brightness(x: Pictures, numbers: Numbers) -> Pictures:
    """Between black and the picture, and beyond."""
    return _blend(torch.zeros((1, 1, 1, 1), device=x.device), x, numbers)


def sharpness(x: Pictures, numbers: Numbers) -> Pictures:
    """Between a blurred picture (5 for a pixel, 1 for its neighbours, over 13; the edge as it is) and itself."""
    if min(x.shape[2:]) < 3:
        return x
    y = x.short()
    rows = y[:, :, :-2] + y[:, :, 1:-1] + y[:, :, 2:]
    around = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:] + 4 * y[:, :, 1:-1, 1:-1]
    smooth = x.float()
    smooth[:, :, 1:-1, 1:-1] = around.float().div_(13).add_(0.5).floor_()
    return _blend(smooth, x, numbers)


def blur(x: Pictures, numbers: Numbers) -> Pictures:
    """Pillow's Gaussian blur, exactly: three boxes along and three down (doi 10.1007/978-3-642-24785-9_38).

    A box of radius l + a has 2 l + 1 whole pixels and a part of one more at either end. Weights are parts of 2^24,
    and each box is rounded.
    """
    variance = numbers[:, 0] ** 2 / 3
    whole = (((12 * variance + 1).sqrt() - 1) / 2).floor()
    part = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance) / (6 * (variance - (whole + 1) ** 2))
    full = (2**24 / (2 * (whole + part) + 1)).long()
    end = (2**24 - (2 * whole.long() + 1) * full) // 2
    missing = 2**24 - (2 * whole.long() + 1) * full - 2 * end
    # Of what is above 128 everything fits 32 bits.
    start = (2**23 - 128 * missing).int()[:, None, None, None]
    reach = math.ceil((math.sqrt(4 * LARGEST_RADIUS**2 + 1) - 1) / 2)
    distance = torch.arange(reach + 1, device=x.device)
    taps = torch.where(distance <= whole[:, None], full[:, None], end[:, None])
    taps = torch.where(distance > whole[:, None] + 1, 0, taps).int()[:, :, None, None, None]
    y = x.int() - 128
    for dim in (3, 2):
        length = y.shape[dim]
        for _ in range(3):
            ends = [y.narrow(dim, place, 1).expand(*_widened(y.shape, dim, reach)) for place in (0, length - 1)]
            wide = torch.cat([ends[0], y, ends[1]], dim)
            y = y * taps[:, 0] + start
            for k in range(1, reach + 1):
                pair = wide.narrow(dim, reach - k, length) + wide.narrow(dim, reach + k, length)
                y += pair.mul_(taps[:, k])
            y >>= 24
    return (y + 128).to(torch.uint8)


def _widened(shape: torch.Size, dim: int, length: int) -> list[int]:
    return [length if place == dim else side for place, side in enumerate(shape)]


def cutout(x: Pictures, numbers: Numbers, fill: UInt8[Tensor, "C 1 1"]) -> Pictures:
    """A square of `fill`, cut at the edges (arXiv:1708.04552)."""
    H, W = x.shape[2:]
    half = numbers[:, 0:1].floor()
    left, top = (numbers[:, 1:2] * W).floor() - half, (numbers[:, 2:3] * H).floor() - half
    columns, rows = torch.arange(W, device=x.device), torch.arange(H, device=x.device)
    across = (columns >= left) & (columns < left + 2 * half)
    down = (rows >= top) & (rows < top + 2 * half)
    return torch.where((down[:, :, None] & across[:, None, :])[:, None], fill, x)


def affine(x: Pictures, numbers: Numbers, fill: UInt8[Tensor, "C 1 1"], *, smooth: bool) -> Pictures:
    """Each pixel from where the map points, `fill` where that is outside; bilinear, or the nearest pixel."""
    n, C, H, W = x.shape
    a, b, c, d, e, f = (number[:, None, None] for number in numbers.unbind(1))
    across = torch.arange(W, device=x.device) + 0.5
    down = torch.arange(H, device=x.device)[:, None] + 0.5
    from_x, from_y = a * across + b * down + c, d * across + e * down + f
    inside = ((from_x >= 0) & (from_x < W) & (from_y >= 0) & (from_y < H))[:, None]
    if smooth:
        grid = torch.stack([from_x * (2 / W) - 1, from_y * (2 / H) - 1], 3)
        found = F.grid_sample(x.float(), grid, mode="bilinear", padding_mode="border", align_corners=False)
        found = (found + 1 / 256).clamp(max=255).to(torch.uint8)  # cut off as Pillow does, but no even grey darkened
    else:
        pixel = from_y.clamp(0, H - 1).long() * W + from_x.clamp(0, W - 1).long()
        found = x.flatten(2).gather(2, pixel.reshape(n, 1, H * W).expand(n, C, H * W)).reshape(x.shape)
    return torch.where(inside, found, fill)


def _first(numbers: Numbers) -> Float32[Tensor, "n 1 1 1"]:
    return numbers[:, 0, None, None, None]


def _blend(other: Tensor, x: Pictures, numbers: Numbers) -> Pictures:
    """other + (x - other) factor, cut to 0 to 255 and to a whole number."""
    start = other.float()
    return x.float().sub_(start).mul_(_first(numbers)).add_(start).clamp_(0, 255).to(torch.uint8)


def _grey(x: Pictures) -> Int32[Tensor, "n 1 H W"]:
    """Pillow's grey: ITU-R 601 in 16 bits, rounded."""
    if x.shape[1] == 1:
        return x.int()
    red, green, blue = x.int().unbind(1)
    return ((19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16)[:, None]


_PLAIN: dict[Op, Callable[[Tensor, Tensor], Tensor]] = {
    Op.IDENTITY: lambda x, numbers: x,
    Op.AUTOCONTRAST: autocontrast,
    Op.EQUALIZE: equalize,
    Op.INVERT: invert,
    Op.POSTERIZE: posterize,
    Op.SOLARIZE: solarize,
    Op.SOLARIZE_ADD: solarize_add,
    Op.COLOR: color,
    Op.CONTRAST: contrast,
    Op.FLAT_CONTRAST: flat_contrast,
    Op.BRIGHTNESS: brightness,
    Op.SHARPNESS: sharpness,
    Op.BLUR: blur,
}
