"""The options of distillation: a teacher, and how much of the loss is to follow it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vitrine.config.field import check_choices, option, require


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """A trained model whose answers are learnt beside the labels (arXiv:1503.02531, arXiv:2012.12877).

    The defaults of `alpha` and `temperature` are those of DeiT's `main.py`. Its paper quotes 0.1 and 3 as usual for
    the soft kind, and equation 3 is the hard kind at 0.5.
    """

    kind: Literal["none", "soft", "hard"] = option(
        "none", "soft: follow the teacher's probabilities; hard: its answer (DeiT)"
    )
    teacher: str = option("", "the model that is followed: a run folder, a bundle, any weight file or hub id")
    alpha: float = option(0.5, "share of the loss that follows the teacher, the labels having the rest")
    temperature: float = option(1.0, "soft: what both logits are divided by")

    def __post_init__(self) -> None:
        check_choices(self, "distill.")
        require(self.kind == "none" or bool(self.teacher), "distill.kind", self.kind, "needs distill.teacher, a model")
        require(
            self.kind != "none" or not self.teacher,
            "distill.teacher", self.teacher, "needs distill.kind: hard, its answers, or soft, its probabilities",
        )  # fmt: skip
        require(0 <= self.alpha <= 1, "distill.alpha", self.alpha, "must be in [0, 1]")
        require(self.temperature > 0, "distill.temperature", self.temperature, "must be above 0")
