"""timm: a state dict, or a folder of model.safetensors and config.json, read and written.

Names, shapes and defaults are those of timm 1.0.31 (`models/vision_transformer.py`, `deit.py`,
`vision_transformer_hybrid.py`, `resnetv2.py`); the folder is what its `create_model("local-dir:FOLDER")` and
`create_model("hf-hub:NAME")` open.

Plain DeiT and MAE files (`.pth`) have these very names, and nothing in the tensors tells them apart. What differs
is the preprocessing: theirs is ImageNet's mean and deviation with a crop of 0.875, timm's Google files have 0.5
and 0.9. So: a config.json with an architecture is timm's; a distillation token without one, or LayerScale under
DeiT-III's names, is DeiT's; plain tensors in an entry `model` of a torch file, as DeiT's scripts write them, fit
both, and the user says which; everything else is timm's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

from vitrine.config.architecture import Activation, ModelConfig, Pooling
from vitrine.config.options import Interpolation, PreprocessConfig
from vitrine.errors import BadData, UsageError
from vitrine.weights.bundle import Bundle
from vitrine.weights.foreign import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Format,
    Raw,
    Reading,
    Writing,
    num_heads,
    numbered,
    require_agreement,
)
from vitrine.weights.formats import timm_resnet
from vitrine.weights.formats.timm_layout import (
    BIAS,
    DEFAULT_SCALE,
    MARKS,
    bare,
    blocks,
    fold_registers,
    is_hybrid,
    pair,
    preprocessing,
    spelled,
    unfold_registers,
    vit_config,
    vit_rules,
    width,
    with_table,
)
from vitrine.weights.formats.timm_names import activation_of, eps_of, heads_of, name_for, refuse_unlike
from vitrine.weights.rules import Drop, give, take

HALF = (0.5, 0.5, 0.5)
ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu", "gelu_tanh": "gelu_tanh", "quick_gelu": "quick_gelu", "quickgelu": "quick_gelu", "relu": "relu",
}  # fmt: skip
HARMLESS = frozenset(
    {
        "img_size", "patch_size", "in_chans", "num_classes", "embed_dim", "depth", "num_heads", "mlp_ratio",
        "global_pool", "fc_norm", "qkv_bias", "qk_norm", "init_values", "class_token", "no_embed_class", "reg_tokens",
        "pre_norm", "final_norm", "pos_embed", "pool_include_prefix", "act_layer", "weight_init", "fix_init",
        "dynamic_img_size", "dynamic_img_pad", "strict_img_size", "drop_rate", "pos_drop_rate", "patch_drop_rate",
        "proj_drop_rate", "attn_drop_rate", "drop_path_rate", "proj_bias", "features_only", "out_indices", "layers",
        "width_factor", "pretrained_strict", "rel_pos_type", "shared_rel_pos", "rel_pos_dim",
    }
)  # fmt: skip
"""Arguments of timm's models that are used here, seen in the tensors, or of no account to a trained model."""

DROPS = (Drop(pattern=r".*\.relative_position_index", why="a table of indices that timm computes"),)
HEADLESS = Drop(pattern=r"head(_dist)?\..*", why="no head was asked for (--model.num-classes 0)")


def fits(raw: Raw) -> bool:
    """Whether names and shapes are timm's."""
    if "model_type" in raw.config:
        return False
    raw = bare(raw)
    if timm_resnet.fits(raw):
        return True
    if not has_layout(raw) or {"mask_token", "rope_embed.periods"} & raw.tensors.keys():
        return False
    old = "blocks.0.gamma_1" in raw.tensors
    return not old and ("dist_token" not in raw.tensors or "architecture" in raw.config)


def has_layout(raw: Raw) -> bool:
    """Whether the tensors, without their wrappers' prefixes, are a ViT's under timm's names."""
    return all(mark in raw.tensors for mark in MARKS) and "patch_embed.proj.weight" in raw.tensors


