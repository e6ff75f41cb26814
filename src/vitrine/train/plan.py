"""What is chosen for a user who gave no option, from the data and the machine, each choice with its reason.

A choice is a default like any other: whatever the user gives stands above it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vitrine.config.architecture import ModelConfig
from vitrine.config.models import named
from vitrine.config.options import Config, PreprocessConfig
from vitrine.config.text import Nested, from_dict, merge, to_dict
from vitrine.errors import Unavailable, UsageError
from vitrine.train import memory, modes
from vitrine.train.multi_label import biased, for_several, said_of_several
from vitrine.weights.bundle import Bundle
from vitrine.weights.start import config_from, require_same_architecture

FEW_PHOTOGRAPHS = 20_000
"""Below this a ViT from scratch learns photographs poorly (section 4.3: it takes far more to pay off)."""

FEW_PICTURES = 20_000
"""Below this a training from scratch gets strong weight decay and distortion."""

FEW_IN_COLOUR = 5_000
"""Below this small pictures in colour are few too."""

THUMBNAIL = 48
"""Pictures up to this side, in pixels, are small ones: signs, or things that fill them."""

NARROW = {"embed_dim": 96, "depth": 4, "num_heads": 3}
"""Small pictures on a CPU: so narrow a model sees them twice as often in ten minutes as one of 128 and depth 6."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What the choices are made from: the training pictures, and the machine."""

    num_train: int
    class_names: tuple[str, ...]
    """Those to learn: none where hidden patches are predicted."""
    median_size: tuple[int, int]
    """Width and height of the middle picture, in pixels."""
    photographs: bool
    """Whether the pictures are files larger than thumbnails."""
    grey: bool
    on_cpu: bool
    cores: int
    memory_bytes: int
    compiler: bool = False
    """Whether there is a C++ compiler, which torch.compile needs."""
    init: Bundle | None = None
    mean_share: float | None = None
    """Where a picture may have several classes: the share of the training pictures that a class has, in the mean."""


def decide(facts: Facts, given: Mapping[str, Any]) -> tuple[Config, list[str]]:
    """The whole configuration but for the length of the run, and the reasons in sentences.

    `given` are the user's own options, nested. Raises `BadConfig` or `NotFound` for one that cannot hold.
    """
    for_labels = several(facts, given)
    plain = {name: value for name, value in given.items() if not isinstance(value, Mapping)}
    from_dict(Config, {**for_labels, **plain})
    seen = as_seen(facts, given)
    model, why_model = _model(seen, given)
    optimiser = given.get("optim", {}).get("name") or _optimizer(seen, model)
    mode = given.get("mode", "full")
    if optimiser == "lamb" and "weight_init" not in given.get("model", {}):
        model = replace(model, weight_init="timm")
        why_model.append(
            "head: begins small, not at zero (weight_init = timm): LAMB moves a matrix by a share of its size"
        )
    chosen: Nested = {
        **for_labels,
        "model": to_dict(model),
        "preprocess": to_dict(preprocessing(facts, model)),
        "augment": {} if mode == "head" else _augment(seen),
    }
    batch, checkpointing, why_memory = _batch_size(facts, model, given)
    chosen["batch_size"] = batch
    chosen["optim"] = _optim(facts, model, batch, optimiser, mode)
    if not facts.class_names:
        chosen["label_smoothing"] = _require_no_smoothing(given)
    chosen["num_workers"] = workers(facts)
    own = merge(to_dict(Config()), chosen, given, {"grad_checkpointing": checkpointing})
    config = from_dict(Config, own)
    check(config, facts)
    return config, [*why_model, *_why_rest(facts, config, given), *why_memory]


def as_seen(facts: Facts, given: Mapping[str, Any]) -> Facts:
    """The facts as the model will see the pictures: photographs shrunk to thumbnails, as asked, are small pictures."""
    side = given.get("model", {}).get("img_size")
    if facts.init is not None or given.get("arch") or side is None:
        return facts
    height, width = (side, side) if isinstance(side, int) else side
    if max(height, width) > THUMBNAIL or max(facts.median_size) <= THUMBNAIL:
        return facts
    return replace(facts, photographs=False, median_size=(width, height))


def several(facts: Facts, given: Mapping[str, Any]) -> Nested:
    """What several classes a picture ask for. Raises `UsageError` for what the data or the task have no use for."""
    if given.get("multi_label") and not facts.class_names:
        raise UsageError("--multi-label True: no labels are learnt here. Leave it out.")
    return for_several(facts.mean_share, given) if facts.class_names else {}


