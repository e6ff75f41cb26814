"""What is handed on: figures with their n and interval, predictions, provenance. Frozen, no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

SCHEMA_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A measured number: `value`, its 95 % interval [`low`, `high`], and the number `n` of pictures behind it."""

    value: float
    low: float
    high: float
    n: int

    def percent(self) -> str:
        """The figure as people read it, such as `98.3 % (96.4 to 99.2, n = 360)`."""
        return f"{self.value:.1%} ({100 * self.low:.1f} to {100 * self.high:.1f}, n = {self.n})".replace("%", " %", 1)

    def as_json(self) -> dict[str, Any]:
        """A plain dict, ready for `json.dumps`."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class ClassFigures:
    """How one class fared: `n` pictures of it, `recall` and `precision` in [0, 1].

    Where a picture may have several classes also `average_precision`, None without a picture of it, and `f1`.
    """

    name: str
    n: int
    recall: Figure
    precision: float | None
    average_precision: Figure | None = None
    f1: float | None = None

    def as_json(self) -> dict[str, Any]:
        """A plain dict, without what is not known of one class a picture."""
        several = self.f1 is not None
        return {k: v for k, v in asdict(self).items() if several or k not in ("average_precision", "f1")}


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """An evaluation: `figures` by name (top1, top5, loss, ece), one row a class, and the confusion matrix.

    `confusion[i][j]` counts pictures of class i that were called class j. `majority` is the share of the
    most frequent class: what a guess that looks at nothing would reach.

    Where a picture may have several classes (`multi_label`) the figures are those of
    `vitrine.evaluate.multi_label.measure`; there is no confusion matrix, `majority` is the share of the most frequent
    set of classes, `chance_map` the map of a guess that looks at nothing, and `threshold` the probability from which
    on a class is called.
    """

    figures: Mapping[str, Figure]
    classes: tuple[ClassFigures, ...]
    confusion: tuple[tuple[int, ...], ...]
    majority: float
    threshold: float | None = None
    chance_map: float | None = None

    @property
    def multi_label(self) -> bool:
        """Whether a picture may have several classes, or none."""
        return self.threshold is not None

    @property
    def top1(self) -> Figure:
        """Accuracy, between 0 and 1."""
        return self.figures["top1"]

    def as_json(self) -> dict[str, Any]:
        """A plain dict, ready for `json.dumps`."""
        return {
            **{name: figure.as_json() for name, figure in self.figures.items()},
            "majority": self.majority,
            "classes": [row.as_json() for row in self.classes],
            **(
                {"threshold": self.threshold, "chance_map": self.chance_map}
                if self.multi_label
                else {"confusion": [list(row) for row in self.confusion]}
            ),
        }


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """One answer for a picture: class `label`, its `index` in the model's classes, its `probability` in [0, 1]."""

    label: str
    index: int
    probability: float

    def as_json(self) -> dict[str, Any]:
        """A plain dict, ready for `json.dumps`."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where a model comes from: enough to run it again."""

    command: str = ""
    created: str = ""
    data: str = ""
    data_fingerprint: str = ""
    init: str = ""
    teacher: str = ""
    seed: int = 0
    epoch: int = 0
    steps: int = 0
    train_pictures: int = 0
    seconds: float = 0.0
    device: str = ""
    precision: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
