"""timm's BiT ResNets (`models/resnetv2.py`, names `resnetv2_*_bit`): a part of the timm format."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from vitrine.config.architecture import ModelConfig
from vitrine.config.options import PreprocessConfig
from vitrine.errors import UsageError
from vitrine.weights.bundle import Bundle
from vitrine.weights.foreign import Raw, Reading, with_given
from vitrine.weights.formats.resnet_rules import network_rules, stem_config
from vitrine.weights.rules import give, take

NAMES = {
    ((3, 4, 6, 3), 1): "resnetv2_50x1_bit",
    ((3, 4, 6, 3), 3): "resnetv2_50x3_bit",
    ((3, 4, 23, 3), 1): "resnetv2_101x1_bit",
    ((3, 4, 23, 3), 3): "resnetv2_101x3_bit",
    ((3, 8, 36, 3), 2): "resnetv2_152x2_bit",
    ((3, 8, 36, 3), 4): "resnetv2_152x4_bit",
}
"""By units and width; timm has no others."""

NUMERICS = {"conv_eps": 1e-8, "conv_eps_at": "var", "norm_eps": 1e-5, "padding": "fixed", "preact": True}


def fits(raw: Raw) -> bool:
    """Whether the tensors, without their wrappers' prefixes, are a BiT's under timm's names."""
    marks = ("stem.conv.weight", "stages.0.blocks.0.conv1.weight", "stages.0.blocks.0.norm1.weight", "norm.weight")
    return all(mark in raw.tensors for mark in marks) and len(raw.shape("norm.weight")) == 1


def read(raw: Raw, preprocess: Callable[[ModelConfig], PreprocessConfig], said: tuple[str, ...]) -> Reading:
    """A BiT of timm, with `preprocess` as the format found it."""
    resnet = stem_config(raw.tensors, "timm")
    shape = (raw.config.get("pretrained_cfg") or raw.config).get("input_size")
    config = with_given(
        ModelConfig(
            family="resnet", resnet=resnet, img_size=tuple(shape[1:]) if shape else 224,
            in_chans=raw.shape("stem.conv.weight")[1], num_classes=(raw.shape("head.fc.weight") or (0,))[0],
        ),
        raw.given,
    )  # fmt: skip
    taken = take(network_rules(config, "timm"), raw.tensors)
    numerics = f"numerics: filters' variance + {resnet.conv_eps:g}, group norms {resnet.norm_eps:g}, padding fixed"
    return Reading(
        model=config, preprocess=preprocess(config), tensors=taken.tensors, used=taken.used, dropped=taken.dropped,
        said=(numerics, *said),
    )  # fmt: skip


def write(bundle: Bundle) -> tuple[dict[str, Tensor], str, dict[str, Any], tuple[str, ...]]:
    """Tensors, architecture, arguments and what there is to say. Raises `UsageError` for a size timm lacks."""
    config = bundle.model
    key = (config.resnet.layers, config.resnet.width_factor)
    if key not in NAMES:
        raise UsageError(f"--to timm: model.resnet.layers = {key[0]}, width_factor = {key[1]}: timm has no such BiT.")
    for option in ("padding", "preact"):
        if getattr(config.resnet, option) != NUMERICS[option]:
            raise UsageError(
                f"--to timm: model.resnet.{option} = {getattr(config.resnet, option)!r}: timm's BiT has "
                f"{NUMERICS[option]!r}."
            )
    other = [name for name in ("conv_eps", "conv_eps_at", "norm_eps") if getattr(config.resnet, name) != NUMERICS[name]]
    said = tuple(
        f"{name}: timm's BiT has {NUMERICS[name]}, this model {getattr(config.resnet, name)}: logits differ a little"
        for name in other
    )
    return give(network_rules(config, "timm"), bundle.tensors), NAMES[key], {"in_chans": config.in_chans}, said
