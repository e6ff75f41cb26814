"""From words on the command line to options: tyro reads them, the option classes say what there is."""

from __future__ import annotations

import contextlib
import io
import itertools
import re
import types
from collections.abc import Sequence
from dataclasses import MISSING, fields, is_dataclass, make_dataclass
from dataclasses import field as dataclass_field
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import tyro
from tyro.conf import Positional

from vitrine.errors import UsageError, nearest

T = TypeVar("T")

OPTION = re.compile(r"-[a-zA-Z]|--.")
"""How a word begins that is an option; -3 is a number."""

METAVARS: dict[Any, str] = {int: "INT", float: "FLOAT", str: "TEXT", bool: "{True,False}"}


def parse(kind: type[T], words: Sequence[str], verb: str, description: str) -> T:
    """An instance of the dataclass `kind` from `words`; ends the process with code 0 for --help.

    Raises `UsageError` with the nearest name for an unknown option, what is wanted for a value that does not
    fit, or what is missing.
    """
    told = io.StringIO()
    try:
        with contextlib.redirect_stderr(told):
            parsed, unknown = tyro.cli(
                kind,
                args=in_order(kind, words),
                prog=f"vitrine {verb}",
                description=description,
                return_unknown_args=True,
            )
    except SystemExit as end:
        if not end.code:
            raise
        plain = " ".join(re.sub(r"[\u2500-\u257f]", " ", told.getvalue()).split())
        raise UsageError(fault(kind, words, verb) or plain) from None
    if unknown:
        first = next(filter(OPTION.match, unknown), unknown[0])
        raise UsageError(_unknown(kind, first, verb))
    return parsed


def in_order(kind: type, words: Sequence[str]) -> list[str]:
    """`words` with those of no option first, as an option of several values would take them for its own."""
    options, loose, kept = _hints(kind), list[str](), list[str]()
    place = 0
    while place < len(words):
        word = words[place]
        place += 1
        (kept if OPTION.match(word) else loose).append(word)
        hint = options.get(word.replace("_", "-"), bool)
        if hint is bool or not OPTION.match(word):
            continue  # no option, a flag, or an option with its value after =
        values = list(itertools.takewhile(lambda w: not OPTION.match(w), words[place:]))
        count = max((k for k in range(1, len(values) + 1) if _fits(hint, values[:k])), default=1)
        kept += values[:count]
        place += len(values[:count])
    return [*loose, *kept]


def _unknown(kind: type, word: str, verb: str) -> str:
    hint = nearest(word.partition("=")[0], option_names(kind)) if word.startswith("-") else ""
    return f"{word}: there is no such option or argument.{hint} `vitrine {verb} --help` lists them."


def fault(kind: type, words: Sequence[str], verb: str) -> str:
    """The first thing wrong with `words`, in a sentence: an unknown option, a value that does not fit, or what is
    missing. Empty where these hold."""
    options, positional = _hints(kind), [name for name, extras in _extras(kind).items() if Positional in extras]
    given: set[str] = set()
    place = loose = 0
    while place < len(words):
        word, equals, value = words[place].partition("=")
        place += 1
        if not OPTION.match(word):
            loose += 1
            continue
        name = word.replace("_", "-")
        if word.startswith("--") and (name not in options or name in positional):
            return _unknown(kind, words[place - 1], verb)
        given.add(name)
        hint = options.get(name, bool)  # a single letter is short for a flag
        if hint is bool:
            continue
        values = [value] if equals else list(itertools.takewhile(lambda w: not OPTION.match(w), words[place:]))
        taken = [k for k in range(1, len(values) + 1) if _fits(hint, values[:k])]
        if not taken:
            near = nearest(values[0], map(str, _choices(hint))) if values else ""
            return f"{' '.join([word, *values[:1]])}: give {wanted(hint)}.{near}"
        place += 0 if equals else taken[-1]
    needed = positional[loose:] + [name for name in options if name not in positional and name not in given]
    return next((_missing(kind, name) for name in needed if name in _required(kind)), "")


def option_names(kind: Any) -> list[str]:
    """Every option of a dataclass as it is typed, such as `--optim.weight-decay`."""
    return list(_hints(kind))


