from __future__ import annotations

import io
import re

import numpy as np
import pytest

from vitrine.errors import BadData, UsageError
from vitrine.figures.terminal import RAMP, can_show, characters, half_blocks

COLOUR = re.compile(r"\x1b\[[0-9;]*m")


class Terminal(io.TextIOWrapper):
    def isatty(self) -> bool:
        return True


def stream(tty: bool = True, encoding: str = "utf-8") -> io.TextIOWrapper:
    return (Terminal if tty else io.TextIOWrapper)(io.BytesIO(), encoding=encoding)


@pytest.mark.parametrize(
    ("environment", "tty", "shows"),
    [
        ({"COLORTERM": "truecolor"}, True, True),
        ({"COLORTERM": "24bit"}, True, True),
        ({"COLORTERM": "truecolor"}, False, False),
        ({}, True, False),
        ({"COLORTERM": "yes"}, True, False),
        ({"COLORTERM": "truecolor", "NO_COLOR": "1"}, True, False),
        ({"COLORTERM": "truecolor", "NO_COLOR": ""}, True, True),
        ({"FORCE_COLOR": "1"}, False, True),
        ({"CLICOLOR_FORCE": "1"}, False, True),
        ({"CLICOLOR_FORCE": "0"}, True, False),
        ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, True, False),
    ],
)
def test_when_colour_is_shown(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], tty: bool, shows: bool
) -> None:
    for name in ("COLORTERM", "NO_COLOR", "FORCE_COLOR", "CLICOLOR_FORCE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert can_show(stream(tty)) is shows
    assert not can_show(stream(tty, encoding="ascii"))


def test_half_blocks_carry_two_pixels_each() -> None:
    pixels = np.array([[[1, 2, 3], [9, 9, 9]], [[4, 5, 6], [9, 9, 9]]], np.uint8)
    assert half_blocks(pixels, 2) == "\x1b[38;2;1;2;3;48;2;4;5;6m▀\x1b[38;2;9;9;9;48;2;9;9;9m▀\x1b[0m"


@pytest.mark.parametrize(("shape", "columns", "lines"), [((100, 100), 40, 20), ((50, 200), 40, 5), ((8, 8), 30, 15)])
def test_aspect_ratio_is_kept(shape: tuple[int, int], columns: int, lines: int) -> None:
    rows = half_blocks(np.zeros((*shape, 3), np.uint8), columns).split("\n")
    assert len(rows) == lines
    assert {len(COLOUR.sub("", row)) for row in rows} == {columns}
    assert all(row.endswith("\x1b[0m") for row in rows)
    plain = characters(np.zeros(shape), columns).split("\n")
    assert len(plain) == lines
    assert {len(row) for row in plain} == {columns}


def test_an_extreme_picture_still_has_one_line() -> None:
    assert half_blocks(np.zeros((1, 900, 3), np.uint8), 10).count("\n") == 0


def test_a_tiny_picture_has_no_new_colours() -> None:
    pixels = np.array([[[0, 0, 0], [255, 255, 255]]] * 2, np.uint8)
    assert set(re.findall(r"38;2;(\d+);", half_blocks(pixels, 20))) == {"0", "255"}


def test_characters_go_from_space_to_at() -> None:
    assert characters(np.linspace(0, 1, 10)[None], 10) == RAMP
    assert set(characters(np.full((4, 4), 0.7), 8)) == {" ", "\n"}
    large = characters(np.arange(10_000.0).reshape(100, 100), 20)
    assert large[0] == " "
    assert large[-1] == "@"


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(UsageError, match="columns = 0"):
        half_blocks(np.zeros((2, 2, 3), np.uint8), 0)
    with pytest.raises(UsageError, match="columns = -1"):
        characters(np.zeros((2, 2)), -1)
    with pytest.raises(BadData):
        characters(np.full((2, 2), np.inf), 4)
