"""What is learnt: the class named or several, from labels or a teacher too, or the colour of hidden patches."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vitrine.config.options import Config
from vitrine.errors import BadConfig
from vitrine.models.networks import Network
from vitrine.models.vit import VisionTransformer
from vitrine.train.distill import Teacher, answering, distil
from vitrine.train.masked import MaskedPatches, predict_colours
from vitrine.train.objective import Objective, objective_of


def module_for(config: Config, network: Network) -> nn.Module:
    """What is trained: the network, or the network inside of what its task needs beside it."""
    if config.task == "classify":
        return network
    if not isinstance(network, VisionTransformer):
        raise BadConfig(f"task = {config.task!r}: needs a vit, and this is a {config.model.family}.")
    return MaskedPatches(network)


def objective_for(
    config: Config,
    device: torch.device,
    *,
    teacher: Teacher | None = None,
    class_weights: Float[Tensor, " K"] | None = None,
) -> Objective:
    """What a step makes small, for the module of `module_for`."""
    if config.task == "masked_patches":
        return predict_colours(config)
    if teacher is not None:
        return distil(config, answering(teacher, config, device), class_weights)
    return objective_of(config, class_weights)
