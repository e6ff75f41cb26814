"""`vitrine info`: what is in a file, or the named models with what they cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import tyro

from vitrine.cli import arguments, show
from vitrine.errors import UsageError

DESCRIPTION = "What is in a model file, its hash checked; or, with --models, every named model and what it costs."


@dataclass(frozen=True, kw_only=True)
class Info:
    """What may be asked for."""

    model: Annotated[
        str | None,
        tyro.conf.Positional,
        tyro.conf.arg(metavar="MODEL", help="run folder or bundle", help_behavior_hint=""),
    ] = None
    models: Annotated[bool, tyro.conf.FlagCreatePairsOff, tyro.conf.arg(help="the named models")] = False
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff, tyro.conf.arg(help="one JSON object on stdout")] = False


def main(words: Sequence[str]) -> int:
    """Run the verb."""
    asked = arguments.parse(Info, words, "info", DESCRIPTION)
    if asked.models == (asked.model is not None):
        raise UsageError("give either a MODEL or --models.")
    if asked.models:
        _models(asked.json)
    else:
        _file(str(asked.model), asked.json)
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


def _file(path: str, json: bool) -> None:
    from vitrine.config.text import to_dict
    from vitrine.models.cost import macs, num_parameters
    from vitrine.weights.bundle import facts_of, locate

    found = facts_of(path)
    size, cost = num_parameters(found.model), macs(found.model)
    facts: dict[str, Any] = {
        "file": str(locate(path)),
        "parameters": size,
        "macs": cost,
        "flop": 2 * cost,
        "model": to_dict(found.model),
        "preprocess": to_dict(found.preprocess),
        "class_names": list(found.class_names),
        "metrics": {part: {n: f.as_json() for n, f in of.items()} for part, of in found.metrics.items()},
        "provenance": to_dict(found.provenance),
        "finished": found.finished,
        "notes": list(found.notes),
    }
    if json:
        show.as_json(facts)
        return
    print(f"{facts['file']}: whole, its SHA-256 holds" + ("" if found.finished else "; the run is not finished"))
    print(f"{size / 1e6:.2f} M parameters, {cost / 1e9:.3g} GMACs, {2 * cost / 1e9:.3g} GFLOP a picture")
    shown = ", ".join(found.class_names[:10]) + (", ..." if len(found.class_names) > 10 else "")
    print(f"{len(found.class_names)} classes: {shown}")
    for part, figures in found.metrics.items():
        print(f"{part}: top-1 {figures['top1'].percent()}")
    for note in found.notes:
        print(f"note: {note}")
    for title in ("model", "preprocess", "provenance"):
        rows = [(name, str(value)) for name, value in facts[title].items() if value not in ("", [], {})]
        show.table((title, ""), rows)
