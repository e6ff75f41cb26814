"""`vitrine info`: what is in a file, the named models with what they cost, or the recipes with what they promise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from vitrine.cli import foreign, show
from vitrine.cli.foreign import MODEL_HELP
from vitrine.config.text import Nested
from vitrine.errors import UsageError

if TYPE_CHECKING:
    from vitrine.weights.opening import Opened

DESCRIPTION = """What is in a model file: where it comes from, its architecture, conventions, classes and checks; or,
with --models, every named model and what it costs; or, with --recipes, every recipe of training, and with --recipes
NAME one of them whole: each value, what it should reach, and where it deviates from what was published."""


@dataclass(frozen=True, kw_only=True)
class Info:
    """What may be asked for."""

    file: Annotated[
        str | None, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL", help=MODEL_HELP, help_behavior_hint="")
    ] = None
    models: Annotated[bool, tyro.conf.FlagCreatePairsOff, tyro.conf.arg(help="the named models")] = False
    recipes: Annotated[
        bool,
        tyro.conf.FlagCreatePairsOff,
        tyro.conf.arg(help="the recipes, or the named one"),
    ] = False
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff, tyro.conf.arg(help="one JSON object on stdout")] = False


def main(words: Sequence[str]) -> int:
    """Run the verb."""
    asked, said = foreign.parse(Info, words, "info", DESCRIPTION)
    if asked.recipes and not asked.models:
        from vitrine.cli import recipes

        recipes.show_all(asked.json) if asked.file is None else recipes.show_one(asked.file, asked.json)
        return 0
    if asked.recipes or asked.models == (asked.file is not None):
        raise UsageError("give either a MODEL or --models, or --recipes and the name of one.")
    if asked.models:
        _models(asked.json)
    else:
        _file(str(asked.file), said, asked.json)
    return 0


def _models(json: bool) -> None:
    from vitrine.config.models import ALIASES, NAMES, named
    from vitrine.models.cost import macs, num_parameters

    short = {full: alias for alias, full in ALIASES.items()}
    rows = [(name, short.get(name, ""), num_parameters(named(name)), macs(named(name))) for name in NAMES]
    if json:
        show.as_json(
            {
                "models": [
                    {"name": name, "alias": alias, "parameters": size, "macs": cost, "flop": 2 * cost}
                    for name, alias, size, cost in rows
                ]
            }
        )
        return
    show.table(
        ("model", "short", "parameters, M", "GMACs", "GFLOP"),
        (
            (name, alias, f"{size / 1e6:.2f}", f"{cost / 1e9:.3g}", f"{2 * cost / 1e9:.3g}")
            for name, alias, size, cost in rows
        ),
    )
    print("For one picture, with a head of 1,000 classes. GMACs are what most papers call GFLOPs; GFLOP = 2 GMACs.")


def _file(path: str, said: Nested, json: bool) -> None:
    from vitrine.config.text import to_dict
    from vitrine.models.cost import macs, num_parameters
    from vitrine.predict.classifier import opened

    source = opened(path, said)
    found = source.bundle
    size, cost = num_parameters(found.model), macs(found.model)
    facts: dict[str, Any] = {
        "file": source.path,
        "title": source.title,
        **foreign.account(source),
        "parameters": size,
        "macs": cost,
        "flop": 2 * cost,
        "model": to_dict(found.model),
        "preprocess": to_dict(found.preprocess),
        "class_names": list(found.class_names),
        "multi_label": found.multi_label,
        "threshold": found.threshold,
        "metrics": {part: {n: f.as_json() for n, f in of.items()} for part, of in found.metrics.items()},
        "provenance": to_dict(found.provenance),
        "finished": found.finished,
        "notes": list(found.notes),
    }
    if json:
        show.as_json(facts)
        return
    _print(source, facts)


TOLD = {
    "top1": "top-1",
    "map": "mean average precision",
    "exact_match_at": "all classes right",
    "masked_top1": "colour of hidden patches named,",
}
"""The figures of a part that are told, and their words."""


def _print(source: Opened, facts: Nested) -> None:
    """The facts in words and tables; of the options only those that are not as usual, or that say the size."""
    found = source.bundle
    if source.format == "vitrine":
        print(f"{source.path}: whole, its SHA-256 holds" + ("" if found.finished else "; the run is not finished"))
    else:
        print(f"{source.path}: {source.title}; {len(source.used)} tensors used, {len(source.dropped)} dropped")
    print(f"{facts['parameters'] / 1e6:.2f} M parameters, {facts['macs'] / 1e9:.3g} GMACs, ", end="")
    print(f"{facts['flop'] / 1e9:.3g} GFLOP a picture")
    shown = ", ".join(found.class_names[:10]) + (", ..." if len(found.class_names) > 10 else "")
    print(f"{len(found.class_names)} classes: {shown}" if found.class_names else "no head: it gives features")
    if found.multi_label:
        print(f"a picture may have several classes, or none: those whose probability is {found.threshold:.3g} or more")
    for part, figures in found.metrics.items():
        for name, words in TOLD.items():
            if name in figures:
                print(f"{part}: {words} {figures[name].percent()}")
    for what in ("dropped", "fresh"):
        for name, why in facts[what].items():
            print(f"{what}: {name}: {why}")
    for sentence in dict.fromkeys((*source.said, *found.notes)):
        print(f"note: {sentence}")
    for title in ("model", "preprocess", "provenance"):
        rows = [(name, str(value)) for name, value in facts[title].items() if value not in ("", [], {})]
        show.table((title, ""), [row for row in rows if row[0] != "resnet" or found.model.family != "vit"])
