"""preprocessor_config.json of transformers and `PreprocessConfig`, both ways.

Facts: image_processing_backends.py and the ViT, DeiT, CLIP and BiT image processors of transformers 5.23.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from vitrine.config.options import Interpolation, PreprocessConfig
from vitrine.errors import BadConfig, UsageError

RESAMPLE: tuple[Interpolation, ...] = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
"""Pillow's filters by their number in `resample`."""

SQUASHING = ("vit", "deit")
"""Processors whose plain number in `size` is both sides; for the others it is the shorter one."""


def crop_share(crop: int, resized: int) -> float:
    """The `crop_pct` for which a side is resized to `resized` before `crop` of it is kept, rounding included."""
    share = crop / resized
    while int(crop / share) < resized:
        share = math.nextafter(share, 0.0)
    return share


def read(facts: Mapping[str, Any], fallback: PreprocessConfig, path: str) -> tuple[PreprocessConfig, tuple[str, ...]]:
    """What `facts` mean, and sentences on what could not be carried over; `fallback` fills what they leave open.

    Raises `BadConfig` for facts that no picture can follow, and `UsageError` for those without an equal here.
    """
    if not facts:
        return fallback, ()
    try:
        return _read(facts, fallback)
    except BadConfig:
        raise
    except (KeyError, TypeError, ValueError, IndexError, ZeroDivisionError, OverflowError) as error:
        raise BadConfig(f"{path}: preprocessor_config.json cannot be understood ({error!r}).") from error


def _read(facts: Mapping[str, Any], fallback: PreprocessConfig) -> tuple[PreprocessConfig, tuple[str, ...]]:
    kind = str(facts.get("image_processor_type") or facts.get("feature_extractor_type") or "").lower()
    resized = _sides(facts.get("size"), squash=kind.startswith(SQUASHING) or not kind)
    cropping = facts.get("do_center_crop", "crop_size" in facts and not kind.startswith("vit"))
    crop = _sides(facts.get("crop_size"), squash=True) if cropping else None
    mean, std = _constants(facts, fallback)
    result = replace(fallback, mean=mean, std=std)
    if "resample" in facts:
        result = replace(result, interpolation=RESAMPLE[int(facts["resample"])])
    if not facts.get("do_resize", True):
        return result, ("preprocessing: the source resizes nothing; here pictures are resized to the model's size",)
    if resized is None:
        return (replace(result, size=(crop[0], crop[1])) if crop else result), ()
    if resized[0] != resized[1] and crop is None:
        return replace(result, size=(resized[0], resized[1]), resize="squash"), ()
    if resized[1] == 0:
        return _shorter(result, resized[0], crop)
    if crop is None or crop == resized:
        return replace(result, size=resized, resize="squash"), ()
    return _squash_then_crop(result, resized, crop)


def _shorter(
    result: PreprocessConfig, edge: int, crop: tuple[int, int] | None
) -> tuple[PreprocessConfig, tuple[str, ...]]:
    """The shorter side resized to `edge`, and the centre cropped."""
    if crop is None:
        return replace(result, size=(edge, edge), resize="shorter", crop_pct=1.0), (
            f"preprocessing: the source keeps all of the longer side; here the centre of {edge} x {edge} is taken",
        )
    _require_no_padding(edge, crop)
    said = () if crop[0] == crop[1] else ("preprocessing: the crop is not square; here the picture just covers it",)
    return replace(result, size=crop, resize="shorter", crop_pct=crop_share(max(crop), edge)), said


def _squash_then_crop(
    result: PreprocessConfig, resized: tuple[int, int], crop: tuple[int, int]
) -> tuple[PreprocessConfig, tuple[str, ...]]:
    _require_no_padding(min(resized), crop)
    share = crop_share(max(crop), max(resized))
    return replace(result, size=crop, resize="shorter", crop_pct=share), (
        f"preprocessing: the source squashes to {resized[0]} x {resized[1]} and then crops the centre; here the aspect "
        "ratio is kept, which is the same for square pictures alone",
    )


def _require_no_padding(edge: int, crop: Sequence[int]) -> None:
    if max(crop) > edge:
        raise UsageError(f"preprocessor_config.json: crop_size {tuple(crop)} exceeds size {edge}, which pads pictures.")


def _sides(size: Any, *, squash: bool) -> tuple[int, int] | None:
    """Height and width; (edge, 0) for the shorter edge alone; None where nothing is said."""
    if size is None:
        return None
    if isinstance(size, Mapping):
        if "shortest_edge" in size:
            return int(size["shortest_edge"]), 0
        return int(size["height"]), int(size["width"])
    if isinstance(size, Sequence):
        return int(size[0]), int(size[-1])
    return int(size), int(size) if squash else 0


def _constants(facts: Mapping[str, Any], fallback: PreprocessConfig) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation for pictures scaled to [0, 1], whatever factor the source scales by."""
    channels = fallback.channels
    mean, std = facts.get("image_mean", fallback.mean), facts.get("image_std", fallback.std)
    if not facts.get("do_normalize", True):
        mean, std = 0.0, 1.0
    factor = 255 * float(facts.get("rescale_factor", 1 / 255)) if facts.get("do_rescale", True) else 255.0
    if math.isclose(factor, 1.0, rel_tol=1e-9):
        factor = 1.0
    return _spread(mean, channels, factor), _spread(std, channels, factor)


def _spread(values: Any, channels: int, factor: float) -> tuple[float, ...]:
    """One number a channel; numbers that are all the same serve any count of channels."""
    listed = [float(value) for value in values] if isinstance(values, Sequence) else [float(values)]
    if len(listed) != channels:
        if len(set(listed)) != 1:
            raise ValueError(f"{len(listed)} different constants for {channels} channels")
        listed = listed[:1] * channels
    return tuple(value / factor for value in listed)


def write(config: PreprocessConfig) -> tuple[dict[str, Any], tuple[str, ...]]:
    """preprocessor_config.json for `config`, and sentences on what it cannot say."""
    height, width = config.size
    facts: dict[str, Any] = {
        "do_resize": True,
        "resample": RESAMPLE.index(config.interpolation),
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(config.mean),
        "image_std": list(config.std),
    }
    if config.resize == "squash":
        return {"image_processor_type": "ViTImageProcessor", **facts, "size": {"height": height, "width": width}}, ()
    said = ["preprocessing: transformers rounds an odd crop down, ours to even: a shift of one pixel at most"]
    if height != width:
        said.append("preprocessing: transformers cannot resize so that a picture just covers a crop that is not square")
    # ViT's processor of transformers 4 crops nothing; CLIP's does, in 4 and 5.
    return {
        "image_processor_type": "CLIPImageProcessor",
        **facts,
        "do_convert_rgb": config.channels == 3,
        "size": {"shortest_edge": int(max(height, width) / config.crop_pct)},
        "do_center_crop": True,
        "crop_size": {"height": height, "width": width},
    }, tuple(said)
