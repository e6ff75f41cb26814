"""Models small enough to compute by hand, and random numbers for every parameter."""

from __future__ import annotations

from typing import Any, TypeVar

import torch

from vitrine.config.architecture import ModelConfig
from vitrine.models.vit import VisionTransformer

M = TypeVar("M", bound=torch.nn.Module)

SIZE: dict[str, Any] = {
    "img_size": 32,
    "patch_size": 8,
    "embed_dim": 48,
    "depth": 2,
    "num_heads": 3,
    "mlp_ratio": 2.0,
    "num_classes": 5,
}


def toy_config(**overrides: Any) -> ModelConfig:
    """A config of 48 dimensions, two blocks and a 4x4 grid, with options replaced."""
    return ModelConfig(**{**SIZE, **overrides})


def toy(seed: int = 0, **overrides: Any) -> VisionTransformer:
    """A toy model in eval mode, every parameter random: norms, biases, class token and head too."""
    torch.manual_seed(seed)
    return randomise(VisionTransformer(toy_config(**overrides)).eval())


def randomise(model: M, seed: int = 0) -> M:
    """`model` with every parameter moved by a random number, so that none is a neutral zero or one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter += (0.1 * noise).to(parameter.dtype)
    return model


def pictures(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Normal random numbers of `shape`, the same for the same seed."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)
