"""What a model costs: parameters, multiply-accumulates of one picture, and what training keeps of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from vitrine.config.architecture import ModelConfig, ResNetConfig
from vitrine.models.networks import network
from vitrine.models.relative import EXTRA


def num_parameters(config: ModelConfig) -> int:
    """Trainable numbers of the model, counted without allocating it.

    The blocks of a Transformer are all alike, so one and two of them tell how many numbers any depth has.
    """
    if config.family == "resnet" or config.depth <= 2:
        with torch.device("meta"):
            return sum(parameter.numel() for parameter in network(config).parameters())
    one, two = (num_parameters(replace(config, depth=depth)) for depth in (1, 2))
    return one + (config.depth - 1) * (two - one)


def macs(config: ModelConfig) -> int:
    """Multiply-accumulates of the products and convolutions in one forward pass of one picture.

    Of a ViT P C p^2 D + L (N (4 D A + 2 D M) + 2 N^2 A) + D R + R K with A = num_heads * head_dim (3 D M with
    swiglu), and what relative positions, attention pooling and a second head add; of a ResNet, and the stem of a
    hybrid, the sum over its convolutions of h w k^2 C_in C_out at the output. This is what most papers print as
    FLOPs; an operation being a multiplication or an addition, FLOP = 2 MACs. Softmax, norms, activations and the
    standardisation of filters are left out, as there.
    """
    K, convolved = config.num_classes, 0
    if config.family != "vit":
        convolved = _root_cells(config) * 49 * config.in_chans * 64 * config.resnet.width_factor
        convolved += sum(unit.macs for unit in _units(config))
    if config.family == "resnet":
        return convolved + config.resnet.width * K
    D, M, R = config.embed_dim, config.mlp_dim, config.representation_size
    A = config.num_heads * config.width_of_head
    P, N = config.grid[0] * config.grid[1], config.num_tokens
    channels = config.resnet.width if config.family == "hybrid" else config.in_chans
    block = N * (4 * D * A + (3 if config.mlp_layer == "swiglu" else 2) * D * M) + 2 * N * N * A
    block += N * A * _relative_rows(config)
    heads = D * R + (1 + config.distilled) * (R or D) * K
    if config.global_pool == "map":
        # One query for all tokens: q and proj, keys and values, two products, and the MLP.
        heads += 2 * D * D + 2 * N * D * D + 2 * N * D + 2 * D * M
    return convolved + P * channels * config.patch_size**2 * D + config.depth * block + heads


def _relative_rows(config: ModelConfig) -> int:
    """Relative keys, and values, that every token of a layer meets; a bias table costs no product."""
    if config.pos_embed == "rel1d":
        return 2 * config.grid[0] * config.grid[1] - 1 + EXTRA
    return 2 * (2 * config.pos_clip + 1 + EXTRA) if config.pos_embed == "rel_shaw" else 0


def num_kept(config: ModelConfig, *, fused: bool = False, checkpointing: bool = False) -> int:
    """Numbers that training keeps of one picture for the backward pass.

    Of a Transformer at most 34 D and 5 h N a token and block, without the latter where attention is `fused`, which
    relative positions of the values prevent. With `checkpointing` D a token and block, and all of one block, which is
    then computed again with its gradients. Of a ResNet the inputs of its norms, ReLUs and padded convolutions, to
    about a fifth.
    """
    kept = 0
    if config.family != "vit":
        # The padded picture; what norm, ReLU and border of the root keep; the places of the maxima.
        H, W = config.size
        kept = config.in_chans * H * W + 64 * config.resnet.width_factor * _root_cells(config) * 3
        kept += sum(unit.kept for unit in _units(config))
    if config.family == "resnet":
        return kept + 2 * config.resnet.width * config.grid[0] * config.grid[1]
    N = config.num_tokens
    maps = 0 if fused and not _relative_rows(config) else 5 * config.num_heads * N
    block = N * (34 * config.embed_dim + maps)
    return kept + (config.depth * N * config.embed_dim + block if checkpointing else config.depth * block)


@dataclass(frozen=True, kw_only=True)
class _Unit:
    """What one bottleneck unit costs."""

    macs: int
    kept: int


def _root_cells(config: ModelConfig) -> int:
    """Cells of the map between the root's convolution and its maximum."""
    return (config.size[0] // 2) * (config.size[1] // 2)


def _units(config: ModelConfig) -> Iterator[_Unit]:
    """The units of a ResNet from the first to the last, for pictures of `config.size`."""
    own: ResNetConfig = config.resnet
    rows, columns = (side // 4 - (not own.pool_padding) for side in config.size)
    enter = 64 * own.width_factor
    for stage, units in enumerate(own.layers):
        leave = 256 * own.width_factor * 2**stage
        inner = leave // 4
        for unit in range(units):
            before = rows * columns
            if unit == 0 and stage > 0:
                rows, columns = -(-rows // 2), -(-columns // 2)
            after = rows * columns
            shortcut = after * enter * leave if unit == 0 else 0
            ends = 2 * enter * before if own.preact else (3 if unit == 0 else 2) * leave * after
            yield _Unit(
                macs=before * enter * inner + after * (9 * inner * inner + inner * leave) + shortcut,
                kept=ends + 3 * inner * before + 2 * inner * after,
            )
            enter = leave
