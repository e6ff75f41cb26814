"""Where a model looked: the maps of one batch of pictures, ready to be drawn."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from torch import Tensor

from vitrine.explain.attention import grid_of, maps
from vitrine.explain.rollout import picture_map, rollout
from vitrine.models.vit import VisionTransformer


@dataclass(frozen=True, kw_only=True)
class Looked:
    """Maps over the patches, each summing to 1: `rollout` through all layers, `heads` of the last layer."""

    rollout: Float[np.ndarray, "B gh gw"]
    heads: Float[np.ndarray, "B h gh gw"]


def look(model: VisionTransformer, images: Float[Tensor, "B C H W"]) -> Looked:
    """Where `model` looked in each of `images`, preprocessed and on the model's device.

    Attention says what was mixed into the output, not what decided it. Raises `UsageError` for pictures
    that the model cannot take.
    """
    attentions = list(maps(model, images).values())
    grid, prefix = grid_of(model, images), model.num_prefix_tokens
    pooled = model.config.global_pool != "token"
    return Looked(
        rollout=picture_map(rollout(attentions), grid, prefix, pooled).cpu().numpy(),
        heads=picture_map(attentions[-1], grid, prefix, pooled).cpu().numpy(),
    )
