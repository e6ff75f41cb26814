"""What training makes small: from a part of a batch to the loss of each picture, and whether its answer is right."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

from jaxtyping import Float, Float64
from torch import Tensor, nn

from vitrine.config.options import Config
from vitrine.train.losses import losses


@dataclass(frozen=True, kw_only=True, eq=False)
class Part:
    """What goes through the model at once: normalised pictures, their targets, their uniform draws in [0, 1)."""

    images: Float[Tensor, "B C H W"]
    targets: Float[Tensor, "B K"]
    draws: Float64[Tensor, "B 16"]


Objective = Callable[[nn.Module, Part], tuple[Float[Tensor, " B"], Float[Tensor, " B"]]]
"""The model and a part to the loss of each picture, with gradients, and 1 for each answer that is right, else 0. Called
under autocast where training has it; losses are float32."""


Answer = Callable[[nn.Module, Tensor], Tensor]
"""The model and what a part holds to the model's logits for it."""


def asked(model: nn.Module, images: Tensor) -> Tensor:
    """The logits for pictures."""
    return cast(Tensor, model(images))


def objective_of(config: Config, weights: Float[Tensor, " K"] | None = None, *, answer: Answer = asked) -> Objective:
    """What `config` has to make small of classes; `weights` are those of the classes, where it asks for them.

    `answer` gives the model's logits for what a part holds in place of pictures.
    """
    return (name_all if config.multi_label else classify)(config, weights, answer=answer)


def classify(config: Config, class_weights: Float[Tensor, " K"] | None = None, *, answer: Answer = asked) -> Objective:
    """The classes named: `config.loss` between logits and targets; right is the class of the largest target."""

    def objective(model: nn.Module, part: Part) -> tuple[Tensor, Tensor]:
        logits = answer(model, part.images)
        each = losses(
            logits.float(), part.targets, config.loss,
            threshold=config.target_threshold, class_weights=class_weights,
        )  # fmt: skip
        return each, (logits.argmax(1) == part.targets.argmax(1)).float()

    return objective


def name_all(
    config: Config, positive_weights: Float[Tensor, " K"] | None = None, *, answer: Answer = asked
) -> Objective:
    """Every class by itself, yes or no: `config.loss` over sigmoids; right is a picture with all of its classes right,
    where yes is a probability above a half and a target above a half."""

    def objective(model: nn.Module, part: Part) -> tuple[Tensor, Tensor]:
        logits = answer(model, part.images)
        each = losses(
            logits.float(), part.targets, config.loss,
            threshold=config.target_threshold, positive_weights=positive_weights,
        )  # fmt: skip
        return each, ((logits > 0) == (part.targets > 0.5)).all(dim=1).float()

    return objective
