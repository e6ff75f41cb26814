"""What a model costs: parameters, and multiply-accumulates of one picture."""

from __future__ import annotations

import torch

from vitrine.config.options import ModelConfig
from vitrine.models.vit import VisionTransformer


def num_parameters(config: ModelConfig) -> int:
    """Trainable numbers of the model, counted without allocating it."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in VisionTransformer(config).parameters())


def macs(config: ModelConfig) -> int:
    """Multiply-accumulates of the products in one forward pass of one picture.

    P C p^2 D + L (N (4 D A + 2 D M) + 2 N^2 A) + D R + R K with A = num_heads * head_dim. This is what most
    papers print as FLOPs; an operation being a multiplication or an addition, FLOP = 2 MACs. Softmax, norms
    and activations are left out, as there.
    """
    D, M, K, R = config.embed_dim, config.mlp_dim, config.num_classes, config.representation_size
    A = config.num_heads * config.width_of_head
    P = config.grid[0] * config.grid[1]
    N = P + int(config.class_token)
    block = N * (4 * D * A + 2 * D * M) + 2 * N * N * A
    return P * config.in_chans * config.patch_size**2 * D + config.depth * block + D * R + (R or D) * K
