"""Curves over epochs as inline SVG, coloured by the page's own variables, so that they suit light and dark."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vitrine.figures.markup import escaped, number

WIDTH, HEIGHT = 380, 220
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 12, 26
MOST_POINTS, MOST_HINTS = 500, 120
"""Points that a curve is drawn with at most; points up to which each tells its value under the pointer."""

Point = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A line of a chart: its name, its points (epoch, value) in order, and whether it is a quiet one."""

    name: str
    points: tuple[Point, ...]
    second: bool = False


def chart(
    title: str,
    curves: Sequence[Curve],
    *,
    kept: int = 0,
    zero: bool = False,
    most: float = math.inf,
    show: Callable[[float], str] = number,
) -> str:
    """A `figure` element with title, legend and SVG; empty where no curve has a point.

    `kept` is the epoch to mark, 0 for none. With `zero` the axis begins at 0; it never goes beyond `most`. `show`
    writes the values.
    """
    drawn = [curve for curve in curves if any(math.isfinite(y) for _, y in curve.points)]
    if not drawn:
        return ""
    values = [y for curve in drawn for _, y in curve.points if math.isfinite(y)]
    ticks = steps(0.0 if zero else min(values), max(values), most)
    epochs = [x for curve in drawn for x, _ in curve.points]
    first, last = min(epochs), max(epochs)
    low, high = ticks[0], ticks[-1]

    def place(x: float, y: float) -> Point:
        across = (x - first) / (last - first) if last > first else 0.5
        return (
            LEFT + across * (WIDTH - LEFT - RIGHT),
            TOP + (high - y) / (high - low) * (HEIGHT - TOP - BOTTOM),
        )

    body = [_grid(ticks, show), _epochs(first, last, place)]
    if kept and first <= kept <= last:
        body.append(_kept(place(kept, high)[0], kept))
    body += [_line(curve, place, show) for curve in reversed(drawn)]
    keys = "".join(f'<span class="{_kind(curve)}">{escaped(curve.name)}</span>' for curve in drawn)
    legend = f'<span class="keys">{keys}</span>' if len(drawn) > 1 else ""
    return (
        f"<figure><figcaption><b>{escaped(title)}</b>{legend}</figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escaped(title)} over epochs">'
        f"{''.join(body)}</svg></figure>"
    )


def steps(low: float, high: float, most: float = math.inf) -> list[float]:
    """Three to six round values, the first at or below `low`, the last at or above `high` but not above `most`."""
    if high - low < 1e-12 * max(1.0, abs(high)):
        low, high = low - abs(low or 1) / 2, high + abs(high or 1) / 2
        low = max(low, 0.0)
    rough = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    begin, end = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    found = [round(i * step, 12 - math.floor(math.log10(power))) for i in range(begin, end + 1)]
    return [value for value in found if value <= most * (1 + 1e-9)] or found


def thinned(points: Sequence[Point], most: int = MOST_POINTS) -> list[Point]:
    """At most about `most` points in order, with the first and the last."""
    stride = max(1, math.ceil(len(points) / most))
    return [point for i, point in enumerate(points) if i % stride == 0 or i == len(points) - 1]


def _kind(curve: Curve) -> str:
    return "second" if curve.second else "first"


def _grid(ticks: Sequence[float], show: Callable[[float], str]) -> str:
    rows = []
    for tick in ticks:
        y = TOP + (ticks[-1] - tick) / (ticks[-1] - ticks[0]) * (HEIGHT - TOP - BOTTOM)
        rows.append(
            f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>'
            f'<text x="{LEFT - 7}" y="{y + 3.5:.1f}" text-anchor="end">{escaped(show(tick))}</text>'
        )
    return "".join(rows)


def _epochs(first: float, last: float, place: Callable[[float, float], Point]) -> str:
    marks = sorted({round(first + (last - first) * share) for share in (0, 0.25, 0.5, 0.75, 1)})
    if last - first < 5:
        marks = list(range(round(first), round(last) + 1))
    words = []
    for mark in marks:
        anchor = "end" if mark == last > first else "middle"
        x = place(mark, 0)[0] if anchor == "middle" else WIDTH - RIGHT
        text = f"epoch {mark}" if mark == last else f"{mark:,}"
        words.append(f'<text x="{x:.1f}" y="{HEIGHT - 8}" text-anchor="{anchor}">{text}</text>')
    return "".join(words)


def _kept(x: float, epoch: int) -> str:
    return f'<path class="kept" d="M{x:.1f} {TOP}V{HEIGHT - BOTTOM}"><title>kept: epoch {epoch}</title></path>'


def _line(curve: Curve, place: Callable[[float, float], Point], show: Callable[[float], str]) -> str:
    """The curve, broken where a value is not finite, and what the pointer is told."""
    parts: list[str] = []
    hints: list[str] = []
    pen = "M"
    for x, y in thinned(curve.points):
        if not math.isfinite(y):
            pen = "M"
            continue
        across, down = place(x, y)
        parts.append(f"{pen}{across:.1f} {down:.1f}")
        pen = "L"
        hints.append(
            f'<circle cx="{across:.1f}" cy="{down:.1f}" r="5"><title>epoch {x:g}, {escaped(curve.name)}: '
            f"{escaped(show(y))}</title></circle>"
        )
    dots = ""
    if len(parts) == 1:
        across, down = place(*next(point for point in curve.points if math.isfinite(point[1])))
        dots = f'<circle class="dot {_kind(curve)}" cx="{across:.1f}" cy="{down:.1f}" r="3"/>'
    pointer = f'<g class="hints">{"".join(hints)}</g>' if len(hints) <= MOST_HINTS else ""
    return f'<path class="curve {_kind(curve)}" d="{"".join(parts)}"/>{dots}{pointer}'
