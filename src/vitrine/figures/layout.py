"""Where the parts of an attention panel stand, in pixels."""

from __future__ import annotations

import math
from dataclasses import dataclass

WIDTH = 1600
MARGIN = 80
ROOM = WIDTH - 2 * MARGIN
GAP = 40
# Right of the rollout: the colour scale and its two words.
SCALE_ROOM = 100
LARGEST = 650
# A narrower picture still leaves room for its label.
NARROWEST_COLUMN = 310
PICTURES_TOP = 210
LABEL_ROOM = 52
FOOT = 130
TILE_GAP = 12
LARGEST_TILE = 228
LARGEST_TILE_BESIDE = 319
# What a tile's side counts for with each further row below the pictures, and with a last row that is not full.
ROW_WORTH, RAGGED_WORTH = 0.72, 0.9


@dataclass(frozen=True, kw_only=True)
class Rect:
    """A rectangle on the page."""

    left: int
    top: int
    width: int
    height: int

    @property
    def right(self) -> int:
        """The first column right of it."""
        return self.left + self.width

    @property
    def bottom(self) -> int:
        """The first row below it."""
        return self.top + self.height


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Picture and rollout side by side, the heads' tiles, and the height of the page."""

    picture: Rect
    rollout: Rect
    tiles: tuple[Rect, ...]
    height: int


def arrange(aspect: float, tile_aspect: float, num_heads: int) -> Layout:
    """The panel for a picture of `aspect` (width over height) and tiles of `tile_aspect`.

    The tiles stand below; at the right where the pictures are so narrow that half the page is free.
    """
    width, height = _within(aspect, (ROOM - GAP - SCALE_ROOM) // 2, LARGEST)
    column = max(width, NARROWEST_COLUMN)
    picture = Rect(left=MARGIN, top=PICTURES_TOP, width=width, height=height)
    rollout = Rect(left=MARGIN + column + GAP, top=PICTURES_TOP, width=width, height=height)
    used = 2 * (column + GAP) + SCALE_ROOM
    if height == LARGEST and used <= 0.6 * ROOM:
        area = Rect(left=MARGIN + used, top=PICTURES_TOP, width=ROOM - used, height=height)
        tiles = _tiles(area, LARGEST_TILE_BESIDE, 1.0, tile_aspect, num_heads)
    else:
        top, rows = picture.bottom + GAP + LABEL_ROOM, 2 * LARGEST_TILE + TILE_GAP
        area = Rect(left=MARGIN, top=top, width=ROOM, height=rows)
        tiles = _tiles(area, LARGEST_TILE, ROW_WORTH, tile_aspect, num_heads)
    bottom = max(tile.bottom for tile in (picture, *tiles))
    return Layout(picture=picture, rollout=rollout, tiles=tiles, height=bottom + FOOT)


def _within(aspect: float, width: float, height: float) -> tuple[int, int]:
    """The largest size of `aspect` that fits, in whole pixels, at least one."""
    fit = min(width, height * aspect)
    return max(1, math.floor(fit + 1e-6)), max(1, math.floor(fit / aspect + 1e-6))


def _tiles(area: Rect, most: int, row_worth: float, aspect: float, count: int) -> tuple[Rect, ...]:
    """`count` tiles row by row in `area`, at most `most` pixels a side: as large as goes with few and full rows."""
    if count == 0:
        return ()

    def tile(columns: int) -> tuple[int, int]:
        rows = -(-count // columns)
        width = (area.width - TILE_GAP * (columns - 1)) / columns
        height = (area.height - TILE_GAP * (rows - 1)) / rows
        return _within(aspect, min(most, max(1.0, width)), min(most, max(1.0, height)))

    def worth(columns: int) -> float:
        rows = -(-count // columns)
        full = 1.0 if count % columns == 0 else RAGGED_WORTH
        return max(tile(columns)) * row_worth ** (rows - 1) * full

    columns = max(range(1, count + 1), key=worth)
    width, height = tile(columns)
    return tuple(
        Rect(
            left=area.left + (i % columns) * (width + TILE_GAP),
            top=area.top + (i // columns) * (height + TILE_GAP),
            width=width,
            height=height,
        )
        for i in range(count)
    )