def read(raw: Raw) -> Reading:
    """A model of timm. Raises `UsageError` for an architecture without an equal here, and `BadData`."""
    try:
        return _read(bare(raw))
    except (TypeError, ValueError, AttributeError, LookupError) as error:
        if not raw.config:
            raise
        raise BadData(f"{raw.path}: config.json holds something else than timm writes there: {error}.") from error


def _read(raw: Raw) -> Reading:
    architecture = str(raw.config.get("architecture", "")).split(".")[0]
    refuse_unlike(raw.path, architecture)
    args = _arguments(raw)
    if timm_resnet.fits(raw):
        return timm_resnet.read(raw, *_preprocess(raw))
    _refuse_tensors(raw)
    heads, said_heads = _heads(raw, architecture, args)
    pooling, said_pooling = _pooling(raw, args)
    act = _activation(architecture, args)
    eps = 1e-6 if args.get("norm_layer") else eps_of(architecture)  # a layer named by itself has its own epsilon
    config = vit_config(raw, num_heads=heads, norm_eps=eps, act_layer=act, img_size=_img_size(raw, args), **pooling)
    _refuse_missing_pre_logits(raw, config)
    _require_agreement(raw, args, config)
    tensors = fold_registers(raw.tensors, config.grid[0] * config.grid[1])
    rules = vit_rules(config)
    if config.global_pool == "token":
        # A norm works on each token alone, so before or after choosing one is the same.
        rules = spelled(rules, raw, lambda name: name.removeprefix("fc_"))
    headless = [HEADLESS] if raw.given.get("num_classes") == 0 else []
    taken = take(rules, tensors, [*DROPS, *headless])
    preprocess, said_pixels = _preprocess(raw)
    folded = tensors.get("reg_token") is not raw.tensors.get("reg_token")
    said = (
        *said_heads, *said_pooling, *_said_numerics(config),
        *(("registers: their positions were added to them",) if folded else ()),
        *said_pixels,
    )  # fmt: skip
    return Reading(
        model=config, preprocess=preprocess(config), tensors=taken.tensors, used=taken.used, dropped=taken.dropped,
        said=said, class_names=class_names(raw, config.num_classes),
    )  # fmt: skip


def _arguments(raw: Raw) -> Mapping[str, Any]:
    """The arguments with which timm builds the model. Raises `UsageError` for one that changes the function."""
    args: Mapping[str, Any] = raw.config.get("model_args") or {}
    for name, value in args.items():
        if name not in HARMLESS and value not in (None, False, "", "layernorm", "LayerNorm"):
            raise UsageError(f"{raw.path}: timm's argument {name} = {value!r} has no equal here.")
    return args


def _refuse_tensors(raw: Raw) -> None:
    """Raise `UsageError` for tensors whose part of the function has no equal here."""
    for name in raw.tensors:
        if "rel_pos.mlp." in name:
            raise UsageError(
                f"{raw.path}: {name}: its positions are a bias that an MLP computes from the distances of patches, "
                "which has no equal here; timm's tables of relative biases have."
            )
    if is_hybrid(raw) is False and any(name.startswith("patch_embed.backbone.") for name in raw.tensors):
        raise UsageError(f"{raw.path}: its stem is another network than BiT's ResNet, and has no equal here.")
    if {"norm.weight", "fc_norm.weight"} <= raw.tensors.keys():
        raise UsageError(f"{raw.path}: it has both norm and fc_norm; a ViT has one of them.")


def _heads(raw: Raw, architecture: str, args: Mapping[str, Any]) -> tuple[int, tuple[str, ...]]:
    D = width(raw)
    tables = [tensor for name, tensor in raw.tensors.items() if name.endswith(BIAS)]
    named = args.get("num_heads") or (tables[0].shape[-1] if tables else heads_of(architecture, D))
    if named and "num_heads" not in raw.given:
        return int(named), ()
    return num_heads(raw, D, blocks(raw))


