"""What a user may say of a model file that does not say it itself: the same options for every verb that opens one."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, make_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_type_hints

import tyro
from tyro.conf import arg

from vitrine.cli import arguments
from vitrine.config.architecture import ModelConfig
from vitrine.config.options import PreprocessConfig
from vitrine.config.text import Nested, given, partial

if TYPE_CHECKING:
    from vitrine.predict.classifier import Classifier
    from vitrine.weights.opening import Opened

T = TypeVar("T")

MODEL_OPTIONS = (
    "img_size", "patch_size", "in_chans", "num_classes", "num_heads", "head_dim", "norm_eps", "act_layer",
    "global_pool", "representation_size", "pos_interpolation", "pos_antialias", "pos_align_corners", "pos_offset",
)  # fmt: skip

MODEL_HELP = "run folder, bundle, a public weight file or folder, or hf://ORGANISATION/NAME[@REVISION]"

File = Annotated[str, tyro.conf.Positional, arg(metavar="MODEL", help=MODEL_HELP)]


@dataclass(frozen=True, kw_only=True)
class _Said:
    """Facts about a public weight file that are not in it."""

    labels: Annotated[
        Path | None,
        arg(metavar="FILE", help_behavior_hint="", help="class names, one a line or JSON, where the file has none"),
    ] = None
    format: Annotated[
        str | None, arg(metavar="NAME", help_behavior_hint="", help="format of the file, where it fits several")
    ] = None
    entry: Annotated[
        str | None, arg(metavar="NAME", help_behavior_hint="", help="part of a training file, such as model_ema")
    ] = None


def parse(kind: type[T], words: Sequence[str], verb: str, description: str) -> tuple[T, Nested]:
    """What `words` ask of a verb, an instance of `kind`, and what they say about its model file: options of `load`.

    Raises what `arguments.parse` raises.
    """
    asked: Any = arguments.parse(composed(kind), words, verb, description)
    wanted = {f.name for f in fields(_Said)} | {"model", "preprocess"}
    return asked, {name: value for name, value in given(asked).items() if name in wanted}


def composed(kind: type[T]) -> type[T]:
    """`kind` with the options that say what a model file may not tell."""
    few = partial(ModelConfig, frozenset(f.name for f in fields(ModelConfig)) - frozenset(MODEL_OPTIONS))
    own = "(default: the file's)"
    model = arguments.annotate(few, ModelConfig, doc="What the file cannot tell, or another size.", default=own)
    pixels = arguments.annotate(
        partial(PreprocessConfig), PreprocessConfig, doc="How pictures are made ready.", default=own
    )
    groups = [(name, made, field(default_factory=made)) for name, made in (("model", model), ("preprocess", pixels))]
    hints = get_type_hints(_Said, include_extras=True)
    slots = [*((name, hint, field(default=None)) for name, hint in hints.items()), *groups]
    return make_dataclass(kind.__name__, slots, bases=(kind,), frozen=True, kw_only=True)


def load(asked: Any, said: Nested) -> Classifier:
    """The model that a verb was asked to open, ready to answer; how it was understood is said on stderr."""
    from vitrine.predict.classifier import classifier, opened

    found = opened(asked.file, said)
    tell(found)
    return classifier(found, asked.device, max_pixels=asked.max_pixels, max_bytes=asked.max_bytes)


def tell(opened: Opened) -> None:
    """Say on stderr, once, how a file that is not ours was understood."""
    if opened.format != "vitrine":
        print(f"read as: {opened.title}", file=sys.stderr)
    for sentence in opened.said:
        print(sentence, file=sys.stderr)


def account(opened: Opened) -> Nested:
    """How a file was read, ready for JSON: its format, the tensors used, dropped and fresh, and what was said."""
    return {
        "format": opened.format,
        "used": list(opened.used),
        "dropped": dict(opened.dropped),
        "fresh": dict(opened.fresh),
        "said": list(opened.said),
    }