def fresh_head(facts: Facts) -> bool:
    """Whether the head begins anew: there is no model of these classes to start from."""
    return facts.init is None or facts.init.class_names != facts.class_names


def check(config: Config, facts: Facts) -> None:
    """Raise `UsageError` or `Unavailable` for options that do not go together, or that the machine cannot serve."""
    model = config.model
    if facts.init is None:
        modes.require_init(config.mode)
    modes.require_fitting(config.mode, model, config.optim.name)
    if config.preprocess.channels != model.in_chans:
        means = len(config.preprocess.mean)
        raise UsageError(f"preprocess.mean has {means} values: give {model.in_chans}, one a channel of the pictures.")
    if any(side % model.stride for side in config.preprocess.size):
        what = f"model.patch_size = {model.patch_size}" if model.family == "vit" else f"{model.stride}, its stride"
        raise UsageError(f"preprocess.size = {config.preprocess.size}: must be a multiple of {what}.")
    if config.compile == "on" and not facts.compiler:
        raise Unavailable("--compile on: no C++ compiler was found. Install one, or use --compile off.")


def recipe_for(facts: Facts, given: Mapping[str, Any]) -> str:
    """The recipe for a user who named none: that for small data where a device can follow it, else none at all."""
    free = not any(given.get(name) for name in ("recipe", "arch", "model", "optim", "augment"))
    small = not facts.photographs and 16 < max(facts.median_size) <= 64
    one_class = bool(facts.class_names) and facts.mean_share is None
    fits = small and facts.num_train >= FEW_IN_COLOUR and facts.init is None and one_class
    return "small-data" if free and fits and not facts.on_cpu else str(given.get("recipe", ""))


def _model(facts: Facts, given: Mapping[str, Any]) -> tuple[ModelConfig, list[str]]:
    """The architecture, the user's options laid over what is chosen, and the reason."""
    own = given.get("model", {})
    chosen, reason = architecture(facts, given)
    if own.get("distilled") and facts.init is None:
        chosen = replace(chosen, class_token=True, global_pool="token", representation_size=0)
    if fresh_head(facts):
        chosen = biased(chosen, facts.mean_share)
    model = from_dict(ModelConfig, merge(to_dict(chosen), own), "model.")
    check_model(model, facts)
    return model, [f"model: {words(model)}, {reason}{as_asked(own)}"]


def as_asked(own: Mapping[str, Any]) -> str:
    """What the user's options of the model add to the reason for it; nothing where there are none."""
    return f"; with {', '.join(f'{name} = {value!r}' for name, value in own.items())} as asked" if own else ""


def check_model(model: ModelConfig, facts: Facts) -> None:
    """Raise `UsageError` where the model does not fit the pictures."""
    if model.in_chans not in (1, 3):
        raise UsageError(f"--model.in-chans {model.in_chans}: pictures are read as grey (1) or RGB (3).")
    if model.num_classes and not facts.class_names:
        raise UsageError(f"--model.num-classes {model.num_classes}: no classes are learnt here. Leave it out.")
    if model.num_classes != len(facts.class_names):
        raise UsageError(f"--model.num-classes {model.num_classes}: the data has {len(facts.class_names)} classes.")


def architecture(facts: Facts, given: Mapping[str, Any]) -> tuple[ModelConfig, str]:
    """The architecture of `init`, of the name given, or for the size of the pictures, and the reason."""
    shared: dict[str, Any] = {"num_classes": len(facts.class_names), "in_chans": 1 if facts.grey else 3}
    # The mean of the patches learns faster from few pictures than a class token (arXiv:2205.01580).
    mean: dict[str, Any] = {**shared, "class_token": False, "global_pool": "norm_then_avg"}
    hidden: dict[str, Any] = {} if facts.class_names else {"representation_size": 0}
    if facts.init is not None:
        if given.get("arch"):
            require_same_architecture(named(given["arch"]), facts.init.model)
        going_on = config_from(facts.init, facts.class_names)
        return replace(going_on, in_chans=shared["in_chans"]), "as in the run to start from"
    if given.get("arch"):
        return named(given["arch"], **shared, **hidden), f"which is {given['arch']}"
    small = max(facts.median_size)
    if small <= 16:
        return named("vit_micro_patch2_8", img_size=_round_up(small, 2), **mean), f"for pictures of {small} pixels"
    if small <= THUMBNAIL:
        side = _round_up(small, 4)
        if not facts.on_cpu:
            return named("vit_mini_patch4_32", img_size=side, **mean), f"for pictures of {small} pixels on a GPU"
        # 16 patches of a grey picture: three times as many pictures a second count for more than finer patches. Colour
        # pictures, of things and not of signs, gain from patches of four pixels in the same time.
        patch = side // 4 if facts.grey else 4
        narrow = {"img_size": side, "patch_size": patch, "pos_embed": "sincos2d", **NARROW, **mean}
        return named("vit_nano_patch8_32", **narrow), f"for pictures of {small} pixels on a CPU"
    if not facts.on_cpu and facts.num_train >= FEW_PHOTOGRAPHS:
        return named("vit_small_patch16_224", **shared), f"for {facts.num_train:,} photographs on a GPU"
    shallow = {"depth": 6, **mean}
    return named("vit_mini_patch8_64", **shallow), f"small enough to learn from {facts.num_train:,} pictures here"


