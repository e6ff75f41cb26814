"""What is random about a training picture: a table of numbers, a crop of each, a distortion of the batch.

Every random number comes from (seed, epoch, index of the picture) by a counter, so it is the same whatever
the number of workers, and any of them can be drawn without those before it.
"""

from __future__ import annotations

import math
from enum import IntEnum

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float32, Float64, Int64, Shaped, UInt8
from torch import Tensor

from vitrine.config.options import AugmentConfig, PreprocessConfig
from vitrine.config.policies import policy
from vitrine.images.cropping import GOOGLE_TRIES, TORCH_TRIES, google_box, torch_box
from vitrine.images.erasing import PER_PICTURE, erase
from vitrine.images.policy import PER_LAYER, augmented

NUM_DRAWS = 16
_WORDS = 4  # 64-bit numbers that Philox4x64 gives at one value of its counter
_LUMA = (0.299, 0.587, 0.114)  # ITU-R 601, as in `preprocess.convert`


class Draw(IntEnum):
    """Which column of a picture's draws decides what; the rest of the `NUM_DRAWS` is spare."""

    CROP_AREA = 0
    CROP_ASPECT = 1
    CROP_X = 2
    CROP_Y = 3
    FLIP = 4
    SHIFT_X = 5
    SHIFT_Y = 6
    ROTATE = 7
    ZOOM = 8
    BRIGHTNESS = 9
    CONTRAST = 10
    SATURATION = 11
    POLICY = 12  # these three begin a sequence of their own, see `more`
    ERASE = 13
    CROP = 14
    MASK = 15  # which patches are hidden, see `train.masked`


class Stream(IntEnum):
    """The regions of the counter, far apart, so that no two purposes share a number."""

    DRAWS = 0
    ORDER = 1
    MIXING = 2


def generator(seed: int, time: int, stream: Stream, skip: int = 0) -> np.random.Generator:
    """Random numbers of (seed, time), `time` being an epoch or a step, from `skip` counter values onward."""
    key = np.array([seed % 2**64, time % 2**64], np.uint64)
    philox = np.random.Philox(key=key, counter=np.array([0, 0, 0, stream], np.uint64))
    philox.advance(skip)
    return np.random.Generator(philox)


def draw_table(seed: int, epoch: int, num: int) -> Float64[np.ndarray, "n 16"]:
    """The draws of pictures 0 to `num` - 1 in an epoch: a row each, in [0, 1), columns as in `Draw`."""
    return generator(seed, epoch, Stream.DRAWS).random((num, NUM_DRAWS))