def _pooling(raw: Raw, args: Mapping[str, Any]) -> tuple[dict[str, Pooling], tuple[str, ...]]:
    """How timm pools, in our terms. Raises `UsageError` for a pooling that has no equal here."""
    asked = raw.given.get("global_pool")
    pool = args.get("global_pool", raw.config.get("global_pool"))
    prefix = bool({"cls_token", "dist_token", "reg_token"} & raw.tensors.keys())
    after = "fc_norm.weight" in raw.tensors
    if asked is None and pool not in (None, "token", "avg", "map"):
        raise UsageError(f"{raw.path}: timm's pooling {pool!r} has no equal here; token, avg and map have.")
    if prefix and args.get("pool_include_prefix") and pool != "token":
        raise UsageError(
            f"{raw.path}: timm pools over all tokens here, the {_prefix_names(raw)} among them; ours is over patches."
        )
    if "attn_pool.latent" in raw.tensors:
        return {"global_pool": "map"}, ()
    if pool == "avg" or (pool is None and (after or "cls_token" not in raw.tensors)):
        return {"global_pool": "avg_then_norm" if after else "norm_then_avg"}, ()
    told = () if pool or asked else ("pooling: the class token, as there is no fc_norm; the file does not say it",)
    return {"global_pool": "token"}, told


def _prefix_names(raw: Raw) -> str:
    names = {"cls_token": "class token", "dist_token": "distillation token", "reg_token": "registers"}
    return ", ".join(what for name, what in names.items() if name in raw.tensors)


def _activation(architecture: str, args: Mapping[str, Any]) -> Activation:
    name = args.get("act_layer")
    if name is None or "silu" in str(name).lower():
        return activation_of(architecture)
    if str(name).lower() not in ACTIVATIONS:
        raise UsageError(f"timm's argument act_layer = {name!r} has no equal here.")
    return ACTIVATIONS[str(name).lower()]


def _img_size(raw: Raw, args: Mapping[str, Any]) -> tuple[int, int] | None:
    """Height and width that the position table is laid out for, where the configuration says them."""
    size = args.get("img_size")
    shape = (raw.config.get("pretrained_cfg") or raw.config).get("input_size")
    if size is None and shape is not None:
        size = shape[1:]
    return None if size is None else pair(size)


def _refuse_missing_pre_logits(raw: Raw, config: ModelConfig) -> None:
    tag = str((raw.config.get("pretrained_cfg") or {}).get("tag", ""))
    if config.num_classes == 21843 and tag == "orig_in21k" and not config.representation_size:
        raise BadData(
            f"{raw.path}: the head of {tag} stands on a hidden layer (pre_logits) that is missing here, so its logits "
            "would be wrong. Take the original file, or load it for fine-tuning with --model.num-classes 0."
        )


def _require_agreement(raw: Raw, args: Mapping[str, Any], config: ModelConfig) -> None:
    """Raise `BadData` where config.json says another architecture than the tensors have."""
    names = ("embed_dim", "depth", "patch_size", "in_chans")
    require_agreement(raw, args, {name: getattr(config, name) for name in names})
    if "num_classes" not in raw.given:
        for facts in (args, raw.config):
            require_agreement(raw, facts, {"num_classes": config.num_classes})


def _said_numerics(config: ModelConfig) -> tuple[str, ...]:
    hybrid = (
        f"; group norms {config.resnet.norm_eps:g}, filters' variance + {config.resnet.conv_eps:g}"
        if config.family == "hybrid" else ""
    )  # fmt: skip
    name: str = "exact GELU" if config.act_layer == "gelu" else config.act_layer
    act = "SiLU gate" if config.mlp_layer == "swiglu" else name
    return (f"numerics: LayerNorm epsilon {config.norm_eps:g}, {act}{hybrid}, positions resized bicubic, antialiased",)


