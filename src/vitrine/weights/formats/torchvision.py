"""torchvision's Vision Transformer, read and written: torchvision/models/vision_transformer.py of 0.28.

Its MLP layers are `mlp.0` and `mlp.3`, and in files of version 1 `mlp.linear_1` and `mlp.linear_2`.
"""

from __future__ import annotations

from vitrine.config.architecture import ModelConfig
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
    side,
    with_given,
)
from vitrine.weights.formats.image_processor import crop_share
from vitrine.weights.rules import Drop, Rule, each, give, same, take

PATCH, TABLE, LAYER = "conv_proj.weight", "encoder.pos_embedding", "encoder.layers.encoder_layer_"
MLP, MLP_1 = ("mlp.0.", "mlp.3."), ("mlp.linear_1.", "mlp.linear_2.")
HEADS = Drop(pattern=r"heads\..*", why="num_classes = 0 asks for no head")


def _fits(raw: Raw) -> bool:
    return {"class_token", TABLE, "encoder.ln.weight"} <= raw.tensors.keys() and any(
        name.startswith("conv_proj.") for name in raw.tensors
    )


def _rules(config: ModelConfig, mlp: tuple[str, str] = MLP) -> list[Rule]:
    ours, theirs = "blocks.{i}.", LAYER + "{i}."
    block = [
        *_pair(ours + "norm1.", theirs + "ln_1."),
        same(ours + "attn.qkv.weight", theirs + "self_attention.in_proj_weight"),
        same(ours + "attn.qkv.bias", theirs + "self_attention.in_proj_bias"),
        *_pair(ours + "attn.proj.", theirs + "self_attention.out_proj."),
        *_pair(ours + "norm2.", theirs + "ln_2."),
        *_pair(ours + "mlp.fc1.", theirs + mlp[0]),
        *_pair(ours + "mlp.fc2.", theirs + mlp[1]),
    ]
    return [
        same("cls_token", "class_token"),
        same("pos_embed", TABLE),
        *_pair("patch_embed.proj.", "conv_proj."),
        *each(config.depth, block),
        *_pair("norm.", "encoder.ln."),
        *(_pair("pre_logits.fc.", "heads.pre_logits.") if config.representation_size else ()),
        *(_pair("head.", "heads.head.") if config.num_classes else ()),
    ]


def _pair(ours: str, theirs: str) -> list[Rule]:
    return [same(ours + part, theirs + part) for part in ("weight", "bias")]


def _read(raw: Raw) -> Reading:
    if len(raw.shape(PATCH)) != 4:
        raise UsageError(
            f"{raw.path}: the pictures go through a stem of several convolutions with batch norms "
            "(arXiv:2106.14881), which no model here has."
        )
    D, channels, patch, other = raw.shape(PATCH)
    mlp = MLP_1 if f"{LAYER}0.{MLP_1[0]}weight" in raw.tensors else MLP
    hidden, table = raw.shape(f"{LAYER}0.{mlp[0]}weight"), raw.shape(TABLE)
    if patch != other or channels not in (1, 3) or len(hidden) != 2 or len(table) != 3 or not D:
        raise BadData(f"{raw.path}: {PATCH} {raw.shape(PATCH)}, {TABLE} {table} or the first block is of an odd shape.")
    depth = raw.depth(LAYER)
    heads, said = num_heads(raw, D, depth)
    size = side(table[1], 1, raw) * patch
    wanted = raw.given.get("num_classes") != 0
    head, before = raw.shape("heads.head.weight"), raw.shape("heads.pre_logits.weight")
    config = ModelConfig(
        img_size=size, patch_size=patch, in_chans=channels, num_classes=head[0] if head and wanted else 0, embed_dim=D,
        depth=depth, num_heads=heads, mlp_ratio=hidden[0] / D, norm_eps=1e-6, act_layer="gelu",
        representation_size=before[0] if before and wanted else 0,
        pos_interpolation="bicubic", pos_antialias=False, pos_align_corners=True,
    )  # fmt: skip
    taken = take(_rules(config, mlp), raw.tensors, () if wanted else (HEADS,))
    preprocess, about = preprocessing(config)
    return Reading(
        model=with_given(config, {k: v for k, v in raw.given.items() if k != "num_classes"}),
        preprocess=preprocess,
        tensors=taken.tensors,
        used=taken.used,
        dropped=taken.dropped,
        said=(
            *said,
            about,
            "LayerNorm epsilon 1e-6 and exact GELU; positions resized bicubically with corners aligned, as torchvision "
            "does",
        ),
    )


