"""The attention weights of a model, computed when asked for.

Normal inference never forms them: its kernel is fused. Here each block's attention is overheard, and its
weights are computed from what it received.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vitrine.errors import UsageError
from vitrine.models.relative import Place
from vitrine.models.vit import Attention, VisionTransformer, weigh


def maps(
    model: VisionTransformer, images: Float[Tensor, "B C H W"], layers: Sequence[int] | None = None
) -> dict[int, Float[Tensor, "B h N N"]]:
    """softmax(q k^T scale + positions) of each chosen layer by its number from 0, in the order of the network.

    Equation 7 of arXiv:2010.11929: row i says how much token i takes from each token, and sums to 1.
    `layers` may count from the end (-1 is the last); None is all. In float32, or float64 where the model is.
    The model runs in evaluation mode without gradients and is left as it was, in its modes and hooks, also
    after an error. Raises `UsageError` for a layer the model does not have.
    """
    chosen = _chosen(layers, len(model.blocks))
    found: dict[int, Tensor] = {}
    with torch.no_grad(), evaluation_mode(model), contextlib.ExitStack() as hooks:
        for number in chosen:

            def keep(module: Attention, received: tuple[Tensor, Place | None], number: int = number) -> None:
                found[number] = weights(module, *received)

            hooks.callback(model.get_submodule(f"blocks.{number}.attn").register_forward_pre_hook(keep).remove)
        model.forward_features(images)
    return found


def weights(attention: Attention, x: Float[Tensor, "B N D"], place: Place | None = None) -> Float[Tensor, "B h N N"]:
    """The weights with which `attention` mixes the tokens `x`, relative and rotary positions at `place` included.

    Computed by the model's own functions, in float32 or better whatever autocast says.
    """
    q, k, _ = attention.heads(x, place)
    dtype = torch.promote_types(q.dtype, torch.float32)
    with torch.autocast(x.device.type, enabled=False):
        q, k = q.to(dtype), k.to(dtype)
        bias, _ = attention.relative(q, place)
        return weigh(q, k, bias, scale=attention.scale)


def pool_weights(model: VisionTransformer, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B h P"]:
    """How much the latent of attention pooling takes from each patch's token, in every head; each sums to 1.

    Raises `UsageError` for a model that pools otherwise.
    """
    if model.attn_pool is None:
        raise UsageError(f"global_pool = {model.config.global_pool!r}: only a model with map has attention pooling.")
    with torch.no_grad(), evaluation_mode(model):
        q, k, _ = model.attn_pool.heads(model.forward_features(images)[:, model.num_prefix_tokens :])
        return weigh(q, k, scale=q.shape[-1] ** -0.5)[:, :, 0]


@contextlib.contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode for the block; after it every module is in the mode it had."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def grid_of(model: VisionTransformer, images: Float[Tensor, "B C H W"]) -> tuple[int, int]:
    """Rows and columns of patches that `model` cuts `images` into."""
    return model.grid(images)


def _chosen(layers: Sequence[int] | None, depth: int) -> list[int]:
    """The numbers from 0, ascending, once each."""
    for layer in layers or ():
        if not -depth <= layer < depth:
            raise UsageError(
                f"layer {layer}: the model has {depth} layers. Choose 0 to {depth - 1}, or -{depth} to -1 from the end."
            )
    return sorted({layer % depth for layer in layers}) if layers is not None else list(range(depth))
