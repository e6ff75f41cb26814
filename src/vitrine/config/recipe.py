"""What a recipe is: options, length and conditions of a training that somebody published, with what it should reach."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from vitrine.config.architecture import ModelConfig
from vitrine.config.models import named
from vitrine.config.text import Nested, merge

Stage = Literal["pre-train", "fine-tune"]
Rate = Literal["linear", "root", "none"]

BY_DATA = frozenset({"model.img_size", "augment.flip"})
"""Options that a recipe may leave to the pictures: their side where it is small, mirroring where they are in colour."""


@dataclass(frozen=True, kw_only=True)
class Length:
    """How long a training is: passes over the pictures, or steps; the warm-up likewise."""

    epochs: int = 0
    steps: int = 0
    warmup_epochs: int = 0
    warmup_steps: int = 0


@dataclass(frozen=True, kw_only=True)
class Case:
    """What holds beside the rest for some models (by alias), or below a number of pictures or of pixels in one."""

    name: str
    models: tuple[str, ...] = ()
    pictures_below: int | None = None
    area_below: int | None = None
    options: Nested | None = None
    length: Length | None = None

    def holds(self, model: ModelConfig, pictures: int, area: int) -> bool:
        """Whether the case is that of the model, the number of training pictures, the pixels of the middle one."""
        return (
            (not self.models or any(shape(model) == shape(named(alias)) for alias in self.models))
            and (self.pictures_below is None or pictures < self.pictures_below)
            and (self.area_below is None or area < self.area_below)
        )


@dataclass(frozen=True, kw_only=True)
class Expected:
    """A published result: `value` is top-1 in percent, `what` says of which model on which data."""

    what: str
    value: float
    source: str


@dataclass(frozen=True, kw_only=True)
class Stated:
    """A recipe for a model and data: its options, its length, and the names of the cases that made them so."""

    options: Nested
    length: Length
    cases: tuple[str, ...]
    unmatched: tuple[str, ...]
    """Cases that were taken because none of their group holds."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A published training. What `options` leaves out is the default of the option, but for what the data decide.

    `batch_size` and `pictures` are those that it was published for: with them every number is the published one. With
    another batch the learning rate goes by `rate`. `choices` are groups of cases, of which the first that holds is
    taken, or the first one if none does. `hidden_head`: the head has a hidden layer as wide as the model. `by_data` are
    those of `BY_DATA` that are left to the pictures.
    """

    name: str
    title: str
    stage: Stage
    source: str
    arch: str = ""
    hidden_head: bool = False
    options: Nested
    length: Length
    batch_size: int
    pictures: int
    rate: Rate
    choices: tuple[tuple[Case, ...], ...] = ()
    by_data: frozenset[str] = frozenset()
    expects: tuple[Expected, ...] = ()
    deviations: tuple[str, ...]

    def stated(self, model: ModelConfig, pictures: int, area: int) -> Stated:
        """The options and the length for a model, a number of training pictures, the pixels of the middle one."""
        options, length, names, unmatched = self.options, self.length, list[str](), list[str]()
        for group in self.choices:
            found = next((case for case in group if case.holds(model, pictures, area)), None)
            if found is None:
                unmatched.append(group[0].name)
            taken = found or group[0]
            names.append(taken.name)
            options, length = merge(options, taken.options or {}), taken.length or length
        return Stated(options=options, length=length, cases=tuple(names), unmatched=tuple(unmatched))

    def published(self, length: Length) -> tuple[int, int]:
        """Steps, and steps of warm-up, of `length` at the published batch and number of pictures."""
        a_pass = max(1, self.pictures // self.batch_size)
        return length.steps or length.epochs * a_pass, length.warmup_steps or length.warmup_epochs * a_pass


def shape(model: ModelConfig) -> tuple[Any, ...]:
    """What makes one size of model differ from another, whatever its pictures, classes and conventions."""
    if model.family == "resnet":
        return "resnet", model.resnet.layers, model.resnet.width_factor
    stem = model.resnet.layers if model.family == "hybrid" else None
    return model.family, stem, model.embed_dim, model.depth, model.patch_size
