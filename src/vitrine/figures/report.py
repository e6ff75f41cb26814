"""The report of a run: one HTML file that needs no network, from plain figures, words and pictures."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Int
from PIL import Image

from vitrine.figures import several, tables
from vitrine.figures.curves import Curve, chart
from vitrine.figures.markup import escaped, name, percent, span
from vitrine.figures.several import Several
from vitrine.figures.sheet import STYLE
from vitrine.figures.tables import ClassRow
from vitrine.results import Figure

THUMBNAIL, SMALL = 128, 48
"""Longest side of a thumbnail; a picture up to the second is shown with its pixels as they are."""

CODE = ("command", "fingerprint")
"""Facts that are written as code is."""

SHARES = ("accuracy", "mean average precision", "all classes right")
"""Charts whose axis goes from 0 to at most 100 %."""

FOOTER = "Written by Vitrine. What each figure means: docs/watching.md."
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
"""What the page may load: nothing but what stands in it. It has no script."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Mistake:
    """A picture with the wrong answer: its `id`, what it is, what was said, and with which probability.

    Where a picture may have several classes `true` and `said` list them, empty for none, and `of` is the class that
    the probability is of.
    """

    id: str
    picture: Image.Image
    true: str
    said: str
    probability: float
    of: str = ""


@dataclass(frozen=True, kw_only=True, eq=False)
class Answers:
    """How a part of the data fared. `part` names it, `guess` is what the most frequent class alone would reach."""

    part: str
    top1: Figure
    guess: float
    confusion: Int[np.ndarray, "K K"]
    classes: tuple[ClassRow, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Option:
    """An option of the run, its value and the default, as they are written."""

    name: str
    value: str
    default: str


@dataclass(frozen=True, kw_only=True, eq=False)
class Report:
    """All that the page shows. Any text may hold anything: it is escaped here.

    `curves` are charts by title, `answers` and `mistakes` are empty for a run that has not ended; `facts` are what the
    run was, in order; `note` says of which part the mistakes are.
    """

    title: str
    lead: str
    state: str
    charts: Mapping[str, Sequence[Curve]]
    kept: int
    answers: Answers | Several | None = None
    warnings: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()
    mistakes: Sequence[Mistake] = ()
    mistakes_of: str = ""
    beside: str = ""
    facts: Mapping[str, str] = field(default_factory=dict)
    options: Sequence[Option] = ()


def page(report: Report) -> str:
    """The whole HTML document. The same report gives the same text."""
    sections = [
        _head(report),
        _headline(report.answers),
        _warnings(report),
        _curves(report),
        _answers(report.answers),
        _mistakes(report),
        _facts(report),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escaped(report.title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(section for section in sections if section)
        + f"\n<footer>{FOOTER}</footer>\n</main>\n</body>\n</html>\n"
    )


def _head(report: Report) -> str:
    return (
        f'<header><p class="eyebrow">{escaped(report.state)}</p><h1>{name(report.title, 120)}</h1>'
        f'<p class="lead">{escaped(report.lead)}</p></header>'
    )


def _headline(answers: Answers | Several | None) -> str:
    if answers is None:
        return ""
    if isinstance(answers, Several):
        return several.headline(answers)
    top1 = answers.top1
    return (
        f'<section class="headline"><div class="value">{percent(top1.value)}</div><div class="words">'
        f"<b>of {top1.n:,} {escaped(answers.part)} pictures named rightly</b><br>"
        f'<span class="soft">95 % interval {span(top1)}; the most frequent class alone would reach '
        f'{percent(answers.guess)}</span></div><div class="scale">{tables.track(top1, answers.guess)}'
        '<div class="ends"><span>0</span><span>50</span><span>100 %</span></div></div></section>'
    )


def _warnings(report: Report) -> str:
    found = [
        f"<li><b>{escaped(label)}</b><br>{escaped(_sentence(text))}</li>" for label, text in report.warnings.items()
    ]
    found += [f"<li>{escaped(_sentence(text))}</li>" for text in report.notes]
    return f'<ul class="warnings">{"".join(found)}</ul>' if found else '<p class="calm">Nothing to warn of.</p>'


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _whole_percent(value: float) -> str:
    return f"{100 * value:g} %"


def _curves(report: Report) -> str:
    drawn = []
    for title, curves in report.charts.items():
        if title in SHARES:
            drawn.append(chart(title, curves, kept=report.kept, zero=True, most=1, show=_whole_percent))
        else:
            drawn.append(chart(title, curves, kept=report.kept, zero=title != "loss"))
    drawn = [one for one in drawn if one]
    if not drawn:
        return '<h2>Curves</h2><p class="soft">No epoch has ended yet.</p>'
    kept = f"Dotted: epoch {report.kept}, whose weights are kept. " if report.kept else ""
    return (
        f'<h2>Curves</h2><div class="charts">{"".join(drawn)}</div><p class="note">{kept}{escaped(report.beside)}</p>'
    )


def _answers(answers: Answers | Several | None) -> str:
    if answers is None:
        return ""
    if isinstance(answers, Several):
        return several.section(answers)
    names = [row.name for row in answers.classes]
    table = tables.matrix(answers.confusion, names)
    listed = tables.pairs(answers.confusion, names, tables.PAIRS if table else 2 * tables.PAIRS)
    none = '<p class="soft">Nothing was confused.</p>' if not listed else ""
    largest = f'<div class="largest"><h3>Largest confusions</h3>{listed}</div>' if listed else none
    return (
        f"<h2>What is taken for what</h2><p>Of the {answers.top1.n:,} {escaped(answers.part)} pictures.</p>"
        f'<div class="beside">{table}{largest}</div>'
        f"<h2>Class by class</h2><p>Each with its 95 % interval; the lowest recall first.</p>"
        f"{tables.classes(answers.classes)}"
    )


def _mistakes(report: Report) -> str:
    if not report.mistakes:
        return ""
    shown = "".join(
        f'<figure title="{escaped(one.id)}"><div class="picture">{thumbnail(one.picture)}</div>'
        f"<figcaption>{_caption(one)}</figcaption></figure>"
        for one in report.mistakes
    )
    return f'<h2>Worst mistakes</h2><p>{escaped(report.mistakes_of)}</p><div class="mistakes">{shown}</div>'


def _caption(one: Mistake) -> str:
    if one.of:
        return several.caption(one.true, one.said, one.of, one.probability)
    return (
        f'said <span class="said">{name(one.said, 24)}</span> {percent(one.probability, 0)}<br>'
        f'<span class="soft">is</span> {name(one.true, 24)}'
    )


def thumbnail(picture: Image.Image) -> str:
    """An `img` element that holds the picture, at most `THUMBNAIL` pixels long: PNG where small, else JPEG."""
    small = max(picture.size) <= SMALL
    shown = picture.convert("L" if picture.mode == "L" else "RGB")
    shown.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    with io.BytesIO() as file:
        if small:
            shown.save(file, "PNG", optimize=True)
        else:
            shown.save(file, "JPEG", quality=82, optimize=True)
        data = base64.b64encode(file.getvalue()).decode()
    kind, word = ("png", ' class="small"') if small else ("jpeg", "")
    return f'<img{word} alt="" width="{shown.width}" height="{shown.height}" src="data:image/{kind};base64,{data}">'


def _facts(report: Report) -> str:
    rows = "".join(
        f"<dt>{escaped(label)}</dt><dd>{f'<code>{escaped(text)}</code>' if label in CODE else escaped(text)}</dd>"
        for label, text in report.facts.items()
        if text
    )
    other = [one for one in report.options if one.value != one.default]
    same = [one for one in report.options if one.value == one.default]
    return (
        f"<h2>The run</h2><dl>{rows}</dl>"
        f"<details><summary>All {len(report.options)} options</summary>"
        f"<h3>Chosen or given ({len(other)})</h3>{_options(other)}"
        f"<h3>At their default ({len(same)})</h3>{_options(same)}</details>"
    )


def _options(options: Sequence[Option]) -> str:
    differ = any(one.value != one.default for one in options)
    head = '<th class="default">default</th>' if differ else ""
    body = "".join(
        f"<tr><td><code>{escaped(one.name)}</code></td><td><code>{escaped(one.value)}</code></td>"
        + (f'<td class="default soft"><code>{escaped(one.default)}</code></td>' if differ else "")
        + "</tr>"
        for one in options
    )
    head = f"<thead><tr><th>option</th><th>value</th>{head}</tr></thead>"
    return f'<table class="options">{head}<tbody>{body}</tbody></table>'
