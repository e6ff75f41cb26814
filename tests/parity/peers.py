"""Other people's Vision Transformers, imported quietly: `timm` and the ViT of `transformers`.

Everything here is of the peers; a test that needs one imports it from here alone.
"""

from __future__ import annotations

import importlib.util
import warnings
from typing import Any

import torch

# timm and transformers import torchvision, whose compiled operators may be built for another torch. Only
# their declaration is wanted then: no model of ours or theirs calls them.
OPERATORS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
DECLARED = torch.library.Library("torchvision", "FRAGMENT")


def _declare_operators() -> None:
    for schema in OPERATORS:
        if not hasattr(torch.ops.torchvision, schema.partition("(")[0]):
            DECLARED.define(schema)


with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    if importlib.util.find_spec("torchvision") is not None:
        try:
            import torchvision  # noqa: F401
        except RuntimeError:
            _declare_operators()
    import timm
    import timm.data
    import timm.loss
    import timm.optim
    import timm.scheduler
    from timm.models.deit import VisionTransformerDistilled
    from timm.models.vision_transformer import VisionTransformer as TimmVisionTransformer
    from timm.models.vision_transformer_relpos import VisionTransformerRelPos
    from transformers import DINOv3ViTConfig, ViTConfig, ViTForImageClassification
    from transformers.models.dinov3_vit import modeling_dinov3_vit as dinov3

__all__ = [
    "DINOv3ViTConfig", "TimmVisionTransformer", "ViTConfig", "VisionTransformerDistilled", "VisionTransformerRelPos",
    "dinov3", "hf_vit", "timm", "timm_vit",
]  # fmt: skip


def timm_vit(**options: Any) -> TimmVisionTransformer:
    """timm's model in eval mode."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return TimmVisionTransformer(**options).eval()


def hf_vit(**options: Any) -> ViTForImageClassification:
    """transformers' model in eval mode, attention written out."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ViTForImageClassification(ViTConfig(attn_implementation="eager", **options)).eval()
