"""Names of a ResNet's tensors in the four styles that public files have, as rules.

For a hybrid's stem and for BiT alike: `stem_config` says from names and shapes what ResNet stands in a file, with
the numerics of its home, and `stem_rules` how its tensors become ours and go back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from vitrine.config.architecture import ModelConfig, ResNetConfig
from vitrine.config.models import STEM
from vitrine.errors import BadData
from vitrine.weights.rules import Rule, permuted, same, shaped

Style = Literal["google", "timm", "jeonsworld", "bit"]

OURS = "patch_embed.backbone."
"""Before the names of a hybrid's stem in our own state; a ResNet alone has nothing there."""

HWIO = (3, 2, 0, 1)


@dataclass(frozen=True, kw_only=True)
class Spelling:
    """How a style names things: `{b}` and `{u}` are the stage and the unit from `first`, `{k}` the convolution.

    `kernel` says whether filters are stored as (h, w, in, out); `scale` and `bias` end the names of a norm.
    `numerics` are the options of `ResNetConfig` that hold where the files come from.
    """

    root_conv: str
    root_norm: str
    conv: str
    norm: str
    shortcut_conv: str
    shortcut_norm: str
    scale: str
    bias: str
    kernel: bool
    first: int
    numerics: Mapping[str, Any]


SPELLINGS: dict[Style, Spelling] = {
    # google-research/vision_transformer, vit_jax/models_resnet.py
    "google": Spelling(
        root_conv="conv_root/kernel", root_norm="gn_root/",
        conv="block{b}/unit{u}/conv{k}/kernel", norm="block{b}/unit{u}/gn{k}/",
        shortcut_conv="block{b}/unit{u}/conv_proj/kernel", shortcut_norm="block{b}/unit{u}/gn_proj/",
        scale="scale", bias="bias", kernel=True, first=1,
        numerics=STEM,
    ),
    # timm, models/resnetv2.py: BiT, and with another padding and no pre-activation the hybrids' stem
    "timm": Spelling(
        root_conv="stem.conv.weight", root_norm="stem.norm.",
        conv="stages.{b}.blocks.{u}.conv{k}.weight", norm="stages.{b}.blocks.{u}.norm{k}.",
        shortcut_conv="stages.{b}.blocks.{u}.downsample.conv.weight",
        shortcut_norm="stages.{b}.blocks.{u}.downsample.norm.",
        scale="weight", bias="bias", kernel=False, first=0,
        numerics={"padding": "same", "conv_eps": 1e-8, "conv_eps_at": "var", "norm_eps": 1e-5},
    ),
    # jeonsworld/ViT-pytorch, models/modeling_resnet.py
    "jeonsworld": Spelling(
        root_conv="root.conv.weight", root_norm="root.gn.",
        conv="body.block{b}.unit{u}.conv{k}.weight", norm="body.block{b}.unit{u}.gn{k}.",
        shortcut_conv="body.block{b}.unit{u}.downsample.weight", shortcut_norm="body.block{b}.unit{u}.gn_proj.",
        scale="weight", bias="bias", kernel=False, first=1,
        numerics={
            "preact": False, "padding": "fixed", "conv_eps": 1e-5, "conv_eps_at": "var", "norm_eps": 1e-6,
            "pool_padding": False, "shortcut_norm": "channels",
        },
    ),
    # google-research/big_transfer, bit_pytorch/models.py
    "bit": Spelling(
        root_conv="root_block/standardized_conv2d/kernel", root_norm="",
        conv="block{b}/unit{u:02d}/{k}/standardized_conv2d/kernel", norm="block{b}/unit{u:02d}/{k}/group_norm/",
        shortcut_conv="block{b}/unit{u:02d}/a/proj/standardized_conv2d/kernel", shortcut_norm="",
        scale="gamma", bias="beta", kernel=True, first=1,
        numerics={"preact": True, "padding": "fixed", "conv_eps": 1e-10, "conv_eps_at": "var", "norm_eps": 1e-5},
    ),
}  # fmt: skip