def words(model: ModelConfig) -> str:
    """The model in a few words."""
    side = "x".join(str(s) for s in dict.fromkeys(model.size))
    units = f"{'-'.join(map(str, model.resnet.layers)) or 'no'} units"
    if model.family == "resnet":
        return f"ResNet of {units}, {model.resnet.width} channels at its end, at {side} px"
    if model.family == "hybrid":
        units += f" and patch {model.patch_size} of its map"
        return f"ViT of width {model.embed_dim}, depth {model.depth}, on a ResNet of {units}, at {side} px"
    return f"ViT of width {model.embed_dim}, depth {model.depth}, patch {model.patch_size}, at {side} px"


def preprocessing(facts: Facts, model: ModelConfig) -> PreprocessConfig:
    """The preprocessing of `init`, at the new size; else a squash of small pictures, a crop of photographs."""
    channels = model.in_chans
    if facts.init is not None:
        old = facts.init.preprocess
        mean, std = (of_channels(values, channels) for values in (old.mean, old.std))
        return replace(old, size=model.size, mean=mean, std=std)
    half = (0.5,) * channels
    if facts.photographs:
        # Training on thumbnails shows them whole, so judging does too.
        crop_pct = 1.0 if max(model.size) <= THUMBNAIL else 0.9
        return PreprocessConfig(size=model.size, crop_pct=crop_pct, mean=half, std=half)
    return PreprocessConfig(
        size=model.size, resize="squash", crop_pct=1.0, interpolation="bilinear", mean=half, std=half
    )


def of_channels(values: Sequence[float], channels: int) -> tuple[float, ...]:
    """A number for each channel: those given, or their mean where they are of another number of channels."""
    return tuple(values) if len(values) == channels else (sum(values) / len(values),) * channels


def _augment(facts: Facts) -> Nested:
    if facts.photographs and not facts.class_names:
        return {"flip": True, "crop_min_area": 0.25}
    if facts.photographs and not facts.grey:
        if facts.init is not None:
            return {"flip": True, "crop_min_area": 0.35}
        return {"flip": True, "crop_min_area": 0.25, "jitter": 0.3}
    if small_in_colour(facts):
        return {"flip": True, "shift": 0.1}
    if facts.num_train >= FEW_PICTURES:
        return {"shift": 0.04}
    return {"shift": 0.06, "rotate_deg": 15.0, "zoom": 0.15}


def small_in_colour(facts: Facts) -> bool:
    """Whether the pictures are small ones of things rather than signs: in colour, and large enough to show any."""
    return not facts.photographs and not facts.grey and 16 < max(facts.median_size) <= 64


def _batch_size(facts: Facts, model: ModelConfig, given: Mapping[str, Any]) -> tuple[int, str, list[str]]:
    """About sixteen steps an epoch, 32 to 128 pictures (1,024 on a GPU), each part in no more than half the memory;
    and whether blocks are computed again for it."""
    most = 128 if facts.on_cpu else 1024
    wanted = min(max(32, 2 ** round(math.log2(max(1, facts.num_train / 16)))), most)
    asked = int(given.get("batch_size", 0))
    batch, checkpointing, said = memory.settled(
        model, facts.memory_bytes, min(asked, facts.num_train) or wanted, given.get("grad_checkpointing", "auto"),
        asked=bool(asked), parts=int(given.get("accumulate", 1)), frozen=given.get("mode") == "head",
    )  # fmt: skip
    return asked or batch, checkpointing, said


def workers(facts: Facts) -> int:
    """Processes that decode pictures."""
    return 0 if facts.on_cpu else max(1, min(facts.cores, 12) - 1)


