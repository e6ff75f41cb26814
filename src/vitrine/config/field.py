"""What every option is made of: its default, meaning and unit, and the checks that its class makes."""

from __future__ import annotations

from dataclasses import field
from typing import Any, Literal, get_args, get_origin, get_type_hints

from vitrine.errors import BadConfig, nearest


def option(default: Any, help: str, unit: str = "", *, chosen: bool = False) -> Any:
    """A dataclass field that carries its meaning and unit; `chosen`: training picks it unless it is given."""
    return field(default=default, metadata={"help": help, "unit": unit, "chosen": chosen})


def require(holds: bool, name: str, value: object, wanted: str) -> None:
    """Raise `BadConfig` with the name, the value and what is `wanted`, unless the condition `holds`."""
    if not holds:
        raise BadConfig(f"{name} = {value!r}: {wanted}.")


def check_choices(options: Any, where: str = "") -> None:
    """Refuse a value that is none of its option's choices."""
    for name, hint in get_type_hints(type(options)).items():
        value = getattr(options, name)
        if get_origin(hint) is Literal and value not in get_args(hint):
            remedy = f"must be one of {', '.join(map(str, get_args(hint)))}"
            raise BadConfig(f"{where}{name} = {value!r}: {remedy}.{nearest(str(value), get_args(hint))}")
