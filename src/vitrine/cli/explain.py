"""`vitrine explain`: show what a prediction looked at, as a PNG and in a terminal that can."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from vitrine.cli import foreign, show
from vitrine.cli.foreign import File
from vitrine.cli.limits import MaxBytes, MaxPixels
from vitrine.config.options import Device
from vitrine.errors import UsageError

DESCRIPTION = """Show what a prediction looked at: attention rollout over the picture, and every head of the last layer;
of a ResNet, which has no attention, what each place of the picture adds to the answer's score.
Attention says what was mixed into the answer, which is not proof of what decided it."""

LARGEST_SHOWN = 500
"""Pixels of a side above which a picture is shrunk before it is shown in a terminal, whose signs are few."""


@dataclass(frozen=True, kw_only=True)
class Explain:
    """What may be asked for."""

    file: File
    picture: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="PICTURE", help="a file")]
    out: Annotated[Path | None, tyro.conf.arg(metavar="PNG", help="write the figure here", help_behavior_hint="")] = (
        None
    )
    target: Annotated[
        str | None,
        tyro.conf.arg(metavar="CLASS", help="explain this class, not the most probable one", help_behavior_hint=""),
    ] = None
    max_pixels: MaxPixels = None
    max_bytes: MaxBytes = None
    device: Annotated[Device, tyro.conf.arg(help="where to run")] = "auto"
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff, tyro.conf.arg(help="one JSON object on stdout")] = False


def main(words: Sequence[str]) -> int:
    """Run the verb."""
    asked, said = foreign.parse(Explain, words, "explain", DESCRIPTION)
    if asked.out is not None and asked.out.suffix.lower() != ".png":
        raise UsageError(f"--out {asked.out}: the figure is a PNG; name it so, as {asked.out.with_suffix('.png')}.")

    from vitrine.figures import terminal

    model = foreign.load(asked, said)
    found = model.explain(asked.picture, target=asked.target)
    if asked.target is not None and found.method == "rollout":
        print("attention rollout is the same for every class; only the title follows --target", file=sys.stderr)
    if asked.out is not None:
        found.save(asked.out)
    if asked.json:
        show.as_json(
            {
                "picture": asked.picture,
                "predictions": [prediction.as_json() for prediction in found.predictions],
                "box": list(found.box),
                found.method: found.rollout.round(6).tolist(),
                "figure": None if asked.out is None else str(asked.out),
            }
        )
        return 0
    best = found.predictions[0]
    print(f"{asked.picture}: {best.label} {100 * best.probability:.1f} %")
    columns = min(72, shutil.get_terminal_size().columns - 2)
    if terminal.can_show(sys.stdout):
        import numpy as np

        print(terminal.half_blocks(np.asarray(found.overlay(LARGEST_SHOWN)), columns))
    else:
        print(terminal.characters(found.rollout, min(columns, 40)))
    if asked.out is not None:
        print(asked.out)
    return 0
