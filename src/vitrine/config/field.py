"""What every option is made of: its default, meaning and unit, and the checks that its class makes."""

from __future__ import annotations

import math
from dataclasses import field
from typing import Any, Literal, get_args, get_origin, get_type_hints

from vitrine.errors import BadConfig, nearest

MAX_SIDE = 8_192
"""Pixels of a side that a model may be given: numbers typed wrong are refused before memory is asked for."""

MAX_WIDTH = 1_000_000
"""The largest number of classes, tokens of a kind, or numbers in a vector."""


def option(default: Any, help: str, unit: str = "", *, chosen: bool = False) -> Any:
    """A dataclass field that carries its meaning and unit; `chosen`: training picks it unless it is given."""
    return field(default=default, metadata={"help": help, "unit": unit, "chosen": chosen})


def require(holds: bool, name: str, value: object, wanted: str) -> None:
    """Raise `BadConfig` with the name, the value and what is `wanted`, unless the condition `holds`."""
    if not holds:
        raise BadConfig(f"{name} = {value!r}: {wanted}.")


def check_choices(options: Any, where: str = "") -> None:
    """Refuse a value that is none of its option's choices, and an infinite number."""
    for name, hint in get_type_hints(type(options)).items():
        value = getattr(options, name)
        require(not isinstance(value, float) or abs(value) != math.inf, where + name, value, "must be a finite number")
        if get_origin(hint) is Literal and value not in get_args(hint):
            remedy = f"must be one of {', '.join(map(str, get_args(hint)))}"
            raise BadConfig(f"{where}{name} = {value!r}: {remedy}.{nearest(str(value), get_args(hint))}")
