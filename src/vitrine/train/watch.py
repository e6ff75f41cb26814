"""What a person sees of work under way: sentences and a progress bar on stderr, or nothing."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from rich.progress import Progress

PLAIN_EVERY_S = 10.0
"""Seconds between lines where stderr is no terminal."""


class Watch:
    """Tells of one task after another. Where stderr is no terminal it writes a line now and then instead of a bar."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._live = not quiet and sys.stderr.isatty()
        self._bar: Progress | None = None
        self._spoken = self._began = 0.0
        self._label, self._unit, self._total, self._first = "", "", 0, 0
        self.alive: Callable[[], None] = lambda: None

    def say(self, sentence: str) -> None:
        """One line for the user."""
        if self._quiet:
            return
        if self._bar is not None:
            self._bar.console.print(sentence, markup=False, highlight=False, soft_wrap=True)
        else:
            print(sentence, file=sys.stderr, flush=True)

    def begin(self, label: str, total: int, unit: str = "pictures", done: int = 0) -> None:
        """Start the bar of a task of `total` units, `done` of them already."""
        self.end()
        self._label, self._unit, self._total, self._first = label, unit, total, done
        self._began = self._spoken = time.monotonic()
        if self._live:
            self._bar = _bar(unit)
            self._bar.start()
            self._bar.add_task(label, total=total, completed=done, detail="")

    def at(self, done: int, total: int | None = None, detail: str = "") -> None:
        """Move the bar to `done`; `detail` stands below it. It is a sign of life, which `alive` is told of."""
        self.alive()
        self._total = total or self._total
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=done, total=self._total, detail=detail)
            return
        now = time.monotonic()
        if self._quiet or now - self._spoken < PLAIN_EVERY_S:
            return
        self._spoken = now
        rate = (done - self._first) / max(1e-9, now - self._began)
        left = (self._total - done) / rate if rate else 0.0
        pace = f"{rate:,.0f} a second, {clock(left)} left"
        self.say(f"{self._label}: {done:,} of {self._total:,} {self._unit}, {pace}  {detail}")

    def counting(self, label: str, unit: str = "pictures") -> Callable[[int, int], None]:
        """What shows how far a task is, `done` of `all`: its first call begins the bar."""
        begun = False

        def at(done: int, total: int) -> None:
            nonlocal begun
            if not begun:
                self.begin(label, total, unit)
                begun = True
            self.at(done, total)

        return at

    def end(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()


def _bar(unit: str) -> Progress:
    """The bar, and below it the detail on a line of its own. Colours and none (NO_COLOR) are rich's affair."""
    from rich.console import Console, RenderableType
    from rich.progress import BarColumn, ProgressColumn, Task, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Plain
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(f"{task.speed:,.0f} {unit}/s" if task.speed else "")

    class Bar(Plain):
        def get_renderables(self) -> Iterable[RenderableType]:
            yield from super().get_renderables()
            for task in self.tasks:
                if task.fields["detail"]:
                    yield Text(task.fields["detail"], style="dim", no_wrap=True, overflow="ellipsis")

    return Bar(
        TextColumn("{task.description}"), BarColumn(bar_width=24), TextColumn("{task.percentage:>3.0f} %"),
        Rate(), TimeRemainingColumn(), console=Console(stderr=True), transient=True,
    )  # fmt: skip


def beside(
    *, loss: float, accuracy: float, validation: float, rate: float, gradient: float, memory: int, share: float,
    words: tuple[str, str] = ("accuracy", "validation"),
) -> str:  # fmt: skip
    """What is told of training while it goes on; what is unknown (below 0, or a memory or share of 0) is left out.

    `memory` is the peak in bytes, `share` that of the machine's measured rate, in [0, 1]; `words` say what `accuracy`
    and `validation` are.
    """
    parts = [f"loss {loss:.3f}", f"{words[0]} {accuracy:.1%}"]
    parts += [f"{words[1]} {validation:.1%}"] if validation >= 0 else []
    parts += [f"lr {rate:.2g}", f"gradient {gradient:.2g}"]
    parts += [amount(memory)] if memory else []
    parts += [f"{share:.0%} of peak"] if share else []
    return "  ".join(parts)


def amount(number: float) -> str:
    """Bytes as people say them: `812 MiB`, `3.4 GiB`."""
    return f"{number / 2**30:.1f} GiB" if number >= 2**30 else f"{number / 2**20:.0f} MiB"


def clock(seconds: float) -> str:
    """Seconds as people say them: `42 s`, `3 min 10 s`, `2 h 5 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
