"""`vitrine evaluate`: measure a model on data."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from vitrine.cli import foreign, show
from vitrine.cli.foreign import File
from vitrine.cli.limits import ImageColumn, LabelColumn, MaxBytes, MaxPixels
from vitrine.config.options import Device
from vitrine.errors import UsageError
from vitrine.train.watch import Watch

DESCRIPTION = """Measure a model on data: accuracy with its 95 % interval, loss, calibration, every class. On the data
it was trained on, only the part kept for the test counts, unless --part says otherwise."""


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """What may be asked for."""

    file: File
    data: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATA", help="as for `vitrine train`")]
    part: Annotated[
        Literal["auto", "all", "train", "validation", "test"], tyro.conf.arg(help="which part of the data")
    ] = "auto"
    confusion: Annotated[
        Path | None, tyro.conf.arg(metavar="PNG", help="draw the confusion matrix here", help_behavior_hint="")
    ] = None
    image_column: ImageColumn = None
    label_column: LabelColumn = None
    max_pixels: MaxPixels = None
    max_bytes: MaxBytes = None
    device: Annotated[Device, tyro.conf.arg(help="where to run")] = "auto"
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff, tyro.conf.arg(help="one JSON object on stdout")] = False


def main(words: Sequence[str]) -> int:
    """Run the verb."""
    asked, said = foreign.parse(Evaluate, words, "evaluate", DESCRIPTION)
    if asked.confusion is not None and asked.confusion.suffix.lower() != ".png":
        raise UsageError(f"--confusion {asked.confusion}: the picture is a PNG; name it so.")

    import numpy as np

    from vitrine.figures.confusion import confusion_matrix
    from vitrine.predict.judge import judge

    model = foreign.load(asked, said)
    if model.multi_label and asked.confusion is not None:
        raise UsageError(
            f"--confusion {asked.confusion}: a picture may have several classes, so none is taken for another. "
            "The table has precision and recall of each class."
        )
    asked_for = {"image_column": asked.image_column, "label_column": asked.label_column}
    columns = {option: name for option, name in asked_for.items() if name is not None}
    with Watch() as watch:
        found = judge(
            model,
            asked.data,
            asked.part,
            columns=columns,
            scanning=watch.counting("looking at every picture"),
            measuring=watch.counting("measuring"),
        )
    for name, reason in found.bad.items():
        print(f"left out: {name}: {reason}", file=sys.stderr)
    print(f"measured on: {found.part} ({found.why})", file=sys.stderr)
    if asked.confusion is not None:
        counts = np.array(found.metrics.confusion)
        top1 = found.metrics.top1
        title = f"{Path(asked.data).name}: {100 * top1.value:.1f} % of {top1.n:,} right"
        confusion_matrix(counts, model.class_names, asked.confusion, title=title)
    if asked.json:
        show.as_json(
            {
                "model": asked.file,
                "data": asked.data,
                "part": found.part,
                "left_out": found.bad,
                **found.metrics.as_json(),
            }
        )
        return 0
    show.metrics(found.metrics)
    if asked.confusion is not None:
        print(asked.confusion)
    return 0