def _optimizer(facts: Facts, model: ModelConfig) -> str:
    """Muon where many small pictures, or some thousands in colour, are learnt from scratch on a CPU: there it was
    measured to learn in three passes what takes AdamW six. Elsewhere AdamW."""
    enough = FEW_IN_COLOUR if small_in_colour(facts) else FEW_PICTURES
    many = facts.num_train >= enough and facts.init is None and not facts.photographs
    many = many and bool(facts.class_names)
    return "muon" if many and facts.on_cpu and model.family != "resnet" else "adamw"


def _optim(facts: Facts, model: ModelConfig, batch: int, name: str, mode: str) -> Nested:
    """Learning rate and weight decay.

    AdamW, and Muon, whose updates have its size: 1e-3 at width 192 (or for a ResNet, whose filters are
    standardised) and batch 32, inversely with the width, with the root of the batch, a fifth for fine-tuning; from
    scratch on few pictures a strong decay holds back what would be learnt by heart. SGD: from scratch 0.1 at batch
    256, in proportion; for fine-tuning 0.03 at batch 512 and no decay (Table 4). LAMB, whose rate is a share of the
    size of a matrix: 1e-2, for runs much shorter than DeiT-III's 800 passes at 3e-3; a tenth for fine-tuning.
    What begins at zero, a head alone or adapters, has the rate of training from scratch, a head that of width 192.
    """
    tuning = facts.init is not None
    if name == "sgd":
        rate = 0.03 * batch / 512 if tuning else 0.1 * batch / 256
        return {"name": name, "lr": _short(rate), "weight_decay": 0.0 if tuning else 1e-4}
    if name == "lamb":
        return {"name": name, "lr": 1e-3 if tuning else 1e-2, "weight_decay": 0.05}
    width = 192 if model.family == "resnet" or mode == "head" else model.embed_dim
    rate = min(3e-3, 1e-3 * math.sqrt(batch / 32) * 192 / width)
    few = facts.num_train < FEW_PICTURES and facts.class_names and not tuning
    decay = (0.3 if name == "muon" else 0.5) if few else 0.05
    slower = 0.2 if tuning and mode in ("full", "attention") else 1.0
    return {"name": name, "lr": _short(rate * slower), "weight_decay": decay}


def _require_no_smoothing(given: Mapping[str, Any]) -> float:
    """No label smoothing, for want of labels. Raises `UsageError` where it is asked for."""
    if given.get("label_smoothing"):
        raise UsageError(f"--label-smoothing {given['label_smoothing']}: no labels are learnt here. Leave it out.")
    return 0.0


def _short(number: float) -> float:
    """Two digits: a chosen number should not look like a measured one."""
    return float(f"{number:.1e}")


def _why_rest(facts: Facts, config: Config, given: Mapping[str, Any]) -> list[str]:
    """The other choices in a line, those of the user marked as such."""
    optim, own = config.optim, given.get("optim", {})
    asked = " as asked" if "batch_size" in given else f", for {facts.num_train:,} pictures"
    rate = f"learning rate {optim.lr:g}{' as asked' if 'lr' in own else ''}"
    decay = f"weight decay {optim.weight_decay:g}{' as asked' if 'weight_decay' in own else ''}"
    what = "fine-tuning" if facts.init is not None else "from scratch"
    notes = [f"batch {config.batch_size}{asked}", f"{optim.name}, {rate}, {decay}, {what}"]
    if modes.looks_once(config):
        notes.append(
            "augmentation: none, so the frozen layers see each picture once, and the head learns from what they made"
        )
    elif not config.augment.flip:
        notes.append("augmentation: no mirror images, they may change what such pictures mean (--augment.flip True)")
    return [f"training: {'; '.join(notes)}", *(said_of_several(config, given) if config.multi_label else [])]


def advice(config: Config, photographs: bool, num_train: int) -> list[str]:
    """What a user should know of a run from scratch on few photographs, or without labels."""
    if config.task == "masked_patches":
        return [
            "trained to predict the colour of hidden patches, without labels: it has no head and gives features; "
            "`vitrine train DATA --init` this run fine-tunes it"
        ]
    if config.begins_from or not photographs or num_train >= FEW_PHOTOGRAPHS:
        return []
    return [
        f"{num_train:,} photographs are few for a ViT from scratch: expect a modest accuracy. Starting from a run on "
        "more pictures gives far more: vitrine train DATA --out ANOTHER --init RUN_ON_MORE"
    ]


def _round_up(number: int, step: int) -> int:
    return -(-number // step) * step