def _hints(kind: Any, prefix: str = "--") -> dict[str, Any]:
    """The type of every option, by its name as it is typed."""
    found: dict[str, Any] = {}
    for name, hint in get_type_hints(kind).items():
        word = prefix + name.replace("_", "-")
        found |= _hints(hint, f"{word}.") if is_dataclass(hint) else {word: hint}
    return found


def _extras(kind: Any) -> dict[str, tuple[Any, ...]]:
    """What stands beside the type of an argument of the first level for tyro, by its name as it is typed."""
    hints = get_type_hints(kind, include_extras=True)
    return {f"--{name.replace('_', '-')}": getattr(hint, "__metadata__", ()) for name, hint in hints.items()}


def _required(kind: Any) -> set[str]:
    without = (f for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING)
    return {f"--{f.name.replace('_', '-')}" for f in without}


def _missing(kind: Any, name: str) -> str:
    extras = _extras(kind)[name]
    (told,) = (extra for extra in extras if hasattr(extra, "metavar"))
    return f"{told.metavar if Positional in extras else f'{name} {told.metavar}'} is missing: {told.help}."


def _choices(hint: Any) -> tuple[Any, ...]:
    """The values of a Literal, or of one that may be None."""
    if get_origin(hint) is Literal:
        return get_args(hint)
    return tuple(choice for part in get_args(hint) for choice in _choices(part))


def _fits(hint: Any, values: Sequence[str]) -> bool:
    """Whether these words are a value of the type."""
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(_fits(part, values) for part in args)
    if origin is tuple:
        kinds = (args[0],) * len(values) if args[-1] is ... else args
        return len(kinds) == len(values) and all(
            _fits(kind, [value]) for kind, value in zip(kinds, values, strict=True)
        )
    if len(values) != 1:
        return False
    if origin is Literal or hint in (bool, type(None)):
        return values[0] in map(str, args if origin is Literal else [None] if hint is type(None) else [True, False])
    if hint in (int, float):
        try:
            hint(values[0])
        except ValueError:
            return False
    return True


def wanted(hint: Any) -> str:
    """A type in words, such as `a whole number`."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal:
        return f"one of {', '.join(map(str, args))}"
    if origin in (Union, types.UnionType):
        return " or ".join(wanted(part) for part in args if part is not type(None))
    if origin is tuple:
        if get_origin(args[0]) is Literal:
            return f"some of {', '.join(map(str, get_args(args[0])))}"
        kinds = wanted(args[0]).removeprefix("a ") + "s"
        return kinds if args[-1] is ... else f"{len(args)} {kinds}"
    return {int: "a whole number", float: "a number", bool: "True or False"}.get(hint, "a value")


def annotate(given: Any, defaults: Any, *, doc: str = "", default: str = "") -> type:
    """The class of optional options `given` with help for tyro, defaults told from the class `defaults`.

    `doc` stands for the docstring of that class, and `default` for every default, where they are given.
    """
    hints, origin = get_type_hints(given), {f.name: f for f in fields(defaults)}
    kinds = get_type_hints(defaults)
    slots: list[tuple[str, Any, Any]] = []
    for f in fields(given):
        if is_dataclass(hints[f.name]):
            part = annotate(hints[f.name], kinds[f.name])
            slots.append((f.name, part, dataclass_field(default_factory=part)))
            continue
        unit = f" [{f.metadata['unit']}]" if f.metadata["unit"] else ""
        own = origin[f.name].default
        known = own is not MISSING and own not in ("", None)
        hint = "(default: chosen)" if f.metadata["chosen"] else f"(default: {own})" if known else ""
        described = tyro.conf.arg(
            help=f.metadata["help"] + unit, help_behavior_hint=default or hint, metavar=metavar(kinds[f.name])
        )
        slots.append((f.name, Annotated[hints[f.name], described], dataclass_field(default=None)))
    namespace = {"__doc__": doc or defaults.__doc__}
    return make_dataclass(given.__name__, slots, frozen=True, kw_only=True, namespace=namespace)


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
