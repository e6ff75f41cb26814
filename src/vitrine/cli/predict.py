"""`vitrine predict`: name what is in pictures."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from vitrine.cli import foreign, show
from vitrine.cli.foreign import File
from vitrine.cli.limits import MaxBytes, MaxPixels
from vitrine.config.options import Device
from vitrine.errors import BadData, Unavailable, UsageError, VitrineError

if TYPE_CHECKING:
    from vitrine.predict.classifier import Classifier
    from vitrine.results import Prediction

DESCRIPTION = "Name what is in pictures. A picture that cannot be read is named on stderr; the others are answered."


@dataclass(frozen=True, kw_only=True)
class Predict:
    """What may be asked for."""

    file: File
    pictures: Annotated[
        tuple[str, ...],
        tyro.conf.Positional,
        tyro.conf.arg(metavar="PICTURE", help="files, or tables of them (Parquet, hf://datasets/ORG/NAME)"),
    ]
    top: Annotated[
        int, tyro.conf.arg(help="how many classes to name; of several a picture all that reach the threshold")
    ] = 5
    max_pixels: MaxPixels = None
    max_bytes: MaxBytes = None
    device: Annotated[Device, tyro.conf.arg(help="where to run")] = "auto"
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff, tyro.conf.arg(help="one JSON object on stdout")] = False


def main(words: Sequence[str]) -> int:
    """Run the verb; gives the code of the worst picture."""
    asked, said = foreign.parse(Predict, words, "predict", DESCRIPTION)
    if not asked.pictures:
        raise UsageError(f"no picture was given. Try: vitrine predict {asked.file} PICTURE")
    if asked.top < 1:
        raise UsageError(f"--top {asked.top}: must be at least 1.")

    model = foreign.load(asked, said)
    model.require_classes()
    answers: list[dict[str, Any]] = []
    code = 0
    for picture, opened in _each(asked.pictures, model):
        try:
            found = model.predict(opened(), asked.top)
        except Unavailable:
            raise  # the network: no other picture of the set would come either
        except VitrineError as error:
            code = error.exit_code if code in (0, BadData.exit_code) else code
            answers.append({"picture": picture, "error": str(error)})
            print(f"vitrine: {error}", file=sys.stderr)
            continue
        answer = {"picture": picture, "predictions": [prediction.as_json() for prediction in found]}
        if model.multi_label:
            answer["labels"] = [prediction.as_json() for prediction in model.called(found)]
        answers.append(answer)
        if not asked.json:
            print(f"{picture}: {_several(model, found) if model.multi_label else _ranked(found)}", flush=True)
    if asked.json:
        several = {"threshold": model.threshold} if model.multi_label else {}
        show.as_json({"model": asked.file, **several, "results": answers})
    return code


def _each(pictures: Sequence[str], model: Classifier) -> Iterator[tuple[str, Callable[[], Any]]]:
    """The name of every picture that the words name, and what opens it: files, and the rows of tables."""
    from vitrine.data.sources import rows_of

    for word in pictures:
        source = rows_of(word, model.limits)
        if source is None:
            yield word, partial(str, word)
        else:
            yield from ((source.ids[i], partial(source.picture, i)) for i in range(len(source)))


def _ranked(found: Sequence[Prediction]) -> str:
    return ", ".join(f"{p.label} {100 * p.probability:.1f} %" for p in found)


def _several(model: Classifier, found: Sequence[Prediction]) -> str:
    """The classes that reach the threshold, or that none does; then those below."""
    called = model.called(found)
    below = found[len(called) :]
    limit = f"{100 * model.threshold:.1f} %"
    said = _ranked(called) or f"none of the classes, which begin at {limit}"
    return f"{said}; below {limit}: {_ranked(below)}" if below else said
