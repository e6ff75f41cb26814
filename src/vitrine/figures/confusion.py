"""The confusion matrix as a picture."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int, UInt8
from matplotlib.figure import Figure

from vitrine.errors import BadData
from vitrine.figures import page as paper

# White for nothing, and dark ink stays readable up to the middle of it.
COLOUR_MAP = "Blues"
SIDE = 1000
MARGIN = 80
TOP = 170
NUMBERED = 20
LONGEST_NAME = 300
TITLE, LABEL, SMALL = 42, 25, 20
# Pixels from one name to the next below which names are left out.
NAME_PITCH = 24


def confusion_matrix(counts: Int[np.ndarray, "K K"], names: Sequence[str], path: Path, *, title: str) -> None:
    """Write a PNG to `path`, whole or not at all: `counts[i][j]` pictures of class i were called class j.

    A cell's colour is its share of its row; up to 20 classes the counts stand in the cells. Of many
    classes every second, third, ... is named. Raises `BadData` for names that do not fit the counts or
    counts below zero, `CannotCreate` or `DiskError` from writing.
    """
    K = len(counts)
    if len(names) != K or K == 0:
        raise BadData(f"{len(names)} class names for a confusion matrix of {K} classes: the numbers must be equal.")
    if counts.min() < 0:
        raise BadData(f"the confusion matrix holds {counts.min()}: counts cannot be below zero.")
    cell = max(1, SIDE // K)
    trial = paper.blank(SIDE, SIDE)
    size = min(SMALL + 4, max(SMALL - 2, cell // 2))
    short = {i: paper.shorten(trial, names[i], size, LONGEST_NAME) for i in range(0, K, every(cell))}
    gutter = math.ceil(max(paper.width_of(trial, name, size) for name in short.values()))
    left, bottom = MARGIN + 50 + gutter + 14, TOP + K * cell
    page = paper.blank(left + K * cell + 150, bottom + 14 + gutter + 150)
    shares = shares_of_row(counts)
    paper.place(page, _cells(shares, cell), left, TOP)
    _names(page, short, (left, bottom), cell, size)
    _words(page, title, left, K * cell, bottom + 14 + gutter)
    _scale(page, left + K * cell + 24, K * cell)
    if K <= NUMBERED:
        _numbers(page, counts, shares, left, cell)
    paper.save(page, path)


def shares_of_row(counts: Int[np.ndarray, "K K"]) -> Float[np.ndarray, "K K"]:
    """Each count over the sum of its row; zeros for a class without a picture."""
    return counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)


def every(cell: int) -> int:
    """Every how many classes one is named, so that names do not touch."""
    return math.ceil(NAME_PITCH / cell)


def _cells(shares: Float[np.ndarray, "K K"], cell: int) -> UInt8[np.ndarray, "H W 3"]:
    """Squares of `cell` pixels with a thin white line between them where there is room for one."""
    pixels = _colours(shares).repeat(cell, axis=0).repeat(cell, axis=1)
    if cell >= 20:
        lines = np.arange(len(shares)) * cell
        pixels[lines] = 255
        pixels[:, lines] = 255
    return _framed(pixels)


def _colours(levels: Float[np.ndarray, "H W"]) -> UInt8[np.ndarray, "H W 3"]:
    from matplotlib import colormaps

    return np.rint(255 * colormaps[COLOUR_MAP](levels)[..., :3]).astype(np.uint8)


def _framed(pixels: UInt8[np.ndarray, "H W 3"]) -> UInt8[np.ndarray, "H W 3"]:
    """The same with a hairline around it."""
    line = [int(paper.LINE[i : i + 2], 16) for i in (1, 3, 5)]
    for edge in (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]):
        edge[...] = line
    return pixels


def _names(page: Figure, names: Mapping[int, str], corner: tuple[int, int], cell: int, height: float) -> None:
    """The true classes at the left of the matrix, the predicted ones below, from its lower left corner."""
    left, bottom = corner
    for i, name in names.items():
        middle = (i + 0.5) * cell
        y, stand = TOP + middle, "center_baseline"
        paper.write(page, left - 12, y, name, height=height, align="right", stand=stand)
        paper.write(page, left + middle, bottom + 12, name, height=height, align="right", stand=stand, turn=90)


def _words(page: Figure, title: str, left: int, side: int, names_bottom: int) -> None:
    """The title and what the two axes are."""
    room = paper.size(page)[0] - 2 * MARGIN
    paper.write(page, MARGIN, 100, paper.shorten(page, title, TITLE, room), height=TITLE, stand="baseline")
    middle = left + side / 2
    paper.write(
        page,
        middle,
        names_bottom + 60,
        "what the model said",
        height=LABEL,
        ink=paper.SOFT,
        align="center",
        stand="baseline",
    )
    paper.write(
        page,
        MARGIN + 20,
        TOP + side / 2,
        "what it is",
        height=LABEL,
        ink=paper.SOFT,
        align="center",
        stand="baseline",
        turn=90,
    )


def _scale(page: Figure, left: int, side: int) -> None:
    """The slim colour bar: the share of a row."""
    levels = np.repeat(np.linspace(1, 0, side)[:, None], 12, axis=1)
    paper.place(page, _framed(_colours(levels)), left, TOP)
    paper.write(page, left + 22, TOP - 3, "100 %", height=SMALL, ink=paper.SOFT)
    paper.write(page, left + 22, TOP + side, "0 %", height=SMALL, ink=paper.SOFT, stand="baseline")


def _numbers(
    page: Figure, counts: Int[np.ndarray, "K K"], shares: Float[np.ndarray, "K K"], left: int, cell: int
) -> None:
    """Each count in the middle of its cell, as large as the longest allows; zeros left faint."""
    longest = max(len(str(count)) for count in counts.ravel().tolist())
    height = min(0.4 * cell, 1.4 * cell / max(1, longest), 44)
    for (i, j), count in np.ndenumerate(counts):
        ink = paper.LINE if count == 0 else "white" if shares[i, j] > 0.55 else paper.INK
        paper.write(
            page, left + (j + 0.5) * cell, TOP + (i + 0.5) * cell, str(count),
            height=height, ink=ink, align="center", stand="center_baseline",
        )  # fmt: skip
