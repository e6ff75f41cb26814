"""Where a model looked: the maps of one batch of pictures, ready to be drawn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from vitrine.explain.attention import grid_of, maps, pool_weights
from vitrine.explain.cam import class_map
from vitrine.explain.rollout import picture_map, rollout
from vitrine.models.networks import Network
from vitrine.models.resnet import ResNet

Method = Literal["rollout", "class_map"]

CAPTIONS: dict[Method, str] = {
    "rollout": "Attention rollout (Abnar & Zuidema, 2020) and the heads of the last layer",
    "class_map": "Class activation map (Zhou et al., 2016): the cells sum to the class's score, "
    "and each sees more than its own square",
}

LABELS: dict[Method, str] = {"rollout": "Where the model looked", "class_map": "What spoke for this answer"}


@dataclass(frozen=True, kw_only=True)
class Looked:
    """Maps over the patches, each summing to 1: `rollout` through all layers, `heads` of the last layer, or of the
    attention that pools the tokens.

    A ResNet has no attention: `method` is then class_map, `rollout` what each cell of the last map adds to the
    class's score, summing to it, and there are no `heads`.
    """

    method: Method = "rollout"
    rollout: Float[np.ndarray, "B gh gw"]
    heads: Float[np.ndarray, "B h gh gw"]


def look(model: Network, images: Float[Tensor, "B C H W"], target: int | None = None) -> Looked:
    """Where `model` looked in each of `images`, preprocessed and on the model's device.

    Attention says what was mixed into the output, not what decided it. The map of a ResNet is that of the class
    `target`, by default of the most probable one of each picture. Raises `UsageError` for pictures that the model
    cannot take.
    """
    if isinstance(model, ResNet):
        classes = None if target is None else torch.full((len(images),), target)
        cells = class_map(model, images, classes).cells.cpu().numpy()
        return Looked(rollout=cells, heads=np.zeros((len(cells), 0, *cells.shape[1:]), cells.dtype), method="class_map")
    attentions = list(maps(model, images).values())
    grid, prefix = grid_of(model, images), model.num_prefix_tokens
    if model.attn_pool is not None:
        # The latent is the last to look: its heads are shown, and the rollout goes on through them.
        pool = pool_weights(model, images)
        seen = (pool.mean(dim=1, keepdim=True) @ rollout(attentions)[:, prefix:, prefix:])[:, 0]
        seen = (seen / seen.sum(dim=-1, keepdim=True)).unflatten(-1, grid)
        return Looked(rollout=seen.cpu().numpy(), heads=pool.unflatten(-1, grid).cpu().numpy())
    pooled = model.config.global_pool != "token"
    return Looked(
        rollout=picture_map(rollout(attentions), grid, prefix, pooled).cpu().numpy(),
        heads=picture_map(attentions[-1], grid, prefix, pooled).cpu().numpy(),
    )
