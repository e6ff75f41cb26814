"""What each cell of a ResNet's last map adds to the score of a class."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from vitrine.errors import UsageError
from vitrine.explain.attention import evaluation_mode
from vitrine.models.resnet import ResNet


@dataclass(frozen=True, kw_only=True)
class ClassMap:
    """Of each picture: what each cell adds to the logit of `classes`, summing to that logit, and all `logits`."""

    cells: Float[Tensor, "B gh gw"]
    classes: Int[Tensor, " B"]
    logits: Float[Tensor, "B K"]


def class_map(model: ResNet, images: Float[Tensor, "B C H W"], classes: Int[Tensor, " B"] | None = None) -> ClassMap:
    """(w_k . f_ij + b_k) / (gh gw) at each cell, f being the last normalised map: they sum to logit k exactly.

    The head is linear and comes after the mean, so applying it at each cell changes only the order of a sum.
    Source: Zhou et al., "Learning Deep Features for Discriminative Localization", arXiv:1512.04150, equation 2.
    `classes` are the most probable ones by default. A cell answers for all the pixels that reach it, which are
    far more than its own square. The model runs in evaluation mode without gradients and is left in the modes it
    had. Raises `UsageError` for a model without a head, a class it does not have, or pictures it cannot take.
    """
    if not isinstance(model.head, nn.Linear):
        raise UsageError("the model has no head and so no class whose score could be followed to the picture.")
    with torch.no_grad(), evaluation_mode(model):
        features = model.forward_features(images)
        logits = model.forward_head(features)
    chosen = logits.argmax(dim=1) if classes is None else classes.to(logits.device)
    K = model.head.out_features
    if bool(((chosen < 0) | (chosen >= K)).any()):
        raise UsageError(f"classes {chosen.tolist()}: the model has {K}, 0 to {K - 1}.")
    dtype = torch.promote_types(features.dtype, torch.float32)
    weight, bias = (values[chosen].detach().to(dtype) for values in (model.head.weight, model.head.bias))
    with torch.autocast(images.device.type, enabled=False):
        cells = torch.einsum("bchw,bc->bhw", features.to(dtype), weight) + bias[:, None, None]
    return ClassMap(cells=cells / (cells.shape[1] * cells.shape[2]), classes=chosen, logits=logits)
