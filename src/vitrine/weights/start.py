"""How a model begins: fresh, or from another one at a new size, with new patches, channels and classes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace

import torch
from torch import Tensor, nn

from vitrine.config.architecture import ModelConfig
from vitrine.errors import BadConfig
from vitrine.models.init import lecun_normal
from vitrine.models.networks import Network, first_filter, network
from vitrine.weights.bundle import Bundle, check_tensors
from vitrine.weights.resample import resized

# What fine-tuning may change about a model; everything else is the architecture its weights were made for.
FREE = frozenset(
    {
        "img_size",
        "patch_size",
        "in_chans",
        "num_classes",
        "drop_rate",
        "drop_path_rate",
        "drop_path_over",
        "representation_size",
        "weight_init",
        "head_bias",
    }
    | {"pos_interpolation", "pos_antialias", "pos_align_corners", "pos_offset"}
)

HEADS = ("head.", "head_dist.")


def initialise(
    config: ModelConfig, class_names: tuple[str, ...], init: Bundle | None = None
) -> tuple[Network, list[str]]:
    """A model of `config`, and sentences on where its weights come from.

    With `init`, its weights are carried over by named rules: the first filter summed or repeated for other
    channels, the patch filter resized for other patches, positions in 2-D for another grid, and the head kept
    only for the very same classes. Else it is zero, DeiT's second head too, or small where `weight_init` is timm or
    there is a `head_bias`, and its hidden layer is dropped, unless the same width is asked for: then that layer is
    kept. Nothing is initialised that would be overwritten.
    Raises `BadConfig` where the architectures differ.
    """
    if init is None:
        return network(config), [f"weights: fresh, the {config.weight_init} initialisation"]
    require_same_architecture(config, init.model)
    convention = {name: getattr(config, name) for name in FREE if name.startswith("pos_")}
    _, tensors, said = resized(replace(init.model, **convention), init.tensors, config.img_size, config.patch_size)
    notes = [note for note in said if not note.startswith("warning")]  # the cost is of going on without training
    key = first_filter(config)
    if key in tensors:
        tensors[key], changed = adapt_channels(tensors[key], config.in_chans)
        notes += changed
    if config.in_chans != init.model.in_chans and config.family != "vit":
        notes.append("the first filter is standardised: grey pictures give other maps than before until fine-tuned")
    with torch.device("meta"):
        model = network(config)
    wanted = model.state_dict()
    head, said_of_head = _head(config, class_names, init, wanted)
    tensors = {name: t for name, t in tensors.items() if not name.startswith((*HEADS, "pre_logits."))} | head
    check_tensors(wanted, tensors)
    # Training must not write into the tensors of `init`, so each is a copy.
    own = {name: tensor.detach().to(torch.get_default_dtype(), copy=True) for name, tensor in tensors.items()}
    model.load_state_dict(own, strict=True, assign=True)
    return model, [*notes, said_of_head]


def _head(
    config: ModelConfig, class_names: tuple[str, ...], init: Bundle, wanted: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], str]:
    """The tensors of the head and of its hidden layer, and a sentence. Raises `BadConfig`."""
    hidden = {name: tensor for name, tensor in init.tensors.items() if name.startswith("pre_logits.")}
    same_width = config.representation_size == init.model.representation_size
    if class_names == init.class_names:
        if not same_width:
            raise BadConfig(
                f"model.representation_size = {config.representation_size}: the head is kept, as the classes are the "
                f"same, and stands on a hidden layer of {init.model.representation_size}."
            )
        kept = {name: tensor for name, tensor in init.tensors.items() if name.startswith(HEADS)}
        return kept | hidden, "head: kept, the classes are the same" if class_names else "head: none, as before"
    fresh = {name: _fresh_head(config, name, tensor.shape) for name, tensor in wanted.items() if name.startswith(HEADS)}
    began = "zero" if config.weight_init == "jax" and not config.head_bias else "small"
    said = (
        f"head: fresh and {began}, for {config.num_classes} classes"
        if config.num_classes
        else "head: dropped, none is wanted"
    )
    if same_width:
        return fresh | hidden, said + (", on the hidden layer it had" if hidden else "")
    for name, tensor in wanted.items():
        if name.startswith("pre_logits."):
            empty = torch.zeros(tensor.shape)
            fresh[name] = lecun_normal(empty) if name.endswith("weight") else empty
    return fresh, said + (", with a fresh hidden layer" if config.representation_size else "")


def _fresh_head(config: ModelConfig, name: str, shape: torch.Size) -> Tensor:
    """Zero (section 3.2), or with deviation 0.02 as `weight_init` = timm has it; biases are `head_bias`."""
    if name.endswith(".bias"):
        return torch.full(shape, config.head_bias)
    return nn.init.trunc_normal_(torch.empty(shape), std=0.02) if config.weight_init == "timm" else torch.zeros(shape)


def config_from(init: Bundle, class_names: tuple[str, ...]) -> ModelConfig:
    """The configuration in which `init` goes on with `class_names`: the hidden layer of its head is dropped
    unless the classes are the same (section 3.2: "we remove the whole pre-trained prediction head"), and the
    new head begins at zero whatever the old one did, unless that is asked for."""
    if class_names == init.class_names:
        return init.model
    return replace(init.model, num_classes=len(class_names), representation_size=0, head_bias=0.0, weight_init="jax")


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
    """The first filter (D, C, p, p), of patches or of a ResNet's root, for `in_chans` channels; a sentence if changed.

    3 to 1 sums the filters, 1 to 3 repeats a third of the filter: both give the same tokens for a grey
    picture. Other numbers are refused with `BadConfig`.
    """
    have = weight.shape[1]
    if have == in_chans:
        return weight, []
    if (have, in_chans) == (3, 1):
        return weight.sum(dim=1, keepdim=True), ["first filter: summed over its 3 channels for grey pictures"]
    if (have, in_chans) == (1, 3):
        return (weight / 3).repeat(1, 3, 1, 1), ["first filter: a third of it repeated for each of 3 channels"]
    raise BadConfig(f"model.in_chans = {in_chans}: a filter of {have} channels goes to 1 or 3 only.")
