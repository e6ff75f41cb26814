"""A white page measured in pixels from its upper left corner, its inks and its writing, saved as PNG."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from vitrine.files import whole

DPI = 200
FONT = "DejaVu Sans"
INK = "#1c1c1e"
SOFT = "#6e6e73"
LINE = "#d2d2d7"
ELLIPSIS = "…"


def blank(width: int, height: int) -> Figure:
    """A white page of `width` x `height` pixels that belongs to no window."""
    page = Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor="white")
    FigureCanvasAgg(page)
    return page


def size(page: Figure) -> tuple[int, int]:
    """Width and height in pixels."""
    width, height = page.get_size_inches() * DPI
    return round(width), round(height)


def write(
    page: Figure,
    x: float,
    y: float,
    text: str,
    *,
    height: float,
    ink: str = INK,
    align: str = "left",
    stand: str = "top",
    turn: float = 0.0,
) -> Text:
    """`text` with letters of `height` pixels (its font size) at a point; every sign as it is, `$` too."""
    width_px, height_px = size(page)
    return page.text(
        x / width_px,
        1 - y / height_px,
        text,
        fontsize=height * 72 / DPI,
        fontfamily=FONT,
        color=ink,
        ha=align,
        va=stand,
        rotation=turn,
        rotation_mode="anchor",
        parse_math=False,
    )


def width_of(page: Figure, text: str, height: float) -> float:
    """How many pixels `text` takes in a row with letters of `height` pixels."""
    trial = write(page, 0, 0, text, height=height)
    with quiet():
        found = trial.get_window_extent().width
    trial.remove()
    return float(found)


def shorten(page: Figure, text: str, height: float, room: float) -> str:
    """`text` in one line of at most `room` pixels: its end gives way to an ellipsis where it is longer."""
    text = " ".join(text.splitlines())
    if width_of(page, text, height) <= room:
        return text
    fits, too_long = 0, len(text)
    while too_long - fits > 1:
        middle = (fits + too_long) // 2
        if width_of(page, text[:middle].rstrip() + ELLIPSIS, height) <= room:
            fits = middle
        else:
            too_long = middle
    return text[:fits].rstrip() + ELLIPSIS


def place(page: Figure, pixels: UInt8[np.ndarray, "H W 3"], left: int, top: int) -> None:
    """Draw `pixels` one to one with their upper left corner at a point."""
    page.figimage(pixels, left, size(page)[1] - top - len(pixels), origin="upper")


def save(page: Figure, path: Path) -> None:
    """Write the page as PNG, whole or not at all. Raises what `vitrine.files.whole` raises."""
    memory = io.BytesIO()
    with quiet():
        page.savefig(memory, format="png", dpi=DPI, metadata={"Software": None})
    with whole(path) as file:
        file.write(memory.getvalue())


def quiet() -> warnings.catch_warnings[None]:
    """Without the warning that the font lacks a sign: a name in another script is drawn as boxes."""
    return warnings.catch_warnings(action="ignore", category=UserWarning)
