"""Files that are known and cannot be converted exactly, each with the reason.

Each is a `Format` whose reading raises `UsageError`: a file that is recognised gets its reason, not a list of the
tensors that did not fit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

from vitrine.errors import UsageError
from vitrine.weights.foreign import Format, Raw


def _refusal(name: str, title: str, fits: Callable[[Raw], bool], why: str) -> Format:
    """A format that is recognised and refused: `why` is a sentence, and what to do instead."""

    def read(raw: Raw) -> NoReturn:
        raise UsageError(f"{raw.path}: this is {title}. {why}")

    return Format(name=name, title=title, fits=fits, read=read)


def _has(raw: Raw, *names: str) -> bool:
    return all(name in raw.tensors for name in names)


def _is_torch_encoder(raw: Raw) -> bool:
    """`layers.0` of torch.nn.TransformerEncoder under any prefix."""
    end = "layers.0.self_attn.in_proj_weight"
    stems = [name.removesuffix("self_attn.in_proj_weight") for name in raw.tensors if name.endswith(end)]
    return any(_has(raw, stem + "linear1.weight", stem + "linear2.weight", stem + "norm1.weight") for stem in stems)


def _is_lucidrains_now(raw: Raw) -> bool:
    """A norm before the patch filter: a vector where the older layout has a matrix."""
    return (
        len(raw.shape("to_patch_embedding.1.weight")) == 1
        and len(raw.shape("to_patch_embedding.2.weight")) == 2
        and any(name.startswith("transformer.layers.0.") for name in raw.tensors)
    )


def _is_simple_vit(raw: Raw) -> bool:
    """The first SimpleViT: no norms around the patch filter, no class token, no table of positions."""
    return (
        len(raw.shape("to_patch_embedding.1.weight")) == 2
        and "cls_token" not in raw.tensors
        and any(name.startswith("linear_head") for name in raw.tensors)
    )


TORCH_ENCODER = _refusal(
    "torch-encoder",
    "a model around torch.nn.TransformerEncoder",
    _is_torch_encoder,
    "Its norms stand after each branch (post-norm, torch's default) and a ViT's before it, so no weights make the two "
    "alike; whether it was built with norm_first, the file does not say. Train a ViT instead, or run the model where "
    "it was made.",
)
LUCIDRAINS = _refusal(
    "lucidrains-now",
    "a model of lucidrains' vit-pytorch with LayerNorm before and after the patch filter",
    _is_lucidrains_now,
    "A plain ViT has no norm of the pixels of a patch, and no weights stand in for one. Files of its releases before "
    "these norms, with transformer.layers.0.0.fn, are read.",
)
SIMPLE_VIT = _refusal(
    "lucidrains-simple",
    "lucidrains' SimpleViT",
    _is_simple_vit,
    "Its positions are computed, in ways that changed between its releases, and the file holds neither them nor the "
    "size of the pictures: what it was trained with cannot be told from it.",
)
OPEN_CLIP_TRUNK = _refusal(
    "open-clip-timm",
    "an open_clip model whose image tower is timm's",
    lambda raw: _has(raw, "visual.trunk.patch_embed.proj.weight"),
    "The tower has timm's own architecture, of which this file holds no configuration. Take the tower that timm "
    "publishes under the same name, such as hf://timm/vit_base_patch16_siglip_224.webli.",
)
TRANSFORMERS_CLIP = _refusal(
    "transformers-clip",
    "a CLIP model of transformers",
    lambda raw: any(name.endswith("vision_model.embeddings.class_embedding") for name in raw.tensors),
    "Its image tower is read from OpenAI's and open_clip's layouts (visual.conv1.weight): take that file.",
)

FORMATS = (TORCH_ENCODER, LUCIDRAINS, SIMPLE_VIT, OPEN_CLIP_TRUNK, TRANSFORMERS_CLIP)
