"""How a model begins: fresh, or from another one at a new size, with new channels and new classes."""

from __future__ import annotations

from dataclasses import fields, replace

from torch import Tensor

from vitrine.config.options import ModelConfig
from vitrine.errors import BadConfig
from vitrine.models import positions
from vitrine.models.init import zero_head
from vitrine.models.vit import VisionTransformer
from vitrine.weights.bundle import Bundle, check_tensors

# What fine-tuning may change about a model; everything else is the architecture its weights were made for.
FREE = frozenset(
    {
        "img_size",
        "in_chans",
        "num_classes",
        "drop_rate",
        "drop_path_rate",
        "representation_size",
        "weight_init",
    }
    | {"pos_interpolation", "pos_antialias", "pos_align_corners"}
)


def initialise(
    config: ModelConfig, class_names: tuple[str, ...], init: Bundle | None = None
) -> tuple[VisionTransformer, list[str]]:
    """A model of `config`, and sentences on where its weights come from.

    With `init`, its weights are carried over by named rules: the patch filter summed or repeated for
    other channels, positions resized in 2-D for another grid, the head kept only for the very same
    classes, else zero, its hidden layer dropped. Raises `BadConfig` where the architectures differ.
    """
    if init is None:
        return VisionTransformer(config), [f"weights: fresh, the {config.weight_init} initialisation"]
    require_same_architecture(config, init.model)
    notes: list[str] = []
    tensors = dict(init.tensors)
    key = "patch_embed.proj.weight"
    tensors[key], note = adapt_channels(tensors[key], config.in_chans)
    notes += note
    if config.grid != init.model.grid and "pos_embed" in tensors:
        tensors["pos_embed"] = positions.resize(
            tensors["pos_embed"], init.model.grid, config.grid, interpolation=config.pos_interpolation,
            antialias=config.pos_antialias, align_corners=config.pos_align_corners,
        )  # fmt: skip
        notes.append(f"positions: resized in 2-D from {_grid(init.model)} to {_grid(config)} patches")
    model = VisionTransformer(config)
    if class_names != init.class_names:
        tensors = {name: t for name, t in tensors.items() if not name.startswith(("head.", "pre_logits."))}
        zero_head(model)
        tensors |= {f"head.{name}": tensor for name, tensor in model.head.state_dict().items()}
        notes.append(f"head: fresh and zero, for {config.num_classes} classes")
    else:
        notes.append("head: kept, the classes are the same")
    check_tensors(model.state_dict(), tensors)
    model.load_state_dict(tensors, strict=True)
    return model, notes


def config_from(init: Bundle, class_names: tuple[str, ...]) -> ModelConfig:
    """The configuration in which `init` goes on with `class_names`: the hidden layer of its head is dropped
    unless the classes are the same (section 3.2: "we remove the whole pre-trained prediction head")."""
    if class_names == init.class_names:
        return init.model
    return replace(init.model, num_classes=len(class_names), representation_size=0)


def require_same_architecture(config: ModelConfig, init: ModelConfig) -> None:
    """Raise `BadConfig` naming every option that the weights of `init` cannot follow."""
    differing = [
        f"{f.name} = {getattr(config, f.name)!r} (it has {getattr(init, f.name)!r})"
        for f in fields(ModelConfig)
        if f.name not in FREE and getattr(config, f.name) != getattr(init, f.name)
    ]
    if differing:
        raise BadConfig(f"--init: the model to start from has another architecture: {', '.join(differing)}.")


def adapt_channels(weight: Tensor, in_chans: int) -> tuple[Tensor, list[str]]:
    """The patch filter (D, C, p, p) for `in_chans` channels, and a sentence if it changed.

    3 to 1 sums the filters, 1 to 3 repeats a third of the filter: both give the same tokens for a grey
    picture. Other numbers are refused with `BadConfig`.
    """
    have = weight.shape[1]
    if have == in_chans:
        return weight, []
    if (have, in_chans) == (3, 1):
        return weight.sum(dim=1, keepdim=True), ["patch filter: summed over its 3 channels for grey pictures"]
    if (have, in_chans) == (1, 3):
        return (weight / 3).repeat(1, 3, 1, 1), ["patch filter: a third of it repeated for each of 3 channels"]
    raise BadConfig(f"model.in_chans = {in_chans}: a filter of {have} channels goes to 1 or 3 only.")


def _grid(config: ModelConfig) -> str:
    return "{}x{}".format(*config.grid)
