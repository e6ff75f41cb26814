"""The .npz of google-research/big_transfer: the BiT ResNets, read and written.

Source: `bit_pytorch/models.py` and `train.py`. Some files number their convolutions, as in
`standardized_conv2d_17`; the numbers mean nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from vitrine.config.architecture import ModelConfig, ResNetConfig
from vitrine.config.options import PreprocessConfig
from vitrine.errors import BadData, UsageError
from vitrine.weights.bundle import Bundle
from vitrine.weights.foreign import Format, Raw, Reading, Writing, with_given
from vitrine.weights.formats.resnet_rules import SPELLINGS, network_rules, stem_config
from vitrine.weights.rules import give, take

PREFIX = "resnet/"
ROOT = f"{PREFIX}root_block/standardized_conv2d/kernel"
IN21K, UPSTREAM, DOWNSTREAM = 21_843, 224, 480


def plain(name: str) -> str:
    """A name without the number that some files have after the kind of a layer."""
    return re.sub(r"/(standardized_conv2d|group_norm|conv2d)_\d+/", r"/\1/", name)


def fits(raw: Raw) -> bool:
    """The root's filter stands where BiT has it."""
    return raw.kind == "npz" and any(plain(name) == ROOT for name in raw.tensors)


def read(raw: Raw) -> Reading:
    """The model of a file. Raises `BadData` for tensors that do not fit.

    The file does not tell the size of the pictures: without `img_size` it is 224 for the 21,843 classes of the
    first training, else 480, which BiT fine-tunes at for all but thumbnails (`bit_hyperrule.py`).
    """
    found: dict[str, Tensor] = {}
    theirs: dict[str, str] = {}
    for name, tensor in raw.tensors.items():
        if plain(name) in found:
            raise BadData(f"{raw.path}: {name} and {theirs[plain(name)]} are one tensor. Take another copy.")
        found[plain(name)], theirs[plain(name)] = tensor.float(), name
    kernel = found.get(f"{PREFIX}head/conv2d/kernel")
    classes = 0 if kernel is None else kernel.shape[-1]
    size = raw.given.get("img_size", UPSTREAM if classes == IN21K else DOWNSTREAM)
    channels = found[ROOT].shape[2]
    config = with_given(
        ModelConfig(
            family="resnet", resnet=stem_config(found, "bit", PREFIX), img_size=size, in_chans=channels,
            num_classes=classes,
        ),
        raw.given,
    )  # fmt: skip
    taken = take(network_rules(config, "bit", PREFIX), found)
    half = (0.5,) * channels
    assumed = "as given" if "img_size" in raw.given else "assumed, the file does not say; another: --model.img-size"
    return Reading(
        model=config,
        preprocess=PreprocessConfig(
            size=config.size, resize="squash", crop_pct=1.0, interpolation="bilinear", mean=half, std=half
        ),
        tensors=taken.tensors,
        used=tuple(sorted(theirs[name] for name in taken.used)),
        said=(
            "ResNet: filters over the root of their variance + 1e-10, group norms with epsilon 1e-5, fixed padding",
            f"pictures: squashed to the square bilinearly and scaled to [-1, 1]; {config.size[0]} pixels, {assumed}",
        ),
    )


def write(bundle: Bundle) -> Writing:
    """The file that BiT's loader takes. Raises `UsageError` naming an option that it cannot express."""
    config, own, home = bundle.model, bundle.model.resnet, SPELLINGS["bit"].numerics
    _require("family", config.family, "resnet")
    _require("resnet.layers", own.layers, own.layers if len(own.layers) == 4 else "four stages")
    _require("num_classes", config.num_classes, config.num_classes or "a head")
    for name in ("preact", "padding", "pool_padding"):
        _require(f"resnet.{name}", getattr(own, name), _default(name))
    said = [
        f"warning: resnet.{name} is {getattr(own, name)}, and readers of the file take {home[name]}"
        for name in ("conv_eps", "conv_eps_at", "norm_eps")
        if getattr(own, name) != home[name]
    ]
    pre = bundle.preprocess
    if pre.resize != "squash" or set(pre.mean) | set(pre.std) != {0.5}:
        said.append(
            "warning: the file holds no preprocessing; its readers squash pictures and scale them to [-1, 1], "
            f"this model wants resize {pre.resize}, mean {pre.mean}, std {pre.std}"
        )
    said.append("class names and the size of the pictures are not in the file: keep them beside it")
    tensors: Mapping[str, Tensor] = {name: tensor.detach().float() for name, tensor in bundle.tensors.items()}
    return Writing(kind="npz", tensors=give(network_rules(config, "bit", PREFIX), tensors), said=tuple(said))


def _default(name: str) -> object:
    return ResNetConfig.__dataclass_fields__[name].default


def _require(name: str, value: object, wanted: object) -> None:
    if value != wanted:
        raise UsageError(f"model.{name} = {value!r}: BiT's format has {wanted} only. Write another format.")


FORMAT = Format(name="bit", title="google-research/big_transfer .npz", fits=fits, read=read, write=write)
