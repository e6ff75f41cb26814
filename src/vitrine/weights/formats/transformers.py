"""Folders and files of Hugging Face transformers: ViT, DeiT, DINOv2 with and without registers; written: ViT.

On disk the names are those of version 4, which version 5 writes too unless told otherwise; in memory, and on disk
with `save_original_format=False`, version 5 has others. Both are read, the older ones written. Facts:
models/{vit,deit,dinov2,dinov2_with_registers}/modeling_*.py and conversion_mapping.py of transformers 5.23.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from vitrine.config.architecture import Activation, ModelConfig, Pooling
from vitrine.config.options import PreprocessConfig
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
    number,
    require_agreement,
    side,
    sides,
    with_given,
)
from vitrine.weights.formats import image_processor
from vitrine.weights.formats.transformers_names import PATCH, PREFIXES, VERSION_4, Names, rules_for, spelled
from vitrine.weights.rules import Drop, give, take

ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu", "gelu_python": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_python_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh", "gelu_fast": "gelu_tanh", "quick_gelu": "quick_gelu", "relu": "relu",
}  # fmt: skip
"""`hidden_act` in our terms. gelu_new and gelu_fast are the same tanh approximation, written out."""

MULTI_LABEL = "multi_label_classification"
"""`problem_type` where the logits are for sigmoids."""

FAMILIES = ("vit", "deit", "dinov2", "dinov2_with_registers")
DROPS = [
    Drop(pattern=r".*embeddings\.mask_token", why="stands in for masked patches, in masked pre-training alone"),
    Drop(pattern=r"decoder\.0\.(weight|bias)", why="draws masked patches in pre-training, after all that is kept"),
]


def _fits(raw: Raw) -> bool:
    return any(
        len(raw.shape(p + PATCH)) == 4 and {p + "embeddings.cls_token", p + "layernorm.weight"} <= raw.tensors.keys()
        for p in PREFIXES
    )


def _prefix(raw: Raw) -> str:
    return next(p for p in PREFIXES if p + PATCH in raw.tensors)


def _family(raw: Raw, prefix: str) -> str:
    """vit, deit, dinov2 or dinov2_with_registers: as config.json says, else by the names."""
    said = str(raw.config.get("model_type", ""))
    if said:
        if said not in FAMILIES:
            raise UsageError(
                f"{raw.path}: model_type {said!r} of transformers is not read, only {', '.join(FAMILIES)}."
            )
        return said
    if prefix + "embeddings.register_tokens" in raw.tensors:
        return "dinov2_with_registers"
    if prefix + "encoder.layer.0.layer_scale1.lambda1" in raw.tensors:
        return "dinov2"
    return "deit" if prefix + "embeddings.distillation_token" in raw.tensors else PREFIXES[prefix] or "vit"


def _read(raw: Raw) -> Reading:
    prefix = _prefix(raw)
    family = _family(raw, prefix)
    names = spelled(raw, prefix, family)
    config, said = _architecture(raw, family, names)
    drops = [*DROPS, *_dropped_heads(raw, config)]
    second_token = family == "deit" and not config.distilled
    taken = take(rules_for(config, names, second_token=second_token), raw.tensors, drops)
    preprocess, about = image_processor.read(raw.preprocessor, _usual(config, family), raw.path)
    multi_label = raw.config.get("problem_type") == MULTI_LABEL and config.num_classes > 0
    if multi_label:
        said = (*said, "several classes a picture, as config.json says: a sigmoid each, called from 0.5 on")
    if not raw.preprocessor:
        about = (f"preprocessing: no preprocessor_config.json; the usual one of {family} in transformers is assumed",)
    return Reading(
        model=with_given(config, raw.given),
        preprocess=preprocess,
        tensors=taken.tensors,
        used=taken.used,
        dropped=taken.dropped,
        said=(*said, *about, *_said_of_names(raw.config, config.num_classes)),
        class_names=_class_names(raw.config, config.num_classes),
        multi_label=multi_label,
    )


def _architecture(raw: Raw, family: str, names: Names) -> tuple[ModelConfig, tuple[str, ...]]:
    """The model that the shapes and config.json describe, and where the facts come from."""
    facts, p = raw.config, names.prefix
    D, channels, patch, other = raw.shape(p + PATCH)
    if patch != other:
        raise UsageError(f"{raw.path}: patches of {patch} x {other} pixels; only square ones have an equal here.")
    depth, first = raw.depth(names.block), names.block + "0."
    hidden = raw.shape(f"{first}{names.fc2}.weight")
    inner = raw.shape(f"{first}{names.q}.weight")
    if not (len(hidden) == len(inner) == 2 and D):
        raise BadData(f"{raw.path}: the first block is not whole, or its shapes are impossible.")
    require_agreement(raw, facts, {
        "hidden_size": D, "num_hidden_layers": depth, "num_channels": channels, "patch_size": patch,
        "intermediate_size": hidden[1],
    })  # fmt: skip
    about: tuple[str, ...] = ()
    heads = int(raw.given.get("num_heads", number(facts, "num_attention_heads", 0, raw.path)))
    if not heads and "num_attention_heads" not in facts:
        heads, about = num_heads(raw, D, depth)
    if heads < 1 or inner[0] % heads:
        raise UsageError(f"{raw.path}: {heads} attention heads do not divide the {inner[0]} queries. Give the right "
                         "number: --model.num-heads N.")  # fmt: skip
    act = str(facts.get("hidden_act", "gelu"))
    if act not in ACTIVATIONS:
        raise UsageError(f"{raw.path}: hidden_act {act!r} has no equal here, only {', '.join(ACTIVATIONS)} have.")
    distilled = "cls_classifier.weight" in raw.tensors
    second = family == "deit" and not distilled
    registers = ([*raw.shape(p + "embeddings.register_tokens"), 0, 0])[1]
    pooler = raw.shape(p + "pooler.dense.weight")
    dino = family.startswith("dinov2")
    eps = number(facts, "layer_norm_eps", 1e-6 if dino else 1e-12, raw.path)
    swiglu = names.fc1[0] in ("mlp.weights_in", "mlp.gate_proj")
    config = ModelConfig(
        img_size=_image_size(raw, p, patch, 2 if family == "deit" else 1), patch_size=patch, in_chans=channels,
        num_classes=_num_classes(raw, family, distilled), embed_dim=D, depth=depth, num_heads=heads,
        head_dim=None if inner[0] == D else inner[0] // heads, mlp_ratio=hidden[1] / D,
        mlp_layer="swiglu" if swiglu else "mlp", qkv_bias=f"{first}{names.q}.bias" in raw.tensors,
        init_values=float(number(facts, "layerscale_value", 1.0, raw.path)) if dino else None,
        act_layer=ACTIVATIONS[act], norm_eps=eps, distilled=distilled, reg_tokens=1 if second else registers,
        representation_size=pooler[0] if pooler else 0, representation_act=_pooler_act(raw) if pooler else "tanh",
        pos_interpolation="bicubic", pos_antialias=family == "dinov2_with_registers", pos_align_corners=False,
    )  # fmt: skip
    told = [] if facts else [f"no config.json: LayerNorm epsilon {eps:g} and exact GELU, transformers' defaults"]
    if facts:
        told.append(f"LayerNorm epsilon {eps:g} and {act} from config.json")
    if second:
        told.append("the distillation token has no head here: it is kept as a register, its position added to it")
    if pooler:
        told.append("the pooler of the class token is the hidden layer of a head (`representation_size`)")
    smoothing = "with" if config.pos_antialias else "without"
    return config, (*about, *told, f"positions: resized bicubically, {smoothing} smoothing, as transformers does")


def _image_size(raw: Raw, prefix: str, patch: int, before: int) -> int | tuple[int, int]:
    """Pixels that the table of positions is laid out for, `before` of its rows being no patch's."""
    shape = raw.shape(prefix + "embeddings.position_embeddings")
    if len(shape) != 3:
        raise BadData(f"{raw.path}: {prefix}embeddings.position_embeddings has shape {shape}, three axes are needed.")
    said = sides(raw.config, "image_size", raw.path)
    if said is None:  # a size that was given is that of the table only if it has as many patches
        said = sides(raw.given, "img_size", raw.path)
        if said is None or (said[0] // patch) * (said[1] // patch) != shape[1] - before:
            return side(shape[1], before, raw) * patch
    height, width = said
    if (height // patch) * (width // patch) != shape[1] - before:
        raise BadData(
            f"{raw.path}: {shape[1]} positions do not belong to {height} x {width} pixels in patches of {patch} "
            f"and {before} tokens more."
        )
    height, width = height // patch * patch, width // patch * patch
    return height if height == width else (height, width)


def _num_classes(raw: Raw, family: str, distilled: bool) -> int:
    """Classes of the head. Raises `UsageError` for DINOv2's, which sees more than a head of ours does."""
    head = raw.shape("cls_classifier.weight" if distilled else "classifier.weight")
    if raw.given.get("num_classes") == 0 or not head:
        return 0
    if family.startswith("dinov2"):
        raise UsageError(
            f"{raw.path}: the head of Dinov2ForImageClassification takes the class token beside the mean of the "
            "patches, which no head here does. Read the backbone alone: --model.num-classes 0."
        )
    return head[0]


def _dropped_heads(raw: Raw, config: ModelConfig) -> list[Drop]:
    if config.num_classes or raw.given.get("num_classes") != 0:
        return []
    return [Drop(pattern=r"(cls_|distillation_)?classifier\.(weight|bias)", why="num_classes = 0 asks for no head")]


def _pooler_act(raw: Raw) -> Any:
    act = str(raw.config.get("pooler_act", "tanh"))
    if act not in ("tanh", "gelu"):
        raise UsageError(f"{raw.path}: pooler_act {act!r} has no equal here, only tanh and gelu have.")
    return act


def _class_names(facts: Mapping[str, Any], num_classes: int) -> tuple[str, ...] | None:
    """`id2label` in order; None where it is missing, not whole, or transformers' stand-ins LABEL_0, LABEL_1."""
    labels = facts.get("id2label")
    if not num_classes or not isinstance(labels, Mapping):
        return None
    names = [labels.get(str(index), labels.get(index)) for index in range(num_classes)]
    if None in names or len(labels) != num_classes or names == [f"LABEL_{index}" for index in range(num_classes)]:
        return None
    return tuple(str(name) for name in names)


def _said_of_names(facts: Mapping[str, Any], num_classes: int) -> tuple[str, ...]:
    labels = facts.get("id2label")
    if not num_classes or not isinstance(labels, Mapping) or len(labels) == num_classes:
        return ()
    return (f"class names: config.json has {len(labels)} for {num_classes} classes, so they are left out",)


def _usual(config: ModelConfig, family: str) -> PreprocessConfig:
    """The preprocessing of a family where nothing is said: squashed for ViT, ImageNet's constants for the others."""
    if config.in_chans not in (1, 3):
        raise UsageError(f"pictures of {config.in_chans} channels: 1 (grey) and 3 (RGB) are read.")
    if family == "vit" or config.in_chans == 1:
        half = (0.5,) * config.in_chans
        return PreprocessConfig(size=config.size, resize="squash", interpolation="bilinear", mean=half, std=half)
    size = (224, 224) if family.startswith("dinov2") and 224 % config.patch_size == 0 else config.size
    return PreprocessConfig(size=size, crop_pct=0.875, mean=IMAGENET_MEAN, std=IMAGENET_STD)


def _write(bundle: Bundle) -> Writing:
    config = bundle.model
    _require_writable(config)
    names = VERSION_4 if config.num_classes else replace(VERSION_4, prefix="", block="encoder.layer.")
    processor, about = image_processor.write(bundle.preprocess)
    said = list(about)
    if not config.num_classes:
        pooler = "" if config.representation_size else ", add_pooling_layer=False"
        said.append(f"no head: load it by ViTModel.from_pretrained(FOLDER{pooler})")
    if (config.pos_interpolation, config.pos_antialias, config.pos_align_corners) != ("bicubic", False, False):
        said.append("positions at other sizes: transformers resizes them bicubically without smoothing, ours do not")
    return Writing(
        kind="safetensors",
        tensors=give(rules_for(config, names), bundle.tensors),
        files={"config.json": _config_json(bundle), "preprocessor_config.json": processor},
        metadata={"format": "pt"},
        said=tuple(said),
    )


def _require_writable(config: ModelConfig) -> None:
    """Raise `UsageError` naming the first option that transformers' ViT cannot express."""
    both = config.num_classes and config.representation_size
    pooling: Pooling = "token"
    needed = {
        "family": "vit", "global_pool": pooling, "class_token": True, "distilled": False, "reg_tokens": 0,
        "pos_embed": "learn", "pos_at": "input", "no_embed_class": False, "mlp_layer": "mlp", "init_values": None,
        "qk_norm": False, "pre_norm": False, "final_norm": True,
        "representation_size": 0 if both else config.representation_size,
    }  # fmt: skip
    for name, value in needed.items():
        if getattr(config, name) != value:
            raise UsageError(
                f"model.{name} = {getattr(config, name)!r}: transformers' ViT has {value!r}. Write another format."
            )
    if config.num_heads * config.width_of_head != config.embed_dim:
        raise UsageError(
            f"model.head_dim = {config.head_dim}: transformers' heads are embed_dim / num_heads wide. "
            "Write another format."
        )


def _config_json(bundle: Bundle) -> dict[str, Any]:
    config = bundle.model
    theirs: dict[Activation, str] = {"gelu_tanh": "gelu_pytorch_tanh"}
    facts: dict[str, Any] = {
        "architectures": ["ViTForImageClassification" if config.num_classes else "ViTModel"],
        "model_type": "vit",
        "hidden_size": config.embed_dim,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.mlp_dim,
        "hidden_act": theirs.get(config.act_layer, config.act_layer),
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "initializer_range": 0.02,
        "layer_norm_eps": config.norm_eps,
        "image_size": config.size[0] if config.size[0] == config.size[1] else list(config.size),
        "patch_size": config.patch_size,
        "num_channels": config.in_chans,
        "qkv_bias": config.qkv_bias,
        "encoder_stride": config.patch_size,
        "torch_dtype": "float32",
    }
    if config.representation_size:
        facts |= {"pooler_output_size": config.representation_size, "pooler_act": config.representation_act}
    if config.num_classes:
        facts["id2label"] = {str(index): name for index, name in enumerate(bundle.class_names)}
        if bundle.multi_label:
            facts["problem_type"] = MULTI_LABEL
        facts["label2id"] = {name: index for index, name in enumerate(bundle.class_names)}
    return facts


FORMAT = Format(
    name="hf",
    title="Hugging Face transformers (ViT, DeiT, DINOv2)",
    fits=_fits,
    read=_read,
    write=_write,
)
