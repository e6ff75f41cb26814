"""The bar of a terminal and the figures below it."""

from __future__ import annotations

import io
import re
import sys

import pytest

from vitrine.train.watch import Watch, amount, beside

FIGURES = beside(
    loss=0.4123, accuracy=0.8711, validation=0.91, rate=3.14e-4, gradient=0.824, memory=812 << 20, share=0.23
)


class Terminal(io.StringIO):
    """Takes what is written for a terminal's."""

    def isatty(self) -> bool:
        return True


def test_the_figures_and_those_that_are_unknown() -> None:
    said = "loss 0.412  accuracy 87.1%  validation 91.0%  lr 0.00031  gradient 0.82  812 MiB  23% of peak"
    assert said == FIGURES
    bare = beside(loss=1, accuracy=0, validation=-1, rate=1, gradient=0, memory=0, share=0)
    assert bare == "loss 1.000  accuracy 0.0%  lr 1  gradient 0"
    assert amount(3.4 * 2**30) == "3.4 GiB"


@pytest.mark.parametrize("colours", [True, False])
def test_a_terminal_has_a_bar_with_the_figures_below_it(monkeypatch: pytest.MonkeyPatch, colours: bool) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    for name, value in {"TERM": "xterm-256color", "COLUMNS": "120", "LINES": "30"}.items():
        monkeypatch.setenv(name, value)
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    if not colours:
        monkeypatch.setenv("NO_COLOR", "1")
    with Watch() as watch:
        watch.begin("training", 1000, done=100)
        watch.at(350, detail=FIGURES)
        assert watch._bar is not None
        watch._bar.refresh()
        watch.say("a sentence")
    found = terminal.getvalue()
    plain = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", found)
    line = next(line for line in re.split(r"[\r\n]+", plain) if line.startswith("training") and "35 %" in line)
    assert FIGURES not in line and FIGURES in plain.splitlines() and "a sentence" in plain
    assert bool(re.search(r"\x1b\[[\d;]*3[0-9][\d;]*m", found)) == colours


def test_a_narrow_terminal_cuts_the_figures_and_keeps_them_on_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("TERM", "xterm")
    with Watch() as watch:
        watch.begin("training", 1000)
        watch.at(350, detail=FIGURES)
        assert watch._bar is not None
        watch._bar.refresh()
    plain = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", terminal.getvalue())
    shown = [line for line in re.split(r"[\r\n]+", plain) if line.startswith("loss")]
    assert shown and all(len(line) <= 60 for line in shown) and shown[-1].rstrip().endswith("…")