def _preprocess(raw: Raw) -> tuple[Any, tuple[str, ...]]:
    """A function from the model's options to its preprocessing, and sentences on what was assumed."""
    found: Mapping[str, Any] = raw.config.get("pretrained_cfg") or raw.config
    architecture = str(raw.config.get("architecture", ""))
    face = architecture.startswith("deit")
    mean, std = (IMAGENET_MEAN, IMAGENET_STD) if face else (HALF, HALF)
    said: list[str] = []
    if "mean" not in found:
        said.append(
            f"preprocessing: mean {mean[0]:g}, deviation {std[0]:g}, bicubic, centre crop, assumed as in "
            f"timm's {'DeiT' if face else 'Google'} models: the file does not say it. Files of DeiT and MAE need "
            "ImageNet's: --format deit"
        )
    interpolation = found.get("interpolation", "bicubic")
    if interpolation not in get_args(Interpolation):
        said.append(f"preprocessing: interpolation {interpolation!r} is none of ours; bicubic is used")
        interpolation = "bicubic"
    squash = found.get("crop_mode") == "squash"
    crop = found.get("crop_pct")
    if squash and crop not in (None, 1.0):
        said.append(f"preprocessing: squashed to the whole size; timm squashes to it over {crop} and crops the centre")

    def preprocess(config: ModelConfig) -> PreprocessConfig:
        default = 0.9 if min(config.size) < 384 else 1.0
        shape = found.get("input_size")
        fixed = found.get("fixed_input_size", True) and config.family != "resnet"
        size = config.size if shape is None or fixed else pair(shape[1:])
        return preprocessing(
            config, tuple(found.get("mean", mean)), tuple(found.get("std", std)), size=size,
            resize="squash" if squash else "shorter", crop_pct=float(crop or default), interpolation=interpolation,
        )  # fmt: skip

    return preprocess, tuple(said)


def class_names(raw: Raw, num_classes: int) -> tuple[str, ...] | None:
    """The names that a configuration lists, described where it describes them; None where there are not enough."""
    within = raw.config.get("pretrained_cfg") or {}
    names = raw.config.get("label_names", within.get("label_names", raw.config.get("labels")))
    described = raw.config.get("label_descriptions", within.get("label_descriptions")) or {}
    if isinstance(names, Mapping):
        names = [names.get(str(index), names.get(index)) for index in range(num_classes)]
    if not names or len(names) != num_classes or None in names:
        return None
    return tuple(str(described.get(name, name)) for name in names)


def write(bundle: Bundle) -> Writing:
    """The folder from which timm builds this model. Raises `UsageError` naming an option that timm lacks."""
    config = bundle.model
    if config.family == "resnet":
        tensors, architecture, args, said = timm_resnet.write(bundle)
    else:
        config, tensors, said = with_table(bundle)
        _refuse_inexpressible(config)
        architecture, args = name_for(config), _model_args(config)
        tensors = unfold_registers(give(vit_rules(config), tensors), config)
        said += _said_of_writing(config)
    first = {"hybrid": "patch_embed.backbone.stem.conv", "resnet": "stem.conv"}.get(config.family, "patch_embed.proj")
    if config.family == "hybrid" and not config.resnet.layers:
        first = "patch_embed.backbone.conv"
    classifier: str | list[str] = "head.fc" if config.family == "resnet" else "head"
    settings = {
        "architecture": architecture,
        "num_classes": config.num_classes,
        "num_features": config.num_features,
        "global_pool": args.get("global_pool", "avg"),
        "model_args": args,
        "pretrained_cfg": {
            "input_size": [config.in_chans, *config.size],
            "fixed_input_size": config.family != "resnet",
            "interpolation": bundle.preprocess.interpolation,
            "crop_pct": bundle.preprocess.crop_pct if bundle.preprocess.resize == "shorter" else 1.0,
            "crop_mode": "center" if bundle.preprocess.resize == "shorter" else "squash",
            "mean": list(bundle.preprocess.mean),
            "std": list(bundle.preprocess.std),
            "num_classes": config.num_classes,
            "pool_size": None,
            "first_conv": first,
            "classifier": [classifier, "head_dist"] if config.distilled else classifier,
        },
    }
    if config.num_classes and bundle.class_names != numbered(config.num_classes):
        settings["label_names"] = list(bundle.class_names)
    return Writing(
        kind="safetensors", tensors=tensors, files={"config.json": settings}, metadata={"format": "pt"}, said=said
    )


