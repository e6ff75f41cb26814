"""`vitrine train`: from data to a run folder; with --init, fine-tuning; on a stopped run, going on."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import MISSING, Field, dataclass, field, fields, make_dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from tyro.conf import arg

from vitrine.cli import arguments, show
from vitrine.cli.limits import HELP
from vitrine.config.options import Config
from vitrine.config.text import Nested, from_dict, given, merge, partial, read_toml

DESCRIPTION = """Train a Vision Transformer. Every option has a default chosen from the data and the machine, told with
its reason when the run begins. The same command goes on with a run that stopped."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """The arguments that are no options of the run itself."""

    source: Annotated[
        str | None, tyro.conf.Positional, arg(metavar="DATA", help_behavior_hint="", help=HELP["source"])
    ] = None
    out: Annotated[Path, arg(metavar="FOLDER", help="where the run goes")]
    config: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="", help="options from a TOML file")] = None
    max_time: Annotated[
        str | None, arg(metavar="TIME", help_behavior_hint="(default: chosen)", help="longest training: 90s, 10m, 2h")
    ] = None
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff, arg(help="one JSON object on stdout")] = False
    quiet: Annotated[bool, tyro.conf.FlagCreatePairsOff, arg(aliases=["-q"], help="nothing on stderr but errors")] = (
        False
    )


def _arguments() -> Any:
    """`Run` and every option of `Config` in one class."""
    options = arguments.annotate(partial(Config, frozenset({"data.source", "max_time_s"})), Config)
    slots = [(f.name, f.type, _same_default(f)) for f in fields(options)]
    return make_dataclass("Train", slots, bases=(Run,), frozen=True, kw_only=True)


def _same_default(f: Field[Any]) -> Any:
    return field(default=f.default) if f.default_factory is MISSING else field(default_factory=f.default_factory)


def _options_in(file: Path) -> Nested:
    """What a TOML file asks for, its names and types checked: nothing in it may pass for another argument of a run."""
    found = read_toml(file)
    from_dict(partial(Config), found, f"{file}: ")
    return found


def main(words: Sequence[str]) -> int:
    """Run the verb."""
    kind = _arguments()
    asked = arguments.parse(kind, words, "train", DESCRIPTION)
    options = given(asked)
    for f in fields(Run):
        options.pop(f.name, None)
    if asked.config is not None:
        options = merge(_options_in(asked.config), options)
    if asked.max_time is not None:
        options["max_time_s"] = arguments.seconds(asked.max_time)

    from vitrine.train.asked import heard

    with heard(asked.out):  # from here on: what follows takes seconds before `train` itself hears
        from vitrine.machine import ranks
        from vitrine.train.report import REPORT_FILE
        from vitrine.train.run import train
        from vitrine.train.watch import Watch

        outcome = train(
            asked.source,
            asked.out,
            watch=Watch(quiet=asked.quiet),
            command=shlex.join(["vitrine", "train", *words]),
            **options,
        )
    if ranks.asked().rank:
        return 0  # rank 0 speaks for all
    if asked.json:
        figures = {part: {n: f.as_json() for n, f in of.items()} for part, of in outcome.bundle.metrics.items()}
        notes, page = list(outcome.bundle.notes), str(outcome.out / REPORT_FILE)
        show.as_json({"out": str(outcome.out), "metrics": figures, "notes": notes, "report": page})
        return 0
    if outcome.test is not None:
        show.metrics(outcome.test)
    elif outcome.bundle.class_names:
        print("not measured: there were too few pictures for a test part")
    for figure in (of["masked_top1"] for of in outcome.bundle.metrics.values() if "masked_top1" in of):
        print(f"colour of hidden patches named, validation: {figure.percent()}")
    print(f"model: {outcome.out / 'model.safetensors'}")
    print(f"look:  {outcome.out / REPORT_FILE}")
    run = shlex.quote(str(outcome.out))
    named = bool(outcome.bundle.class_names)
    print(f"next:  vitrine predict {run} PICTURE" if named else f"next:  vitrine train DATA --init {run} --out FOLDER")
    return 0