def draws(seed: int, epoch: int, index: int) -> Float64[np.ndarray, " 16"]:
    """Row `index` of `draw_table`, found without drawing the rows before it."""
    return generator(seed, epoch, Stream.DRAWS, index * NUM_DRAWS // _WORDS).random(NUM_DRAWS)


def more(draw: Float64[np.ndarray, " n"], num: int) -> Float64[np.ndarray, "n {num}"]:
    """`num` further uniform numbers in [0, 1) from each draw: SplitMix64 begun at its 53 bits (doi
    10.1145/2660193.2660195, figure 16)."""
    with np.errstate(over="ignore"):
        state = ((draw * 2.0**53).astype(np.uint64) << np.uint64(11))[:, None]
        z = state + np.arange(1, num + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    return (z >> np.uint64(11)) * 2.0**-53


def order(seed: int, epoch: int, indices: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
    """`indices` in the random order of an epoch."""
    keys = generator(seed, epoch, Stream.ORDER).random(len(indices))
    return indices[np.argsort(keys, kind="stable")]


def crop_box(
    size: tuple[int, int],
    target: tuple[int, int],
    draws: Float64[np.ndarray, " 16"],
    settings: AugmentConfig,
    *,
    squash: bool = False,
) -> tuple[int, int, int, int]:
    """The crop (left, top, width, height) of a picture of (height, width) `size`, in whole pixels.

    Its area is uniform in [crop_min_area, 1] of the picture, its aspect ratio over that of the (height,
    width) `target` log-uniform in [1 / crop_max_ratio, crop_max_ratio], its place uniform (arXiv:1409.4842,
    section 6). With `squash`, for a model that is given whole pictures stretched to its size, the aspect ratio
    is over the picture's own. A crop that would not fit is shrunk, its aspect ratio kept, where other code
    draws anew. With crop_min_area = 1: the largest centred crop of that aspect ratio. By convention `torch` or
    `google` it is `cropping`'s, whose aspect ratio is the crop's own. A `simple` crop has the aspect ratio of the
    target (with `squash` the picture's), and crop_min_area of the largest such crop; only its place is random.
    """
    height, width = size
    simple = settings.crop == "simple"
    if settings.crop_min_area < 1 and not simple and settings.convention != "own":
        box, tries = (torch_box, TORCH_TRIES) if settings.convention == "torch" else (google_box, GOOGLE_TRIES)
        numbers = more(draws[[Draw.CROP]], 4 * tries).reshape(tries, 4)
        return box(size, settings.crop_min_area, settings.crop_max_ratio, numbers)
    own = width / height if squash else target[1] / target[0]
    if simple:
        across = min(width, height * own) * math.sqrt(settings.crop_min_area)
        w, h = min(width, max(1, round(across))), min(height, max(1, round(across / own)))
        left = int(draws[Draw.CROP_X] * (width - w + 1))
        return left, int(draws[Draw.CROP_Y] * (height - h + 1)), w, h
    centred = settings.crop_min_area == 1
    area = settings.crop_min_area + draws[Draw.CROP_AREA] * (1 - settings.crop_min_area)
    spread = 0.0 if centred else math.log(settings.crop_max_ratio) * (2 * draws[Draw.CROP_ASPECT] - 1)
    aspect = own * math.exp(spread)
    crop_width = min(math.sqrt(area * width * height * aspect), width, height * aspect)
    w = min(width, max(1, round(crop_width)))
    h = min(height, max(1, round(crop_width / aspect)))
    if centred:
        return (width - w) // 2, (height - h) // 2, w, h
    left = int(draws[Draw.CROP_X] * (width - w + 1))
    return left, int(draws[Draw.CROP_Y] * (height - h + 1)), w, h


def random_crop(
    pixels: UInt8[np.ndarray, "H W C"],
    size: tuple[int, int],
    draws: Float64[np.ndarray, " 16"],
    settings: AugmentConfig,
    *,
    squash: bool = False,
) -> UInt8[Tensor, "C h w"]:
    """The `crop_box` of a picture brought to (height, width) `size`, bilinearly and smoothed (antialias)."""
    left, top, w, h = crop_box((pixels.shape[0], pixels.shape[1]), size, draws, settings, squash=squash)
    crop = torch.from_numpy(pixels[top : top + h, left : left + w].copy()).permute(2, 0, 1)
    if (h, w) == size:
        return crop.contiguous()
    resized = F.interpolate(crop[None], size=size, mode="bilinear", antialias=True, align_corners=False)
    return resized[0].contiguous()


def distort(
    images: UInt8[Tensor, "B C H W"],
    draws: Float64[Tensor, "B 16"] | Float64[np.ndarray, "B 16"],
    settings: AugmentConfig,
    preprocess: PreprocessConfig,
) -> Float32[Tensor, "B C H W"]:
    """The batch as the model is given it in training, on its device: mirrored, moved, with other colours, normalised,
    erased in part.

    Row i of `draws` belongs to picture i and decides it alone. What `settings` switches off is not computed;
    with all of it off the result is that of `preprocess.normalise`, bit for bit. A policy works on the bytes,
    after the mirroring and before all else (timm's order).
    """
    # A few numbers a picture: worked out in 64 bits, which some devices lack.
    table = torch.from_numpy(np.array(draws)) if isinstance(draws, np.ndarray) else draws.cpu()
    chosen = policy(settings.policy)
    mirrored = (table[:, Draw.FLIP] < 0.5).to(images.device) if settings.flip else None
    if chosen.kind != "none":
        images = images if mirrored is None else _flip(images, mirrored)
        numbers = more(table[:, Draw.POLICY].numpy(), chosen.layers * PER_LAYER).reshape(len(table), -1, PER_LAYER)
        images = augmented(images, chosen, settings.convention, numbers, preprocess.mean)
    x = images.float() / 255
    if settings.jitter:
        x = _jitter(x, table, settings.jitter)
    x = normalised(x, preprocess)
    if mirrored is not None and chosen.kind == "none":
        x = _flip(x, mirrored)
    if settings.shift or settings.rotate_deg or settings.zoom:
        x = _move(x, _affine(table, (images.shape[2], images.shape[3]), settings))
    if settings.erase:
        x = erase(x, settings.erase, more(table[:, Draw.ERASE].numpy(), PER_PICTURE))
    return x


def normalised(x: Float[Tensor, "B C H W"], preprocess: PreprocessConfig) -> Float[Tensor, "B C H W"]:
    """Pictures in [0, 1] less the mean, over the deviation."""
    return (x - _column(preprocess.mean, x)) / _column(preprocess.std, x)


def pixels_of(x: Float[Tensor, "B C H W"], preprocess: PreprocessConfig) -> Float[Tensor, "B C H W"]:
    """The way back: what was normalised, in [0, 1] again."""
    return x * _column(preprocess.std, x) + _column(preprocess.mean, x)


def _column(values: tuple[float, ...], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device)[:, None, None]


def _flip(x: Shaped[Tensor, "B C H W"], mirrored: Bool[Tensor, " B"]) -> Shaped[Tensor, "B C H W"]:
    return torch.where(mirrored[:, None, None, None], x.flip(-1), x)


def _jitter(x: Float32[Tensor, "B C H W"], table: Float64[Tensor, "B 16"], amount: float) -> Float32[Tensor, "B C H W"]:
    """Brightness, contrast and saturation scaled by factors in [1 - amount, 1 + amount], never below 0.

    In this order, cut to [0, 1] after each: x b; m + (x - m) c with m the mean of grey; g + (x - g) s with g
    the grey of each pixel.
    """

    def factor(column: Draw) -> Float32[Tensor, "B 1 1 1"]:
        scale = 1 + amount * (2 * table[:, column] - 1)
        return scale.clamp(min=0).float().to(x.device)[:, None, None, None]

    x = (x * factor(Draw.BRIGHTNESS)).clamp(0, 1)
    mean = grey(x).mean((1, 2, 3), keepdim=True)
    x = torch.lerp(mean.expand_as(x), x, factor(Draw.CONTRAST)).clamp(0, 1)
    if x.shape[1] == 1:
        return x
    return torch.lerp(grey(x).expand_as(x), x, factor(Draw.SATURATION)).clamp(0, 1)


def grey(x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B 1 H W"]:
    """One channel: 0.299 R + 0.587 G + 0.114 B (ITU-R 601), or the one there is."""
    if x.shape[1] == 1:
        return x
    weights = torch.tensor(_LUMA, dtype=x.dtype, device=x.device)[:, None, None]
    return (x * weights).sum(1, keepdim=True)


def _affine(table: Float64[Tensor, "B 16"], size: tuple[int, int], settings: AugmentConfig) -> Float32[Tensor, "B 2 3"]:
    """For each picture the map from where a pixel lands to where it comes from, in [-1, 1] coordinates.

    A picture is turned by an angle a (clockwise as seen) and scaled by z about its centre, then shifted by t:
    the source of the landing place p, both in pixels from the centre, is R(-a) (p - t) / z.
    """
    height, width = size
    either_way = 2 * table - 1
    shift = settings.shift * either_way[:, [Draw.SHIFT_X, Draw.SHIFT_Y]]  # as a share of the side
    angle = math.radians(settings.rotate_deg) * either_way[:, Draw.ROTATE]
    zoom = 1 + settings.zoom * either_way[:, Draw.ZOOM]
    cos, sin = angle.cos() / zoom, angle.sin() / zoom
    first = torch.stack([cos, sin * height / width], 1)
    second = torch.stack([-sin * width / height, cos], 1)
    turn = torch.stack([first, second], 1)
    offset = -turn @ (2 * shift)[:, :, None]
    return torch.cat([turn, offset], 2).float()


def _move(x: Float32[Tensor, "B C H W"], affine: Float32[Tensor, "B 2 3"]) -> Float32[Tensor, "B C H W"]:
    """The pictures sampled bilinearly where `affine` points; beyond the edge the nearest edge pixel."""
    grid = F.affine_grid(affine.to(x.device), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)
