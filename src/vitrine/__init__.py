"""Vitrine: the Vision Transformer, to train, fine-tune, run, see into, and trust.

    import vitrine
    cats = vitrine.load("runs/cats")              # what `vitrine train` left
    cats.predict("cat.jpg")                       # [Prediction(label='tabby', index=3, probability=0.97), ...]
    cats.model                                    # the torch.nn.Module
    vitrine.create("vit_base_patch16_224", num_classes=10)

Names are resolved when they are first used: importing this package does not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vitrine.config.architecture import ModelConfig
    from vitrine.config.models import NAMES as MODEL_NAMES
    from vitrine.config.models import named
    from vitrine.config.options import Config, PreprocessConfig
    from vitrine.errors import VitrineError
    from vitrine.models.vit import VisionTransformer
    from vitrine.predict.classifier import Classifier, create, load
    from vitrine.results import Figure, Metrics, Prediction
    from vitrine.train.run import train

__version__ = "0.1.0"

_HOMES = {
    "Classifier": "vitrine.predict.classifier",
    "Config": "vitrine.config.options",
    "Figure": "vitrine.results",
    "MODEL_NAMES": "vitrine.config.models:NAMES",
    "Metrics": "vitrine.results",
    "ModelConfig": "vitrine.config.architecture",
    "Prediction": "vitrine.results",
    "PreprocessConfig": "vitrine.config.options",
    "VisionTransformer": "vitrine.models.vit",
    "VitrineError": "vitrine.errors",
    "create": "vitrine.predict.classifier",
    "load": "vitrine.predict.classifier",
    "named": "vitrine.config.models",
    "train": "vitrine.train.run",
}

__all__ = [
    "MODEL_NAMES", "Classifier", "Config", "Figure", "Metrics", "ModelConfig", "Prediction", "PreprocessConfig",
    "VisionTransformer", "VitrineError", "create", "load", "named", "train",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'vitrine' has no attribute {name!r}")
    module, _, attribute = _HOMES[name].partition(":")
    found = getattr(importlib.import_module(module), attribute or name)
    if name == "train":
        # `import vitrine.train.run as r` meets the function on its way, and goes on from what that says it is called.
        found.__name__ = "vitrine.train"
    return found


# A room and a function are both called train. Python puts a room into the package once, as it is first imported:
# imported now and taken away again, the name is free for the function. The room itself is empty, and costs nothing.
importlib.import_module("vitrine.train")
del globals()["train"]


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
