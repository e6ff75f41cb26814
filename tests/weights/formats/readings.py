"""What the tests of formats share: a stranger's tensors as a file, and the model that a format makes of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch

from vitrine.models.vit import VisionTransformer
from vitrine.weights.bundle import Bundle, build
from vitrine.weights.foreign import Format, Raw, Reading, Writing, numbered


def raw(
    tensors: Mapping[str, torch.Tensor], kind: Literal["npz", "safetensors", "torch"] = "torch", **rest: Any
) -> Raw:
    """A file of these tensors."""
    return Raw(path="file", kind=kind, tensors=dict(tensors), **rest)


def bundle_of(reading: Reading) -> Bundle:
    """The reading as the bundle that opening makes of it."""
    names = reading.class_names or numbered(reading.model.num_classes)
    return Bundle(model=reading.model, preprocess=reading.preprocess, class_names=names, tensors=reading.tensors)


def model_of(reading: Reading) -> VisionTransformer:
    """The model, loaded strictly, in eval mode."""
    return build(bundle_of(reading))


def written(writing: Writing) -> Raw:
    """What was written, as it is read again."""
    return Raw(
        path="file", kind=writing.kind, tensors=dict(writing.tensors), metadata=writing.metadata,
        config=writing.files.get("config.json", {}), preprocessor=writing.files.get("preprocessor_config.json", {}),
    )  # fmt: skip


def round_trip(format: Format, bundle: Bundle) -> Reading:
    """Written and read again."""
    assert format.write is not None
    back = format.read(written(format.write(bundle)))
    assert back.tensors.keys() == bundle.tensors.keys()
    for name, tensor in bundle.tensors.items():
        assert torch.equal(back.tensors[name], tensor), name
    return back


def gap(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """The largest |difference|, of outputs that are far from constant."""
    assert ours.shape == theirs.shape
    assert theirs.std() > 0.02
    return float((ours - theirs).abs().max())