def stem_config(found: Mapping[str, Tensor], style: Style, prefix: str = "") -> ResNetConfig:
    """The ResNet whose tensors stand in `found` under `prefix`, with the numerics of `style`.

    Stages and units are counted, the width is that of the root, and timm's files have pre-activation where no
    norm follows the root (their BiT; the padding is then `fixed`). Raises `BadData` where there is no root.
    """
    spelling = SPELLINGS[style]
    names = {name.removeprefix(prefix) for name in found if name.startswith(prefix)}
    bare = style == "timm" and "conv.weight" in names
    root = "conv.weight" if bare else spelling.root_conv
    if root not in names:
        raise BadData(f"{prefix}{root}: there is no such tensor, so this is no ResNet in the style of {style}.")
    layers = _layers(names, spelling)
    width = found[prefix + root].shape[-1 if spelling.kernel else 0]
    numerics = dict(spelling.numerics)
    if style == "timm":
        numerics["preact"] = not bare and spelling.root_norm + spelling.scale not in names
        numerics["padding"] = "fixed" if numerics["preact"] else "same"
    return ResNetConfig(layers=layers, width_factor=max(1, width // 64), **numerics)


def stem_rules(config: ResNetConfig, style: Style, prefix: str = "", ours: str = OURS) -> list[Rule]:
    """Rules for every tensor of root and stages: theirs begin with `prefix`, ours with `ours`.

    With a hybrid's file: google "" (or "opt/target/" where it has not been taken off), timm
    "patch_embed.backbone.", jeonsworld "transformer.embeddings.hybrid_model.". Norms of old Google files, of
    shape (1, 1, 1, C), are read too; (C,) is written.
    """
    spelling, rules = SPELLINGS[style], [_filter("stem.conv.weight", _root(config, style, "conv"), style)]
    if not config.preact:
        rules += _norm("stem.norm.", _root(config, style, "norm"), spelling)
    for stage, units in enumerate(config.layers):
        for unit in range(units):
            block = f"stages.{stage}.blocks.{unit}."
            place = {"b": stage + spelling.first, "u": unit + spelling.first}
            for k in (1, 2, 3):
                at = {**place, "k": "abc"[k - 1] if style == "bit" else k}
                rules.append(_filter(f"{block}conv{k}.weight", spelling.conv.format(**at), style))
                rules += _norm(f"{block}norm{k}.", spelling.norm.format(**at), spelling)
            if unit == 0:
                rules.append(_filter(f"{block}downsample.conv.weight", spelling.shortcut_conv.format(**place), style))
                if not config.preact:
                    rules += _norm(f"{block}downsample.norm.", spelling.shortcut_norm.format(**place), spelling)
    return [_under(rule, ours, prefix) for rule in rules]


def network_rules(config: ModelConfig, style: Literal["timm", "bit"], prefix: str = "") -> list[Rule]:
    """Rules for the whole of a `ResNet`: root, stages, last norm and head. Theirs begin with `prefix`.

    Both styles store the head as a 1 x 1 convolution, timm as (K, C, 1, 1), BiT as (1, 1, C, K).
    """
    K, C = config.num_classes, config.num_features
    rules = stem_rules(config.resnet, style, prefix, "")
    if style == "timm":
        rules += [same(f"norm.{part}", f"{prefix}norm.{part}") for part in ("weight", "bias") if config.resnet.preact]
        head = [shaped("head.weight", f"{prefix}head.fc.weight", (K, C), (K, C, 1, 1))]
        return rules + ([*head, same("head.bias", f"{prefix}head.fc.bias")] if K else [])
    rules += [_under(rule, "", prefix) for rule in _norm("norm.", "group_norm/", SPELLINGS["bit"])]
    kernel = f"{prefix}head/conv2d/kernel"
    head = [
        Rule(
            ours="head.weight", theirs=(kernel,),
            read=lambda x: x.reshape(C, K).t().contiguous(), write=lambda x: (x.t().reshape(1, 1, C, K).contiguous(),),
        )
    ]  # fmt: skip
    return rules + ([*head, same("head.bias", f"{prefix}head/conv2d/bias")] if K else [])


def _root(config: ResNetConfig, style: Style, part: Literal["conv", "norm"]) -> str:
    """The name of the root's filter, or what its norm's names begin with."""
    name = SPELLINGS[style].root_conv if part == "conv" else SPELLINGS[style].root_norm
    # timm builds R+Ti's stem without the ResNet around it.
    return name.removeprefix("stem.") if style == "timm" and not config.layers else name


def _filter(ours: str, theirs: str, style: Style) -> Rule:
    return permuted(ours, theirs, HWIO) if SPELLINGS[style].kernel else same(ours, theirs)


def _norm(ours: str, theirs: str, spelling: Spelling) -> list[Rule]:
    """A norm's scale and shift, which old files store as (1, 1, 1, C)."""
    parts = (("weight", spelling.scale), ("bias", spelling.bias))
    return [Rule(ours=ours + mine, theirs=(theirs + other,), read=_flat, write=_alone) for mine, other in parts]


def _flat(x: Tensor) -> Tensor:
    return x.reshape(-1)


def _alone(x: Tensor) -> tuple[Tensor, ...]:
    return (x,)


def _under(rule: Rule, ours: str, prefix: str) -> Rule:
    return Rule(
        ours=ours + rule.ours, theirs=tuple(prefix + name for name in rule.theirs), read=rule.read, write=rule.write
    )


def _layers(names: set[str], spelling: Spelling) -> tuple[int, ...]:
    """Units of each stage, counted by the first convolution of each."""
    first = "a" if "{u:02d}" in spelling.conv else 1
    layers: list[int] = []
    while len(layers) < 5:
        units = 0
        while spelling.conv.format(b=len(layers) + spelling.first, u=units + spelling.first, k=first) in names:
            units += 1
        if not units:
            break
        layers.append(units)
    return tuple(layers)
