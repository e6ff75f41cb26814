"""Curves as SVG: round axes, points where they belong, and nothing where there is nothing."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import pytest

from vitrine.figures import curves
from vitrine.figures.curves import Curve, chart, steps


def drawn(html: str) -> ElementTree.Element:
    return ElementTree.fromstring(html)


def paths(html: str, kind: str) -> list[str]:
    return [path.get("d", "") for path in drawn(html).iter("path") if kind in path.get("class", "").split()]


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0.0, 1.0, [0, 0.25, 0.5, 0.75, 1]),
        (0.0, 4.0, [0, 1, 2, 3, 4]),
        (0.57, 2.3, [0.5, 1, 1.5, 2, 2.5]),
        (0.0, 0.003, [0, 0.001, 0.002, 0.003]),
        (0.0, 1e-5, [0, 2.5e-6, 5e-6, 7.5e-6, 1e-5]),
        (3.0, 3.0, [1, 2, 3, 4, 5]),
        (0.0, 0.0, [0, 0.125, 0.25, 0.375, 0.5]),
    ],
)
def test_an_axis_has_round_steps_that_hold_the_values(low: float, high: float, ticks: list[float]) -> None:
    found = steps(low, high)
    assert found[0] <= low and found[-1] >= high and 3 <= len(found) <= 6
    if high:
        assert found == pytest.approx(ticks)


def test_an_axis_of_shares_ends_at_one() -> None:
    assert steps(0.0, 0.97, 1.0)[-1] == 1.0


def test_points_stand_where_their_values_are() -> None:
    html = chart("loss", [Curve(name="training", points=((1, 0.0), (2, 4.0), (3, 2.0)))])
    (line,) = paths(html, "first")
    found = [tuple(map(float, pair.split())) for pair in re.split("[ML]", line)[1:]]
    left, right = curves.LEFT, curves.WIDTH - curves.RIGHT
    top, bottom = curves.TOP, curves.HEIGHT - curves.BOTTOM
    assert found == [(left, bottom), ((left + right) / 2, top), (right, (top + bottom) / 2)]


def test_the_kept_epoch_is_marked_where_it_is() -> None:
    html = chart("loss", [Curve(name="training", points=((1, 0.0), (2, 4.0), (3, 2.0)))], kept=2)
    middle = (curves.LEFT + curves.WIDTH - curves.RIGHT) / 2
    assert paths(html, "kept") == [f"M{middle:.1f} {curves.TOP}V{curves.HEIGHT - curves.BOTTOM}"]
    assert not paths(chart("loss", [Curve(name="t", points=((1, 0.0), (2, 1.0)))], kept=0), "kept")


def test_one_epoch_is_a_dot_and_a_gap_breaks_the_line() -> None:
    one = chart("loss", [Curve(name="t", points=((1, 0.5),))])
    assert [c.get("class") for c in drawn(one).iter("circle") if c.get("class")] == ["dot first"]
    (line,) = paths(chart("loss", [Curve(name="t", points=((1, 1.0), (2, math.nan), (3, 2.0), (4, 3.0)))]), "first")
    assert (line.count("M"), line.count("L")) == (2, 1)


def test_without_values_there_is_no_chart() -> None:
    assert chart("loss", [Curve(name="t", points=()), Curve(name="v", points=((1, math.inf),))]) == ""


def test_a_long_run_is_thinned_and_keeps_its_ends() -> None:
    points = [(float(i), float(i)) for i in range(5001)]
    found = curves.thinned(points)
    assert len(found) <= curves.MOST_POINTS + 1 and found[0] == points[0] and found[-1] == points[-1]
    assert "<circle" not in chart("loss", [Curve(name="t", points=tuple(points))])


def test_names_are_escaped() -> None:
    html = chart("<b>&", [Curve(name='"x"<', points=((1, 1.0), (2, 2.0)))])
    assert drawn(html).find("figcaption/b").text == "<b>&"  # type: ignore[union-attr]
