"""Pictures and heat maps as text."""

from __future__ import annotations

import os
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from vitrine.errors import UsageError
from vitrine.figures.heatmap import normalise

UPPER_HALF = "▀"
RESET = "\x1b[0m"
RAMP = " .:-=+*#%@"


@runtime_checkable
class Stream(Protocol):
    """What is asked of an output such as `sys.stdout`."""

    @property
    def encoding(self) -> str | None: ...

    def isatty(self) -> bool: ...


def can_show(stream: Stream) -> bool:
    """Whether `half_blocks` will look right on `stream`.

    It must be a terminal that says it knows true colour (COLORTERM = truecolor or 24bit), unless
    FORCE_COLOR or CLICOLOR_FORCE is set, and NO_COLOR must not be; its encoding must have the half block.
    """
    if os.environ.get("NO_COLOR") or not _has_block(stream):
        return False
    if any(os.environ.get(name, "0") not in ("", "0") for name in ("FORCE_COLOR", "CLICOLOR_FORCE")):
        return True
    return stream.isatty() and os.environ.get("COLORTERM", "").lower() in ("truecolor", "24bit")


def _has_block(stream: Stream) -> bool:
    try:
        UPPER_HALF.encode(stream.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def half_blocks(pixels: UInt8[np.ndarray, "H W 3"], columns: int) -> str:
    """Lines of `columns` upper half blocks in 24-bit colour, two pixels a character, aspect ratio kept.

    Each line ends by resetting the colours. Raises `UsageError` for fewer than one column.
    """
    _check(columns)
    H, W = pixels.shape[:2]
    lines = max(1, round(H / W * columns / 2))
    # pixels of a tiny picture stay crisp, those of a large one are averaged
    filtering = Image.Resampling.NEAREST if columns > W else Image.Resampling.BOX
    small = np.asarray(Image.fromarray(pixels).resize((columns, 2 * lines), filtering))
    return "\n".join(_line(small[2 * i], small[2 * i + 1]) for i in range(lines))


def _line(upper: UInt8[np.ndarray, "W 3"], lower: UInt8[np.ndarray, "W 3"]) -> str:
    """One line of half blocks; a colour is named only where it changes."""
    parts: list[str] = []
    before: tuple[int, ...] = ()
    for pair in np.concatenate([upper, lower], axis=1).tolist():
        now = tuple(pair)
        if now != before:
            parts.append("\x1b[38;2;{};{};{};48;2;{};{};{}m".format(*now))
        parts.append(UPPER_HALF)
        before = now
    return "".join(parts) + RESET


def characters(heat: Float[np.ndarray, "h w"], columns: int) -> str:
    """Lines of `columns` signs from ` ` (least) to `@` (most), for a terminal without colour.

    A sign counts as twice as high as wide. Heat that is the same everywhere is all spaces. Raises
    `UsageError` for fewer than one column, `BadData` for heat that is not finite.
    """
    _check(columns)
    h, w = heat.shape
    lines = max(1, round(h / w * columns / 2))
    # nearest where it grows: a patch is a block, and the most stays the most
    grows = w <= columns and h <= lines
    filtering = Image.Resampling.NEAREST if grows else Image.Resampling.BOX
    small = Image.fromarray(normalise(heat).astype(np.float32)).resize((columns, lines), filtering)
    steps = np.rint(normalise(np.asarray(small)) * (len(RAMP) - 1)).astype(int)
    return "\n".join("".join(RAMP[step] for step in row) for row in steps.tolist())


def _check(columns: int) -> None:
    if columns < 1:
        raise UsageError(f"columns = {columns}: must be at least 1.")
