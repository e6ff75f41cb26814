"""Where the parts of an attention panel stand, in pixels."""

from __future__ import annotations

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
# What another row, and a last row that is not full, cost in pixels of a tile's side.
ROW_COST, RAGGED_COST = 60.0, 20.0


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
        corner, room, most = (MARGIN + used, PICTURES_TOP), (ROOM - used, height), LARGEST_TILE_BESIDE
    else:
        room, most = (ROOM, 2 * LARGEST_TILE + TILE_GAP), LARGEST_TILE
        corner = (MARGIN, picture.bottom + GAP + LABEL_ROOM)
    tiles = _tiles(corner, room, most, tile_aspect, num_heads)
    bottom = max(tile.bottom for tile in (picture, *tiles))
    return Layout(picture=picture, rollout=rollout, tiles=tiles, height=bottom + FOOT)


def _within(aspect: float, width: float, height: float) -> tuple[int, int]:
    """The largest size of `aspect` that fits, in whole pixels, at least one."""
    fit = min(width, height * aspect)
    return max(1, round(fit)), max(1, round(fit / aspect))


def _tiles(
    corner: tuple[int, int], room: tuple[int, int], most: int, aspect: float, count: int
) -> tuple[Rect, ...]:
    """`count` tiles row by row, at most `most` pixels a side, in the grid that shows them large in few rows."""

    def tile(columns: int) -> tuple[int, int]:
        rows = -(-count // columns)
        free = (room[0] - TILE_GAP * (columns - 1)) / columns, (room[1] - TILE_GAP * (rows - 1)) / rows
        return _within(aspect, min(most, max(1.0, free[0])), min(most, max(1.0, free[1])))

    def worth(columns: int) -> float:
        rows = -(-count // columns)
        return max(tile(columns)) - ROW_COST * (rows - 1) - RAGGED_COST * (count % columns > 0)

    columns = max(range(1, count + 1), key=worth, default=1)
    width, height = tile(columns)
    return tuple(
        Rect(
            left=corner[0] + (i % columns) * (width + TILE_GAP),
            top=corner[1] + (i // columns) * (height + TILE_GAP),
            width=width,
            height=height,
        )
        for i in range(count)
    )
