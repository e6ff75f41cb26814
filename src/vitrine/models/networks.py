"""One door to every family of networks: the Vision Transformer, its hybrids, and the ResNet beside them."""

from __future__ import annotations

from vitrine.config.architecture import ModelConfig
from vitrine.models.resnet import ResNet
from vitrine.models.vit import VisionTransformer

Network = VisionTransformer | ResNet


def network(config: ModelConfig) -> Network:
    """A fresh network of `config.family`, initialised by `config.weight_init`."""
    return ResNet(config) if config.family == "resnet" else VisionTransformer(config)


def first_filter(config: ModelConfig) -> str:
    """The name of the filter that sees the channels of the picture."""
    names = {"vit": "patch_embed.proj", "hybrid": "patch_embed.backbone.stem.conv", "resnet": "stem.conv"}
    return f"{names[config.family]}.weight"
