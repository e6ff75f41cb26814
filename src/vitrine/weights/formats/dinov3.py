"""DINOv3: the ViT backbones of facebookresearch/dinov3 (arXiv:2508.10104).

From `dinov3/models/vision_transformer.py`, `layers/attention.py`, `layers/rope_position_encoding.py` and
`hub/backbones.py`: no position table but rotary positions of base 100 on the patches, storage tokens (registers),
a bias of queries and values alone (`attn.qkv.bias_mask` is 0 for keys), LayerScale, in some sizes SwiGLU
(`w1` gate, `w2` value, `w3` out), LayerNorm of epsilon 1e-5.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor

from vitrine.config.architecture import ModelConfig
from vitrine.errors import BadData, UsageError
from vitrine.weights.foreign import IMAGENET_MEAN, IMAGENET_STD, Format, Raw, Reading
from vitrine.weights.formats.timm_layout import bare, preprocessing, renamed, spelled, vit_config, vit_rules, width
from vitrine.weights.rules import Drop, Rule, stacked, take

SATELLITE_MEAN, SATELLITE_STD = (0.430, 0.411, 0.296), (0.213, 0.156, 0.143)
"""Of the models trained on SAT-493M."""

THETA = 100.0
ROUNDING = 2**-8
"""Largest relative deviation of a period that bfloat16 may have left."""

DROPS = (
    Drop(pattern=r"mask_token", why="replaces masked patches in training alone"),
    Drop(pattern=r"local_cls_norm\..*", why="the norm of the small crops' class tokens in training alone"),
    Drop(pattern=r"rope_embed\.periods", why="checked against the base of the rotary positions, which gives them"),
)


def fits(raw: Raw) -> bool:
    """Whether names and shapes are DINOv3's."""
    marks = {"rope_embed.periods", "cls_token", "patch_embed.proj.weight", "blocks.0.attn.qkv.weight", "norm.weight"}
    return marks <= bare(raw).tensors.keys()


def read(raw: Raw) -> Reading:
    """A backbone of DINOv3, without a head. Raises `UsageError` and `BadData`."""
    found = bare(raw)
    if "cls_norm.weight" in found.tensors:
        raise UsageError(
            f"{raw.path}: class and storage tokens have a norm of their own (cls_norm), which has no equal here."
        )
    raw = renamed(found, _rename)
    periods = raw.tensors["rope_embed.periods"].double()
    D = width(raw)
    theta, exact = _theta(raw.path, periods)
    gated = raw.shape("blocks.0.mlp.w3.weight")
    config = vit_config(
        raw, num_heads=D // (4 * len(periods)), norm_eps=1e-5, act_layer="gelu", img_size=256,
        pos_embed="rope2d", pos_at="layers", rope_theta=theta,
        **({"mlp_layer": "swiglu", "mlp_ratio": gated[1] / D} if gated else {}),
    )  # fmt: skip
    taken = take(_rules(config, found), found.tensors, DROPS)
    satellite = "sat493m" in raw.path.lower()
    mean, std = (SATELLITE_MEAN, SATELLITE_STD) if satellite else (IMAGENET_MEAN, IMAGENET_STD)
    return Reading(
        model=config,
        preprocess=preprocessing(config, mean, std, resize="squash", interpolation="bilinear"),
        tensors=taken.tensors, used=taken.used, dropped=taken.dropped,
        said=_said(config, satellite=satellite, exact=exact),
    )  # fmt: skip


def _said(config: ModelConfig, *, satellite: bool, exact: bool) -> tuple[str, ...]:
    constants = (
        "the constants of SAT-493M, which the name of the file says"
        if satellite
        else "ImageNet's mean and deviation, as for LVD-1689M; satellite models have "
        f"--preprocess.mean {' '.join(map(str, SATELLITE_MEAN))} --preprocess.std {' '.join(map(str, SATELLITE_STD))}"
    )
    rounded = "" if exact else "; the periods in the file are rounded, those here are exact"
    return (
        f"heads: {config.num_heads}, from the number of rotary periods",
        f"numerics: LayerNorm epsilon {config.norm_eps:g}, rotary positions of base {config.rope_theta:g}{rounded}",
        f"preprocessing: squashed to 256 pixels, bilinear, {constants}",
    )


def _theta(path: str, periods: Tensor) -> tuple[float, bool]:
    """The base of the rotary positions, and whether the file's periods are exactly its powers.

    The k-th of n periods is base^(k / n). Raises `UsageError` for periods that are no such powers.
    """
    count = periods.numel()
    if periods.ndim != 1 or not count or not bool((periods > 0).all()):
        raise BadData(f"{path}: rope_embed.periods holds no row of periods.")
    exponents = torch.arange(count, dtype=torch.float64) / count
    guesses = [THETA] + ([round(float(periods[-1]) ** (count / (count - 1)), 3)] if count > 1 else [])
    for theta in guesses:
        off = float((periods / theta**exponents - 1).abs().max()) if theta > 0 else float("inf")
        if off < ROUNDING:
            return theta, off < 1e-6
    raise UsageError(
        f"{path}: rope_embed.periods are no powers of one base, so its rotary positions have no equal here."
    )


def _rules(config: ModelConfig, found: Raw) -> Sequence[Rule]:
    """Rules for the names of the file."""
    rules: list[Rule] = []
    for rule in spelled(vit_rules(config), found, _rename):
        mask = f"{rule.ours}_mask"
        gate = re.sub(r"\.fc1\.", ".w1.", rule.ours), re.sub(r"\.fc1\.", ".w2.", rule.ours)
        if mask in found.tensors:
            rule = Rule(ours=rule.ours, theirs=(rule.ours, mask), read=_masked, write=lambda x: (x, torch.ones_like(x)))
        elif gate[0] in found.tensors and gate[0] != rule.ours:
            rule = stacked(rule.ours, gate)
        elif ".fc2." in rule.ours and config.mlp_layer == "swiglu":
            rule = Rule(ours=rule.ours, theirs=(rule.ours.replace(".fc2.", ".w3."),), read=rule.read, write=rule.write)
        rules.append(rule)
    return rules


def _masked(bias: Tensor, mask: Tensor) -> Tensor:
    """The bias with the part of the keys at 0. Raises `BadData` for a mask that was never filled (NaN)."""
    if not bool(((mask == 0) | (mask == 1)).all()):
        raise BadData("attn.qkv.bias_mask holds other numbers than 0 and 1: the file was written before it was filled.")
    return torch.where(mask == 0, torch.zeros_like(bias), bias)


def _rename(name: str) -> str:
    """The name in timm's layout, but for the parts of a gated MLP; its first stands where fc1 does."""
    if name.startswith("blocks.") and ".mlp.w1." in name:
        return name.replace(".w1.", ".fc1.")
    return "reg_token" if name == "storage_tokens" else name


FORMAT = Format(name="dinov3", title="DINOv3 backbone (facebookresearch)", fits=fits, read=read)
