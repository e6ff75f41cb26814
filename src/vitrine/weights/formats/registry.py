"""Every public format by name, each in a module that is imported when it is first needed."""

from __future__ import annotations

import importlib
from collections.abc import Iterator

from vitrine.errors import UsageError, nearest
from vitrine.weights.foreign import Format, Raw

FORMATS = {
    "google": "google",
    "big_vision": "big_vision",
    "timm": "timm",
    "hf": "transformers",
    "torchvision": "torchvision",
    "deit": "deit",
    "dinov2": "dinov2",
    "dinov3": "dinov3",
    "clip": "clip",
    "bit": "bit",
    "jeonsworld": "jeonsworld",
    "mmpretrain": "mmpretrain",
    "lucidrains": "lucidrains",
    "vit-numpy": "numpy_list",
    "torch-encoder": "refused",
    "lucidrains-now": "refused",
    "lucidrains-simple": "refused",
    "open-clip-timm": "refused",
    "transformers-clip": "refused",
}
"""Names, and the modules that hold them as `FORMAT` or among `FORMATS`."""


ALIASES = {"transformers": "hf"}
"""Other names that a user may give."""


def chosen(name: str) -> Format:
    """The format that a user calls `name`. Raises `UsageError` with the nearest name."""
    known = readable()
    if ALIASES.get(name, name) not in known:
        raise UsageError(f"--format {name}: there is no such format.{nearest(name, known)} "
                         f"There is: {', '.join(known)}.")  # fmt: skip
    return format_named(ALIASES.get(name, name))


def format_named(name: str) -> Format:
    """The format called `name`, one of `FORMATS`."""
    return next(found for found in held(FORMATS[name]) if found.name == name)


def held(module: str) -> tuple[Format, ...]:
    """The formats of one module of this folder."""
    there = importlib.import_module(f"{__package__}.{module}")
    return tuple(there.FORMATS) if hasattr(there, "FORMATS") else (there.FORMAT,)


def readable() -> list[str]:
    """The names of the formats that are more than recognised and refused."""
    return [name for name, module in FORMATS.items() if module != "refused"]


def every() -> Iterator[Format]:
    """All formats, in the order of their names above."""
    return (format_named(name) for name in FORMATS)


def fitting(raw: Raw) -> list[Format]:
    """The formats that a file is of: one, unless it is a stranger's or ambiguous."""
    return [found for found in every() if found.fits(raw)]
