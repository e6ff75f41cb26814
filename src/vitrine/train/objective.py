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
    return _by_logits(config, answer, lambda z, t: z.argmax(1) == t.argmax(1), class_weights=class_weights)


def name_all(
    config: Config, positive_weights: Float[Tensor, " K"] | None = None, *, answer: Answer = asked
) -> Objective:
    """Every class by itself, yes or no: `config.loss` over sigmoids; right is a picture with all of its classes right,
    where yes is a probability above a half and a target above a half."""
    return _by_logits(config, answer, lambda z, t: ((z > 0) == (t > 0.5)).all(dim=1), positive_weights=positive_weights)


def _by_logits(
    config: Config, answer: Answer, right: Callable[[Tensor, Tensor], Tensor], **weights: Tensor | None
) -> Objective:
    """`config.loss` between the logits of `answer` and the targets; `right` says of both which pictures are right."""

    def objective(model: nn.Module, part: Part) -> tuple[Tensor, Tensor]:
        logits = answer(model, part.images)
        each = losses(logits.float(), part.targets, config.loss, threshold=config.target_threshold, **weights)
        return each, right(logits, part.targets).float()

    return objective