def _refuse_inexpressible(config: ModelConfig) -> None:
    """Raise `UsageError` naming the first option that timm's Vision Transformer cannot be given."""
    relative, tables = config.pos_embed == "rel_bias2d", config.pos_embed in ("learn", "none", "rel_bias2d")
    for option, wrong in (
        ("pos_embed", not tables),
        ("pos_at", config.pos_embed == "learn" and config.pos_at != "input"),
        ("head_dim", config.width_of_head * config.num_heads != config.embed_dim),
        ("representation_size", config.representation_size > 0),
        ("reg_tokens", config.reg_tokens > 0 and (config.distilled or relative)),
        ("no_embed_class", config.no_embed_class and (config.distilled or (relative and config.class_token))),
        ("pos_embed", config.distilled and config.pos_embed != "learn"),
        ("mlp_layer", config.mlp_layer == "swiglu" and (config.global_pool == "map" or relative)),
        ("final_norm", not config.final_norm and (config.distilled or relative)),
        ("global_pool", config.global_pool == "map" and relative),
        ("pre_norm", config.pre_norm and relative),
        ("act_layer", config.act_layer != "gelu" and relative),
    ):
        if wrong:
            value = getattr(config, option)
            raise UsageError(f"--to timm: model.{option} = {value!r}: timm has no equal, at least beside the rest.")


def _model_args(config: ModelConfig) -> dict[str, Any]:
    """Our options as arguments of timm's model."""
    hidden = config.mlp_dim * (2 if config.mlp_layer == "swiglu" else 1)
    mean_first = config.global_pool == "avg_then_norm"
    args: dict[str, Any] = {
        "img_size": list(config.size) if config.size[0] != config.size[1] else config.size[0],
        "patch_size": config.patch_size, "in_chans": config.in_chans, "embed_dim": config.embed_dim,
        "depth": config.depth, "num_heads": config.num_heads, "mlp_ratio": ratio(hidden, config.embed_dim),
        "qkv_bias": config.qkv_bias, "qk_norm": config.qk_norm, "class_token": config.class_token,
        "init_values": None if config.init_values is None else config.init_values or DEFAULT_SCALE,
        "global_pool": "avg" if "avg" in config.global_pool else config.global_pool,
    }  # fmt: skip
    if config.pos_embed == "rel_bias2d":
        return {
            **args, "fc_norm": mean_first, "rel_pos_type": "bias", "shared_rel_pos": config.pos_at == "layers_shared"
        }  # fmt: skip
    args |= {"pre_norm": config.pre_norm, "final_norm": config.final_norm, "pos_embed": config.pos_embed}
    if config.mlp_layer == "mlp":
        args["act_layer"] = config.act_layer
    if not config.distilled:
        args |= {
            "no_embed_class": config.no_embed_class or (config.reg_tokens > 0 and not config.class_token),
            "reg_tokens": config.reg_tokens,
            "fc_norm": mean_first,
        }
    return args


def ratio(hidden: int, width: int) -> float:
    """The number that, times `width` and rounded down as timm does, is `hidden`."""
    found = hidden / width
    return found if int(width * found) == hidden else (hidden + 0.5) / width


def _said_of_writing(config: ModelConfig) -> tuple[str, ...]:
    said: list[str] = []
    ours = (config.pos_interpolation, config.pos_antialias, config.pos_align_corners, config.pos_offset)
    if config.pos_embed == "learn" and ours != ("bicubic", True, False, 0.0):
        said.append("positions: timm resizes them bicubic and antialiased at another size, this model in another way")
    stem = (config.resnet.conv_eps, config.resnet.conv_eps_at, config.resnet.norm_eps, config.resnet.padding)
    if config.family == "hybrid" and stem != (1e-8, "var", 1e-5, "same"):
        said.append(
            "stem: timm standardises filters by sqrt(variance + 1e-8), its group norms have epsilon 1e-5 and its "
            f"padding is same; this model has {stem}, so the logits differ a little"
        )
    return tuple(said)


FORMAT = Format(name="timm", title="timm (state dict, or folder with config.json)", fits=fits, read=read, write=write)
