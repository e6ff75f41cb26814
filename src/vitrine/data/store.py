"""Pixels at hand for training: decoded once and kept where memory allows, decoded on each call otherwise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64, UInt8
from PIL import Image

from vitrine.data.ahead import by_threads
from vitrine.data.blocks import is_far
from vitrine.data.scan import LARGE, Scan
from vitrine.data.sources import Source
from vitrine.errors import BadData, VitrineError
from vitrine.images.preprocess import convert


@dataclass(frozen=True, kw_only=True, eq=False)
class Store:
    """Pictures with `channels` channels, none with a shorter side above `keep_side`.

    Row i of `sizes` is height and width of picture i as kept, (0, 0) where it could not be read. `buffer`
    holds all kept pixels in a row, picture i from `starts[i]`; None where they are decoded on each call.
    """

    source: Source
    channels: int
    keep_side: int | None
    sizes: Int64[np.ndarray, "n 2"]
    starts: Int64[np.ndarray, " n"]
    buffer: UInt8[np.ndarray, " _"] | None

    @property
    def in_memory(self) -> bool:
        """Whether decoding is done."""
        return self.buffer is not None

    def pixels(self, i: int) -> UInt8[np.ndarray, "H W C"]:
        """Pixels of picture `i`, the same ones whether kept in memory or not. Do not write to them.

        Raises an error of `vitrine.errors` if the picture cannot be read.
        """
        H, W = (int(side) for side in self.sizes[i])
        if self.buffer is None or H == 0:
            return _pixels(self.source, i, self.channels, self.keep_side)
        start = int(self.starts[i])
        return self.buffer[start : start + H * W * self.channels].reshape(H, W, self.channels)

    def uniform(self) -> bool:
        """Whether all pictures that could be read are in memory in one size, so that `gather` may be used."""
        kept = self.sizes[self.sizes[:, 0] > 0]
        return self.buffer is not None and len(kept) > 0 and bool((kept == kept[0]).all())

    def gather(self, indices: Int64[np.ndarray, " B"]) -> UInt8[np.ndarray, "B H W C"]:
        """A copy of the pixels of several readable pictures at once. The store must be `uniform`."""
        assert self.buffer is not None
        H, W = (int(side) for side in self.sizes[indices[0]])
        rows = self.starts[indices] // (H * W * self.channels)
        return self.buffer.reshape(-1, H, W, self.channels)[rows]


def store(
    source: Source,
    scan: Scan,
    *,
    channels: int,
    keep_side: int | None,
    budget_bytes: int,
    progress: Callable[[int, int], None] | None = None,
) -> Store:
    """The pictures of `source` that `scan` could read, kept in memory if they fit `budget_bytes`.

    A picture whose shorter side is above `keep_side` pixels is shrunk to it, aspect ratio kept. Pictures that
    are arrays already and need no change are taken as they are, whatever the budget. More than `LARGE` pictures that
    must be decoded, and any that come over a network, are decoded as they are needed: to do it beforehand would keep
    training waiting.
    """
    sizes = _kept_sizes(scan.sizes, keep_side)[:, ::-1].copy()
    arrays = source.arrays
    if arrays is not None and arrays.shape[-1] == channels and (sizes == arrays.shape[1:3]).all():
        return _filled(source, channels, keep_side, sizes, arrays.reshape(-1))
    many = source.encoded and (is_far(source.packed) or len(source) > LARGE)
    if many or sizes.prod(axis=1).sum() * channels > budget_bytes:
        return _filled(source, channels, keep_side, sizes, None)

    def get(i: int) -> UInt8[np.ndarray, "H W C"] | None:
        try:
            return _pixels(source, i, channels, keep_side)
        except VitrineError:
            return None

    wanted = np.flatnonzero(sizes[:, 0])
    buffer = np.empty(int(sizes.prod(axis=1).sum()) * channels, np.uint8)
    end = 0
    for done, (i, pixels) in enumerate(zip(wanted, by_threads(get, map(int, wanted)), strict=True), start=1):
        # What the scan saw only the header of may prove damaged, or of another size, now.
        if pixels is None or pixels.shape[:2] != tuple(sizes[i]):
            sizes[i] = 0
        else:
            buffer[end : end + pixels.size] = pixels.reshape(-1)
            end += pixels.size
        if progress is not None:
            progress(done, len(wanted))
    return _filled(source, channels, keep_side, sizes, buffer[:end])


def _filled(
    source: Source,
    channels: int,
    keep_side: int | None,
    sizes: Int64[np.ndarray, "n 2"],
    buffer: UInt8[np.ndarray, " _"] | None,
) -> Store:
    bytes_each = sizes.prod(axis=1) * channels
    starts = np.cumsum(bytes_each) - bytes_each
    return Store(source=source, channels=channels, keep_side=keep_side, sizes=sizes, starts=starts, buffer=buffer)


def _kept_sizes(sizes: Int64[np.ndarray, "n 2"], keep_side: int | None) -> Int64[np.ndarray, "n 2"]:
    """Width and height as kept of pictures of these widths and heights."""
    shorter = sizes.min(axis=1, keepdims=True)
    if keep_side is None:
        return sizes
    return np.where(shorter <= keep_side, sizes, np.rint(sizes * keep_side / np.maximum(shorter, 1)).astype(np.int64))


def _pixels(source: Source, i: int, channels: int, keep_side: int | None) -> UInt8[np.ndarray, "H W C"]:
    try:
        picture = convert(source.picture(i), channels)
    except MemoryError as error:
        raise BadData(f"{source.ids[i]}: there is no memory left to decode it.") from error
    if keep_side is not None and min(picture.size) > keep_side:
        W, H = _kept_sizes(np.array([picture.size], np.int64), keep_side)[0].tolist()
        size = (W, H)
        picture = picture.resize(size, Image.Resampling.BICUBIC, reducing_gap=3.0)
    pixels = np.array(picture)
    return pixels[..., None] if pixels.ndim == 2 else pixels
