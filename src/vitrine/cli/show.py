"""Results on stdout: one JSON object where asked for, tables for people otherwise."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vitrine.results import SCHEMA_VERSION, Metrics

if TYPE_CHECKING:
    from rich.console import Console


def as_json(result: Mapping[str, Any]) -> None:
    """Print one JSON object that begins with `schema_version`."""
    print(json.dumps({"schema_version": SCHEMA_VERSION, **result}, ensure_ascii=False, allow_nan=False))


def console() -> Console:
    """A console on stdout, wide where the output goes into a file."""
    from rich.console import Console

    return Console(file=sys.stdout, highlight=False, width=None if sys.stdout.isatty() else 120, soft_wrap=True)


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, title: str = "") -> None:
    """Print a table; columns whose cells are numbers stand to the right."""
    from rich import box
    from rich.table import Table

    filled = [list(row) for row in rows]
    drawn = Table(title=title or None, box=box.SIMPLE_HEAD, title_justify="left")
    for number, column in enumerate(columns):
        cells = [row[number] for row in filled]
        numeric = all(cell[:1].isdigit() or cell in ("", "-") for cell in cells)
        drawn.add_column(column, justify="right" if numeric else "left", no_wrap=len(columns) < 7)
    for row in filled:
        drawn.add_row(*row)
    page = console()
    with page.capture() as text:
        page.print(drawn, markup=False)
    print(text.get(), end="")  # by Python's own print: rich ends the process where the reader of stdout went away


def metrics(found: Metrics) -> None:
    """Print the figures of an evaluation: the whole first, then class by class."""
    if found.multi_label:
        _several(found)
        return
    print(f"top-1 accuracy     {found.top1.percent()}")
    if "top5" in found.figures:
        print(f"top-5 accuracy     {found.figures['top5'].percent()}")
    print(f"always the most frequent class would reach {found.majority:.1%}".replace("%", " %"))
    for name, words in (("loss", "loss"), ("ece", "calibration error")):
        figure = found.figures[name]
        print(f"{words:<18} {figure.value:.4f} ({figure.low:.4f} to {figure.high:.4f})")
    table(
        ("class", "pictures", "recall, %", "precision, %"),
        (
            (
                row.name,
                str(row.n),
                f"{100 * row.recall.value:.1f}",
                "-" if row.precision is None else f"{100 * row.precision:.1f}",
            )
            for row in found.classes
        ),
    )


def _several(found: Metrics) -> None:
    """The figures where a picture may have several classes."""
    assert found.threshold is not None and found.chance_map is not None
    names = {"map": "mean average precision", "micro_ap": "average precision, all in one list"}
    for suffix, at in (("", "0.5"), ("_at", f"{found.threshold:.3g}")):
        names |= {
            f"macro_f1{suffix}": f"F1 from {at} on, mean of the classes",
            f"micro_f1{suffix}": f"F1 from {at} on, of the sums",
            f"exact_match{suffix}": f"all classes right, from {at} on",
        }
    for name, words in names.items():
        print(f"{words:<38} {found.figures[name].percent()}")
    loss = found.figures["loss"]
    print(f"{'loss':<38} {loss.value:.4f} ({loss.low:.4f} to {loss.high:.4f})")
    told = (
        f"a guess that looks at nothing would reach a mean average precision of {found.chance_map:.1%}, and the most "
        f"frequent set of classes is all of {found.majority:.1%} of the pictures"
    )
    print(told.replace("%", " %"))
    table(
        ("class", "pictures", "average precision, %", "F1, %", "precision, %", "recall, %"),
        (
            (
                row.name,
                str(row.n),
                "-" if row.average_precision is None else f"{100 * row.average_precision.value:.1f}",
                "-" if row.f1 is None else f"{100 * row.f1:.1f}",
                "-" if row.precision is None else f"{100 * row.precision:.1f}",
                f"{100 * row.recall.value:.1f}",
            )
            for row in found.classes
        ),
    )
