"""How the classes fared, as HTML: the confusion matrix, its largest confusions, and a row for every class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from vitrine.figures.confusion import shares_of_row
from vitrine.figures.markup import escaped, name, percent, span
from vitrine.results import Figure

MATRIX, NUMBERED = 40, 20
"""Classes up to which the matrix is drawn, and up to which its cells and names are of full size."""
PAIRS, ROWS = 12, 24
"""Confusions that are listed; classes whose row shows at once."""


@dataclass(frozen=True, kw_only=True)
class ClassRow:
    """How one class fared: `n` pictures of it; precision is None for a class that was never the answer."""

    name: str
    n: int
    recall: Figure
    precision: Figure | None


def matrix(counts: Int[np.ndarray, "K K"], names: Sequence[str]) -> str:
    """The matrix as a table, `counts[i][j]` pictures of class i called class j; empty above `MATRIX` classes.

    A cell is as deep in colour as its share of its row, blue where right and ochre where wrong; zeros are left blank.
    """
    K = len(counts)
    if K > MATRIX:
        return ""
    shares = shares_of_row(counts)
    tall = K > 6 and max(map(len, names)) > 2
    head = "".join(f'<th scope="col"{" class=tall" if tall else ""}>{name(word, 18)}</th>' for word in names)
    rows = []
    for i, word in enumerate(names):
        cells = "".join(_cell(int(counts[i, j]), float(shares[i, j]), i == j) for j in range(K))
        rows.append(f'<tr><th scope="row">{name(word, 18)}</th>{cells}</tr>')
    kind = "confusion dense" if K > NUMBERED else "confusion"
    return (
        f'<div class="wide"><table class="{kind}"><thead><tr><th class="corner">is \N{RIGHTWARDS ARROW} said</th>{head}'
        f"</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _cell(count: int, share: float, right: bool) -> str:
    if not count:
        return "<td></td>"
    depth = 0.08 + 0.92 * share if right else 0.15 + 0.85 * share
    deep = " deep" if depth > 0.72 else ""
    return f'<td class="{"right" if right else "wrong"}{deep}" style="--s:{depth:.2f}">{count:,}</td>'


def pairs(counts: Int[np.ndarray, "K K"], names: Sequence[str], most: int = PAIRS) -> str:
    """The largest confusions as a list, the most frequent first; empty where nothing was confused."""
    wrong = np.array(counts)
    np.fill_diagonal(wrong, 0)
    totals = np.asarray(counts).sum(axis=1)
    order = np.argsort(-wrong, axis=None, kind="stable")[:most]
    rows = []
    for place in order.tolist():
        i, j = divmod(place, len(wrong))
        if wrong[i, j]:
            rows.append(
                f'<li><span>{name(names[i])} called {name(names[j])}</span><span class="count">'
                f"{wrong[i, j]:,} of {totals[i]:,}</span></li>"
            )
    return f'<ul class="pairs">{"".join(rows)}</ul>' if rows else ""


def classes(rows: Sequence[ClassRow]) -> str:
    """A row for every class, the lowest recall first; those beyond `ROWS` open on a click."""
    ranked = sorted(rows, key=lambda row: (row.recall.value, row.name))
    first, rest = ranked[:ROWS], ranked[ROWS:]
    more = f"<details><summary>{len(rest):,} more classes</summary>{_table(rest)}</details>" if rest else ""
    return _table(first) + more


def _table(rows: Sequence[ClassRow]) -> str:
    body = "".join(
        f'<tr><td>{name(row.name)}</td><td class="n">{row.n:,}</td><td class="figure">{figure(row.recall)}</td>'
        f'<td class="figure">{figure(row.precision)}</td></tr>'
        for row in rows
    )
    return (
        '<table class="classes"><thead><tr><th>class</th><th class="n">n</th><th class="figure">recall</th>'
        f'<th class="figure">precision</th></tr></thead><tbody>{body}</tbody></table>'
    )


def figure(found: Figure | None) -> str:
    """A figure with its interval on a line; None for the precision of a class that was never the answer."""
    if found is None or found.n == 0:
        return '<span class="soft">never the answer</span>' if found is None else '<span class="soft">unknown</span>'
    hint = f"{span(found)}, n = {found.n:,}"
    return f'<span class="both" title="{hint}"><span>{percent(found.value)}</span>{track(found)}</span>'


def track(figure: Figure, guess: float | None = None) -> str:
    """A share and its interval on a line from 0 to 100 %; `guess` is marked too where it is given."""
    low, high, value = (100 * share for share in (figure.low, figure.high, figure.value))
    mark = "" if guess is None else f'<span class="guess" style="left:{100 * guess:.1f}%"></span>'
    return (
        f'<span class="track" style="display:block" role="img" aria-label="{escaped(span(figure))}">{mark}'
        f'<span class="range" style="left:{low:.1f}%;width:{high - low:.1f}%"></span>'
        f'<span class="at" style="left:{value:.1f}%"></span></span>'
    )
