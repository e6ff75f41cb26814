"""A picture to the array a model is given: one function for evaluation, prediction and explanation.

It needs numpy and Pillow alone, so every runtime gets the same bytes.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image

from vitrine.config.options import PreprocessConfig
from vitrine.images.decode import flatten

FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "hamming": Image.Resampling.HAMMING,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
LONGEST = 10
Box = tuple[float, float, float, float]


def preprocess(picture: Image.Image, settings: PreprocessConfig) -> Float32[np.ndarray, "C H W"]:
    """The array a model is given: resized, cropped, scaled to [0, 1] and normalised; C-contiguous."""
    return normalise(pixels(picture, settings), settings)


def pixels(picture: Image.Image, settings: PreprocessConfig) -> UInt8[np.ndarray, "H W C"]:
    """What the model sees as a picture: the same as `preprocess` before scaling and normalising.

    Resized to `resized_size`, then the centre is cropped. Where the resized picture would be more than ten
    times as long as what is kept of it, Pillow computes only the part that is kept (alike up to rounding and
    the order of its two passes), so that a ribbon of a picture costs no more than a square one.
    """
    picture = convert(picture, settings.channels)
    height, width = settings.size
    wide, high = resized_size(picture.size, settings)
    kind = FILTERS[settings.interpolation]
    if wide > LONGEST * width or high > LONGEST * height:
        seen = picture.resize((width, height), kind, box=view(picture.size, settings))
    else:
        left, top = _start(wide, width), _start(high, height)
        seen = picture.resize((wide, high), kind).crop((left, top, left + width, top + height))
    return np.array(seen).reshape(height, width, settings.channels)


def normalise(pixels: UInt8[np.ndarray, "H W C"], settings: PreprocessConfig) -> Float32[np.ndarray, "C H W"]:
    """(pixels / 255 - mean) / std in 32 bits, channels first; C-contiguous."""
    scaled = pixels.transpose(2, 0, 1).astype(np.float32, order="C") / np.float32(255)
    mean = np.array(settings.mean, np.float32)[:, None, None]
    std = np.array(settings.std, np.float32)[:, None, None]
    return (scaled - mean) / std


def convert(picture: Image.Image, channels: int) -> Image.Image:
    """The picture in mode "L" for 1 channel and "RGB" for 3; grey is 0.299 R + 0.587 G + 0.114 B (ITU-R 601).

    Takes a picture of any mode: what is transparent is laid over white, as in `decode`.
    """
    mode = "L" if channels == 1 else "RGB"
    if picture.mode not in ("L", "RGB") or picture.has_transparency_data:
        picture = flatten(picture)
    return picture if picture.mode == mode else picture.convert(mode)


def resized_size(size: tuple[int, int], settings: PreprocessConfig) -> tuple[int, int]:
    """Width and height that a picture of width and height `size` is resized to before the centre is cropped.

    `squash` gives the model's size. `shorter` keeps the aspect ratio: the picture just covers the model's
    size over `crop_pct`, both rounded down, as timm does.
    """
    height, width = settings.size
    if settings.resize == "squash":
        return width, height
    cover_width, cover_height = int(width / settings.crop_pct), int(height / settings.crop_pct)
    if cover_width * size[1] >= cover_height * size[0]:
        return cover_width, cover_width * size[1] // size[0]
    return cover_height * size[0] // size[1], cover_height


def view(size: tuple[int, int], settings: PreprocessConfig) -> Box:
    """The box (left, top, right, bottom) of a picture of (width, height) `size` that the model gets to see.

    In pixels of the picture; the whole of it for `squash`. The filter of the resize looks a little
    further, as it does when the whole picture is resized.
    """
    height, width = settings.size
    wide, high = resized_size(size, settings)
    left, right = _span(size[0], wide, width)
    top, bottom = _span(size[1], high, height)
    return left, top, right, bottom


def _start(resized: int, crop: int) -> int:
    """Where a centred crop begins; a half pixel is rounded to the even side, as timm and torchvision do."""
    return round((resized - crop) / 2)


def _span(length: int, resized: int, crop: int) -> tuple[float, float]:
    """Both ends of the centred `crop` of a side `resized` from `length`, in pixels of the original."""
    start = _start(resized, crop)
    return start * length / resized, min((start + crop) * length / resized, float(length))
