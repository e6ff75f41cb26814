"""Options as nested dicts, TOML and JSON, strictly: an unknown name is refused with the nearest known one."""

from __future__ import annotations

import tomllib
import types
from collections.abc import Iterator, Mapping
from dataclasses import field as dataclass_field
from dataclasses import fields, is_dataclass, make_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import tomli_w

from vitrine.errors import BadConfig, NotFound, nearest
from vitrine.files import write_text

T = TypeVar("T")
Nested = dict[str, Any]


def to_dict(config: Any) -> Nested:
    """Nested plain dict of an option class: tuples as lists, options that are None left out."""
    values = {f.name: getattr(config, f.name) for f in fields(config)}
    return {
        name: to_dict(value) if is_dataclass(value) else list(value) if isinstance(value, tuple) else value
        for name, value in values.items()
        if value is not None
    }


def from_dict(kind: type[T], values: Mapping[str, Any], where: str = "") -> T:
    """An instance of the option class `kind`. Raises `BadConfig` on an unknown name or a wrong type."""
    hints = get_type_hints(kind)
    for name in values:
        if name not in hints:
            raise BadConfig(f"{where}{name}: there is no such option.{nearest(name, hints)}")
    return kind(**{name: _coerce(hints[name], value, where + name) for name, value in values.items()})


def _coerce(hint: Any, value: Any, where: str) -> Any:
    """`value` as the type `hint` asks for, refusing what would lose something."""
    origin, args = get_origin(hint), get_args(hint)
    if is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise BadConfig(f"{where} = {value!r}: must be a table of options.")
        return from_dict(hint, value, where + ".")  # type: ignore[arg-type]
    if origin is Literal:
        if value in args:
            return value
        raise BadConfig(f"{where} = {value!r}: must be one of {', '.join(map(str, args))}.{nearest(str(value), args)}")
    if origin in (Union, types.UnionType):
        return _coerce_union(args, value, where)
    if origin is tuple and isinstance(value, list | tuple):
        kinds = (args[0],) * len(value) if args[-1] is ... else args
        if len(kinds) == len(value):
            return tuple(_coerce(kind, part, where) for kind, part in zip(kinds, value, strict=True))
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if isinstance(hint, type) and isinstance(value, hint) and (hint is bool or not isinstance(value, bool)):
        return value
    raise BadConfig(f"{where} = {value!r}: must be of type {_spell(hint)}.")


def _spell(hint: Any) -> str:
    """A type as an error names it: `int`, `tuple[int, int]`, `None`."""
    if hint is type(None):
        return "None"
    return str(hint) if get_origin(hint) else hint.__name__


def _coerce_union(kinds: tuple[Any, ...], value: Any, where: str) -> Any:
    if value is None and type(None) in kinds:
        return None
    for kind in kinds:
        try:
            return _coerce(kind, value, where)
        except BadConfig:
            continue
    raise BadConfig(f"{where} = {value!r}: must be of type {' or '.join(map(_spell, kinds))}.")


def merge(*layers: Mapping[str, Any]) -> Nested:
    """Nested dicts laid over each other; the later wins, option by option."""
    merged: Nested = {}
    for layer in layers:
        for name, value in layer.items():
            old = merged.get(name)
            merged[name] = merge(old, value) if isinstance(old, dict) and isinstance(value, Mapping) else value
    return merged


def nested(options: Mapping[str, Any]) -> Nested:
    """`optim__lr=1` as `{"optim": {"lr": 1}}`, tuples and nested dicts as they are."""
    found: Nested = {}
    for name, value in options.items():
        group, _, rest = name.partition("__")
        found = merge(found, {group: {rest: value}} if rest else {name: value})
    return found


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names and values, such as `("optim.lr", 0.001)`."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def partial(kind: type, leave_out: frozenset[str] = frozenset()) -> type:
    """The option class with every option optional and absent by default: what a user may give, not what holds.

    `leave_out` names options, dotted, that the user does not set.
    """
    hints = get_type_hints(kind)
    slots: list[tuple[str, Any, Any]] = []
    for f in fields(kind):
        hint = hints[f.name]
        if f.name in leave_out:
            continue
        if is_dataclass(hint):
            inner = frozenset(name.partition(".")[2] for name in leave_out if name.startswith(f.name + "."))
            part = partial(hint, inner)  # type: ignore[arg-type]
            slots.append((f.name, part, dataclass_field(default_factory=part)))
        else:
            slots.append((f.name, hint | None, dataclass_field(default=None, metadata=dict(f.metadata))))
    return make_dataclass(
        f"Given{kind.__name__}", slots, frozen=True, kw_only=True, namespace={"__doc__": kind.__doc__}
    )


def given(options: Any) -> Nested:
    """What was given in an instance of a `partial` class, empty tables left out."""
    return _filled(to_dict(options))


def _filled(values: Nested) -> Nested:
    found = {name: _filled(value) if isinstance(value, dict) else value for name, value in values.items()}
    return {name: value for name, value in found.items() if value != {}}


def write_toml(config: Any, path: Path) -> None:
    """Write an option class as TOML, whole or not at all."""
    write_text(path, tomli_w.dumps(to_dict(config)))


def read_toml(path: Path) -> Nested:
    """The nested dict in a TOML file. Raises `NotFound` or `BadConfig` with the line."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise NotFound(f"{path}: there is no such file.") from error
    except OSError as error:
        raise NotFound(f"{path}: cannot be read ({error.strerror}). Give a TOML file you may read.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadConfig(f"{path}: this is not valid TOML: {error}") from error
