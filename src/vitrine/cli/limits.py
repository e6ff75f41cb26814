"""How large a picture may be: the two options that every verb shares which opens pictures with a trained model."""

from __future__ import annotations

from dataclasses import fields
from typing import Annotated

import tyro

from vitrine.config.options import DataConfig

_HELP = {f.name: f"{f.metadata['help']} [{f.metadata['unit']}]" for f in fields(DataConfig)}
_DEFAULT = "(default: that of the model's training)"

MaxPixels = Annotated[int | None, tyro.conf.arg(metavar="INT", help=_HELP["max_pixels"], help_behavior_hint=_DEFAULT)]
MaxBytes = Annotated[int | None, tyro.conf.arg(metavar="INT", help=_HELP["max_bytes"], help_behavior_hint=_DEFAULT)]
