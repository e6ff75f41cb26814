"""timm's models at toy size, and a folder's config.json as timm writes it."""

from __future__ import annotations

import warnings
from typing import Any

import torch

from tests.models.toys import SIZE
from tests.parity.peers import timm

HALF = [0.5, 0.5, 0.5]


def toy_of_timm(name: str, **args: Any) -> torch.nn.Module:
    """timm's named architecture at toy size."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return timm.create_model(name, **{**SIZE, **args}).eval()


def config_json(args: dict[str, Any], **rest: Any) -> dict[str, Any]:
    """A folder's config.json as timm writes it."""
    size = args.get("img_size", SIZE["img_size"])
    sides = [size, size] if isinstance(size, int) else list(size)
    pretrained = {"input_size": [args.get("in_chans", 3), *sides], "mean": HALF, "std": HALF, "fixed_input_size": True}
    return {
        "architecture": "vit_base_patch16_224",
        "model_args": {**{k: v for k, v in SIZE.items() if k != "num_classes"}, **args},
        "global_pool": args.get("global_pool", "token"),
        "pretrained_cfg": {**pretrained, "crop_pct": 0.9, "interpolation": "bicubic"},
        **rest,
    }
