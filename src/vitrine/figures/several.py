"""How a part of the data fared where a picture may have several classes, as HTML: headline, figures, class by class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vitrine.figures import tables
from vitrine.figures.markup import escaped, name, percent, span
from vitrine.results import ClassFigures, Figure

LONGEST = 60
"""Letters of a list of classes below a picture."""

WORDS = {
    "exact_match_at": "all classes of a picture right",
    "micro_f1_at": "F1 of the sums",
    "macro_f1_at": "F1, mean of the classes",
    "micro_ap": "average precision, all in one list",
}
"""The figures beside the headline, by name in `Metrics`."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Several:
    """How a part of the data fared. `part` names it, `figures` and `classes` are those of `Metrics`. `guess` is the
    mean average precision of a guess that looks at nothing, `threshold` the probability from which a class is called.
    """

    part: str
    figures: Mapping[str, Figure]
    guess: float
    threshold: float
    classes: tuple[ClassFigures, ...]


def headline(answers: Several) -> str:
    """The mean average precision with its interval."""
    found = answers.figures["map"]
    return (
        f'<section class="headline"><div class="value">{percent(found.value)}</div><div class="words">'
        f"<b>mean average precision on {found.n:,} {escaped(answers.part)} pictures</b><br>"
        f'<span class="soft">95 % interval {span(found)}; a guess that looks at nothing would reach '
        f'{percent(answers.guess)}</span></div><div class="scale">{tables.track(found, answers.guess)}'
        '<div class="ends"><span>0</span><span>50</span><span>100 %</span></div></div></section>'
    )


def section(answers: Several) -> str:
    """The other figures, and a row for every class, the lowest average precision first."""
    rows = "".join(
        f'<tr><td>{words}</td><td class="figure">{tables.figure(answers.figures[key])}</td></tr>'
        for key, words in WORDS.items()
        if key in answers.figures
    )
    ranked = sorted(answers.classes, key=lambda row: (_precision(row), row.name))
    first, rest = ranked[: tables.ROWS], ranked[tables.ROWS :]
    more = f"<details><summary>{len(rest):,} more classes</summary>{_table(rest)}</details>" if rest else ""
    return (
        f"<h2>All classes together</h2><p>Of the {answers.figures['map'].n:,} {escaped(answers.part)} pictures, each "
        f"figure with its 95 % interval. A class is called from the probability {answers.threshold:.3g} on.</p>"
        f'<table class="classes"><tbody>{rows}</tbody></table>'
        "<h2>Class by class</h2><p>n pictures are of the class; the lowest average precision first. F1, precision and "
        f"recall are at that probability.</p>{_table(first)}{more}"
    )


def caption(true: str, said: str, of: str, probability: float) -> str:
    """What stands below a picture with a class wrong: the classes said, those it has, and the class `of` that is wrong
    with the probability that it was given."""
    return (
        f'said {_listed(said, "said")}<br><span class="soft">is</span> {_listed(true, "")}<br>'
        f'<span class="soft">{name(of, 24)} {percent(probability, 0)}</span>'
    )


def _listed(names: str, kind: str) -> str:
    if not names:
        return '<span class="soft">no class</span>'
    return f'<span class="{kind}">{name(names, LONGEST)}</span>' if kind else name(names, LONGEST)


def _precision(row: ClassFigures) -> float:
    """What the rows are ranked by; a class without a picture comes last."""
    return 2.0 if row.average_precision is None else row.average_precision.value


def _table(rows: Sequence[ClassFigures]) -> str:
    body = "".join(
        f'<tr><td>{name(row.name)}</td><td class="n">{row.n:,}</td>'
        f'<td class="figure">{_average_precision(row)}</td><td class="n">{_share(row.f1, row)}</td>'
        f'<td class="n">{_share(row.precision, row)}</td><td class="n">{_share(row.recall.value, row)}</td></tr>'
        for row in rows
    )
    head = "".join(f'<th class="n">{word}</th>' for word in ("F1", "precision", "recall"))
    return (
        '<div class="wide"><table class="classes"><thead><tr><th>class</th><th class="n">n</th>'
        f'<th class="figure">average precision</th>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def _average_precision(row: ClassFigures) -> str:
    if row.average_precision is None:
        return '<span class="soft">no picture of it</span>'
    return tables.figure(row.average_precision)


def _share(value: float | None, row: ClassFigures) -> str:
    """A share; a dash for one that is not known: of a class without pictures, precision of one never called."""
    return '<span class="soft">–</span>' if value is None or not row.n else percent(value)