def preprocessing(config: ModelConfig) -> tuple[PreprocessConfig, str]:
    """What torchvision's own weights of this size are evaluated with, and a sentence: the file does not say."""
    size = config.size[0]
    if size > 224:  # the SWAG weights tuned end to end, at 384, 512 and 518 pixels
        resized, filter_ = size, "bicubic"
    else:
        large = (config.embed_dim, config.patch_size, size) == (1024, 16, 224)
        resized, filter_ = 242 if large else round(size * 256 / 224), "bilinear"
    grey = config.in_chans == 1
    preprocess = PreprocessConfig(
        size=(size, size), resize="shorter", crop_pct=crop_share(size, resized),
        interpolation="bicubic" if filter_ == "bicubic" else "bilinear",
        mean=(0.449,) if grey else IMAGENET_MEAN, std=(0.226,) if grey else IMAGENET_STD,
    )  # fmt: skip
    return preprocess, (
        f"preprocessing: not in the file; {filter_} to {resized} pixels, the centre {size}, ImageNet's constants, as "
        "torchvision evaluates weights of this size (those of SWAG_LINEAR: bicubic to 224)"
    )


def _write(bundle: Bundle) -> Writing:
    config = bundle.model
    needed = {
        "family": "vit", "global_pool": "token", "class_token": True, "distilled": False, "reg_tokens": 0,
        "in_chans": 3, "pos_embed": "learn", "pos_at": "input", "no_embed_class": False, "mlp_layer": "mlp",
        "act_layer": "gelu", "init_values": None, "qk_norm": False, "qkv_bias": True, "pre_norm": False,
        "final_norm": True, "representation_act": "tanh" if config.representation_size else config.representation_act,
    }  # fmt: skip
    for name, value in needed.items():
        if getattr(config, name) != value:
            raise UsageError(
                f"model.{name} = {getattr(config, name)!r}: torchvision's ViT has {value!r}. Write another format."
            )
    if config.num_heads * config.width_of_head != config.embed_dim:
        raise UsageError(f"model.head_dim = {config.head_dim}: torchvision's heads are embed_dim / num_heads wide.")
    if config.size[0] != config.size[1]:
        raise UsageError(f"model.img_size = {config.size}: torchvision's ViT takes square pictures. Resize it first.")
    if not config.num_classes:
        raise UsageError("model.num_classes = 0: torchvision's ViT always has a head. Write another format.")
    hidden = config.representation_size or None
    eps = "" if config.norm_eps == 1e-6 else f", norm_layer=partial(torch.nn.LayerNorm, eps={config.norm_eps:g})"
    return Writing(
        kind="safetensors",
        tensors=give(_rules(config), bundle.tensors),
        metadata={"format": "pt"},
        said=(
            f"it loads by VisionTransformer(image_size={config.size[0]}, patch_size={config.patch_size}, "
            f"num_layers={config.depth}, num_heads={config.num_heads}, hidden_dim={config.embed_dim}, "
            f"mlp_dim={config.mlp_dim}, num_classes={config.num_classes}, representation_size={hidden}{eps})"
            ".load_state_dict(safetensors.torch.load_file(FILE), strict=True)",
            "not in the file, as torchvision has no place for it: class names, preprocessing, number of heads",
        ),
    )


FORMAT = Format(
    name="torchvision",
    title="torchvision's VisionTransformer",
    fits=_fits,
    read=_read,
    write=_write,
)
