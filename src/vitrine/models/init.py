"""How weights begin, each scheme with its source. All randomness comes from torch's global generator."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from vitrine.models.heads import PreLogits

if TYPE_CHECKING:
    from vitrine.models.vit import VisionTransformer

# Standard deviation of a unit normal truncated to [-2, 2]: dividing by it restores the wanted variance.
TRUNCATED_STD = 0.87962566103423978


@torch.no_grad()
def initialise(model: VisionTransformer) -> None:
    """Fill every parameter of `model` by the scheme its config names."""
    {"jax": _jax, "timm": _timm}[model.config.weight_init](model)


def _jax(model: VisionTransformer) -> None:
    """The paper's own code (google-research/vision_transformer, `models_vit.py`).

    q, k, v and the output are Xavier-uniform, each with its own fan: over the fused matrix the bound would
    be too small by the square root of 2. MLP weights are Xavier-uniform with biases of deviation 1e-6; the
    patch filter and the pre-training layer are LeCun-normal with the variance of the truncation corrected;
    positions have deviation 0.02; class token and head are zero.
    """
    lecun_normal(model.patch_embed.proj.weight)
    if model.patch_embed.proj.bias is not None:
        nn.init.zeros_(model.patch_embed.proj.bias)
    if model.cls_token is not None:
        nn.init.zeros_(model.cls_token)
    if model.pos_embed is not None:
        nn.init.normal_(model.pos_embed, std=0.02)
    for block in model.blocks:
        for part in block.attn.qkv.weight.chunk(3):
            nn.init.xavier_uniform_(part)
        nn.init.xavier_uniform_(block.attn.proj.weight)
        nn.init.zeros_(block.attn.proj.bias)
        if block.attn.qkv.bias is not None:
            nn.init.zeros_(block.attn.qkv.bias)
        for layer in (block.mlp.fc1, block.mlp.fc2):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.normal_(layer.bias, std=1e-6)
    if isinstance(model.pre_logits, PreLogits):
        lecun_normal(model.pre_logits.fc.weight)
        nn.init.zeros_(model.pre_logits.fc.bias)
    zero_head(model)


def _timm(model: VisionTransformer) -> None:
    """timm's default (`init_weights_vit_timm`): every linear layer, head included, normal with deviation 0.02
    and zero bias; the patch filter as torch's convolution makes it; class token of deviation 1e-6."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    if model.cls_token is not None:
        nn.init.normal_(model.cls_token, std=1e-6)
    if model.pos_embed is not None:
        nn.init.trunc_normal_(model.pos_embed, std=0.02)


@torch.no_grad()
def zero_head(model: VisionTransformer) -> None:
    """The head of section 3.2: weights and bias zero, so that every class begins equally likely."""
    if isinstance(model.head, nn.Linear):
        nn.init.zeros_(model.head.weight)
        nn.init.zeros_(model.head.bias)


def lecun_normal(weight: Tensor) -> Tensor:
    """`weight` filled from a normal of variance 1 / fan_in, truncated at two deviations, variance corrected."""
    fan_in = weight[0].numel()
    std = math.sqrt(1.0 / fan_in) / TRUNCATED_STD
    return nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)
