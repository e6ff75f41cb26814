"""How weights begin, each scheme with its source. All randomness comes from torch's global generator."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from vitrine.models.heads import PreLogits

if TYPE_CHECKING:
    from vitrine.models.resnet import ResNet
    from vitrine.models.vit import VisionTransformer

# Standard deviation of a unit normal truncated to [-2, 2]: dividing by it restores the wanted variance.
TRUNCATED_STD = 0.87962566103423978

PLACES = frozenset({"pos_embed", "rel_pos", "shared_rel_pos", "dist_token", "reg_token"})
"""Names of learned positions and of the tokens beside the class token, as parts of a parameter's name."""


@torch.no_grad()
def initialise(model: VisionTransformer) -> None:
    """Fill every parameter of `model` by the scheme its config names.

    The same in both: norms begin as the identity, LayerScale at `init_values`, positions (in every layer and
    of every kind) and the additional tokens with deviation 0.02. Registers have no positions: if they began
    equal they would stay equal. The ResNet of a hybrid has begun already, by `resnet.initialise`.
    """
    if model.patch_embed.proj.weight.is_meta:
        return  # a frame to be filled from a file: torch would import its compiler to draw nothing
    for name, parameter in model.named_parameters():
        if name.endswith(".gamma"):
            nn.init.constant_(parameter, cast(float, model.config.init_values))
    {"jax": _jax, "timm": _timm}[model.config.weight_init](model)
    bias_heads(model)


def _jax(model: VisionTransformer) -> None:
    """The paper's own code (google-research/vision_transformer, `models_vit.py`; the MAP head big_vision's).

    q, k, v and the output are Xavier-uniform, each with its own fan: over the fused matrix the bound would
    be too small by the square root of 2. MLP weights are Xavier-uniform with biases of deviation 1e-6; the
    patch filter and the pre-training layer are LeCun-normal with the variance of the truncation corrected;
    positions have deviation 0.02; class token and heads are zero.
    """
    lecun_normal(model.patch_embed.proj.weight)
    if model.patch_embed.proj.bias is not None:
        nn.init.zeros_(model.patch_embed.proj.bias)
    if model.cls_token is not None:
        nn.init.zeros_(model.cls_token)
    for table in places(model):
        nn.init.normal_(table, std=0.02)
    halves = 2 if model.config.mlp_layer == "swiglu" else 1
    for block in model.blocks:
        _xavier(block.attn.qkv, 3)
        _xavier(block.attn.proj)
        _xavier(block.mlp.fc1, halves, bias=1e-6)
        _xavier(block.mlp.fc2, bias=1e-6)
    if isinstance(model.pre_logits, PreLogits):
        lecun_normal(model.pre_logits.fc.weight)
        nn.init.zeros_(model.pre_logits.fc.bias)
    if model.attn_pool is not None:
        pool = model.attn_pool
        nn.init.xavier_uniform_(pool.latent[0])
        for layer, parts in ((pool.q, 1), (pool.kv, 2), (pool.proj, 1)):
            _xavier(layer, parts)
        for name in ("fc1", "fc2"):
            _xavier(cast(nn.Linear, pool.mlp[name]), bias=1e-6)
    zero_head(model)


def _xavier(layer: nn.Linear, parts: int = 1, bias: float = 0.0) -> None:
    """`parts` stacked matrices, Xavier-uniform each, with a bias of deviation `bias`."""
    for part in layer.weight.chunk(parts):
        nn.init.xavier_uniform_(part)
    if layer.bias is not None:
        nn.init.normal_(layer.bias, std=bias) if bias else nn.init.zeros_(layer.bias)


def _timm(model: VisionTransformer) -> None:
    """timm's default (`init_weights_vit_timm`): every linear layer, heads included, normal with deviation 0.02
    and zero bias; the patch filter as torch's convolution makes it; class token of deviation 1e-6; the query of
    attention pooling of variance 1 / embed_dim."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    if model.cls_token is not None:
        nn.init.normal_(model.cls_token, std=1e-6)
    for table in places(model):
        nn.init.trunc_normal_(table, std=0.02)
    if model.attn_pool is not None:
        nn.init.trunc_normal_(model.attn_pool.latent, std=model.config.embed_dim**-0.5)


def places(model: VisionTransformer) -> list[nn.Parameter]:
    """The learned positions of every kind, and the tokens beside the class token."""
    return [p for name, p in model.named_parameters() if PLACES & set(name.split("."))]


@torch.no_grad()
def bias_heads(model: VisionTransformer | ResNet) -> None:
    """The bias of the heads set to `head_bias`, where there is one: a loss of sigmoids begins small when it is low."""
    for head in (model.head, model.head_dist) if model.config.distilled else (model.head,):
        if isinstance(head, nn.Linear) and model.config.head_bias:
            nn.init.constant_(head.bias, model.config.head_bias)


@torch.no_grad()
def zero_head(model: VisionTransformer | ResNet) -> None:
    """The head of section 3.2: weights and bias zero, so that every class begins equally likely."""
    for head in (model.head, model.head_dist) if model.config.distilled else (model.head,):
        if isinstance(head, nn.Linear):
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)


def lecun_normal(weight: Tensor) -> Tensor:
    """`weight` filled from a normal of variance 1 / fan_in, truncated at two deviations, variance corrected."""
    fan_in = weight[0].numel()
    std = math.sqrt(1.0 / fan_in) / TRUNCATED_STD
    return nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)
