"""From words on the command line to options: tyro reads them, the option classes say what there is."""

from __future__ import annotations

import re
import types
from collections.abc import Sequence
from dataclasses import MISSING, fields, is_dataclass, make_dataclass
from dataclasses import field as dataclass_field
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import tyro

from vitrine.errors import UsageError, nearest

T = TypeVar("T")

METAVARS: dict[Any, str] = {int: "INT", float: "FLOAT", str: "TEXT", bool: "{True,False}"}


def parse(kind: type[T], words: Sequence[str], verb: str, description: str) -> T:
    """An instance of the dataclass `kind` from `words`. Raises `UsageError` with the nearest name for an
    unknown option; ends the process with code 2 for a value of the wrong type and with 0 for --help."""
    parsed, unknown = tyro.cli(
        kind, args=list(words), prog=f"vitrine {verb}", description=description, return_unknown_args=True
    )
    if unknown:
        word = unknown[0]
        known = list(option_names(kind))
        hint = nearest(word.partition("=")[0], known) if word.startswith("-") else ""
        raise UsageError(f"{word}: there is no such option or argument.{hint} `vitrine {verb} --help` lists them.")
    return parsed


def option_names(kind: Any, prefix: str = "--") -> list[str]:
    """Every option of a dataclass as it is typed, such as `--optim.weight-decay`."""
    names: list[str] = []
    hints = get_type_hints(kind)
    for f in fields(kind):
        word = f.name.replace("_", "-")
        inner = hints[f.name]
        names += option_names(inner, f"{prefix}{word}.") if is_dataclass(inner) else [prefix + word]
    return names


def annotate(given: Any, defaults: Any) -> type:
    """The class of optional options `given` with help for tyro, defaults told from the class `defaults`."""
    hints, origin = get_type_hints(given), {f.name: f for f in fields(defaults)}
    kinds = get_type_hints(defaults)
    slots: list[tuple[str, Any, Any]] = []
    for f in fields(given):
        if is_dataclass(hints[f.name]):
            part = annotate(hints[f.name], kinds[f.name])
            slots.append((f.name, part, dataclass_field(default_factory=part)))
            continue
        unit = f" [{f.metadata['unit']}]" if f.metadata["unit"] else ""
        default = origin[f.name].default
        known = default is not MISSING and default not in ("", None)
        hint = "(default: chosen)" if f.metadata["chosen"] else f"(default: {default})" if known else ""
        described = tyro.conf.arg(
            help=f.metadata["help"] + unit, help_behavior_hint=hint, metavar=metavar(kinds[f.name])
        )
        slots.append((f.name, Annotated[hints[f.name], described], dataclass_field(default=None)))
    return make_dataclass(given.__name__, slots, frozen=True, kw_only=True, namespace={"__doc__": defaults.__doc__})


def metavar(kind: Any) -> str:
    """How a type is shown in help."""
    origin, args = get_origin(kind), get_args(kind)
    if origin is Literal:
        return "{" + ",".join(map(str, args)) + "}"
    if origin in (Union, types.UnionType):
        return "|".join(metavar(arg) for arg in args if arg is not type(None))
    if origin is tuple:
        return " ".join(metavar(arg) for arg in args if arg is not ...) + (" ..." if ... in args else "")
    return METAVARS[kind]


def seconds(text: str) -> float:
    """Seconds meant by `90`, `90s`, `10m` or `2h`. Raises `UsageError`."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|m|min|h)?", text.strip())
    if not found or float(found[1]) <= 0:
        raise UsageError(f"--max-time {text}: give a time such as 90s, 10m or 2h.")
    return float(found[1]) * {"m": 60, "min": 60, "h": 3600}.get(found[2] or "s", 1)
