"""How large a picture may be and in which column it stands: options of the verbs that give pictures to a model."""

from __future__ import annotations

from dataclasses import fields
from typing import Annotated

import tyro

from vitrine.config.options import DataConfig

HELP = {
    f.name: f.metadata["help"] + (f" [{f.metadata['unit']}]" if f.metadata["unit"] else "") for f in fields(DataConfig)
}
_DEFAULT = "(default: that of the model's training)"

MaxPixels = Annotated[int | None, tyro.conf.arg(metavar="INT", help=HELP["max_pixels"], help_behavior_hint=_DEFAULT)]
MaxBytes = Annotated[int | None, tyro.conf.arg(metavar="INT", help=HELP["max_bytes"], help_behavior_hint=_DEFAULT)]
ImageColumn = Annotated[
    str | None, tyro.conf.arg(metavar="TEXT", help=HELP["image_column"], help_behavior_hint=_DEFAULT)
]
LabelColumn = Annotated[
    str | None, tyro.conf.arg(metavar="TEXT", help=HELP["label_column"], help_behavior_hint=_DEFAULT)
]
