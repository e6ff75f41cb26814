"""Weights at another picture size or patch size: positions in two dimensions, patch filters by pseudo-inverse."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from vitrine.config.architecture import ModelConfig
from vitrine.errors import UsageError
from vitrine.models.relative import moved

FILTER = "patch_embed.proj.weight"
COST = (
    "A ViT-B/16 tuned at 384 pixels loses about 9.5 points of ImageNet top-1 at 224 "
    "(google-research/vision_transformer, issue 6): fine-tune at the new size."
)


def resized(
    config: ModelConfig,
    tensors: Mapping[str, Tensor],
    img_size: int | tuple[int, int] | None = None,
    patch_size: int | None = None,
) -> tuple[ModelConfig, dict[str, Tensor], tuple[str, ...]]:
    """The same model for pictures of `img_size` pixels cut into patches of `patch_size`, None for as they are.

    Gives the new config, all tensors (those that stay are the very same, not copies), and sentences on what
    changed and what it costs. Positions are resized by the convention in `config` (`pos_interpolation`,
    `pos_antialias`, `pos_align_corners`, `pos_offset`), the patch filter by `resize_filter`; in a hybrid it lies
    on the ResNet's map. Raises `BadConfig` for a size that the tokens' stride does not divide, `UsageError` for
    a patch size of a model without patches.
    """
    changes: dict[str, object] = {}
    if img_size is not None:
        changes["img_size"] = img_size
    if patch_size is not None:
        changes["patch_size"] = patch_size
    new = replace(config, **changes)  # type: ignore[arg-type]
    found, notes = dict(tensors), list[str]()
    if new.patch_size != config.patch_size:
        if FILTER not in found:
            raise UsageError(f"--model.patch-size {patch_size}: a {config.family} has no patches.")
        found[FILTER] = resize_filter(found[FILTER], (new.patch_size, new.patch_size))
        notes.append(
            f"patch filter: {config.patch_size} to {new.patch_size} by the pseudo-inverse of bilinear resizing "
            "(FlexiViT, arXiv:2212.08013); a model that was not trained for it loses accuracy until fine-tuned"
        )
    if new.grid != config.grid:
        placed = moved(found, config, new)
        if any(placed[name] is not found[name] for name in found):
            notes.append(f"positions: resized in 2-D from {grid_words(config)} to {grid_words(new)} patches")
            notes += [f"warning: {COST}"] if new.grid[0] * new.grid[1] < config.grid[0] * config.grid[1] else []
        found = placed
    return new, found, tuple(notes)


def grid_words(config: ModelConfig) -> str:
    """Rows x columns of patches."""
    return "{}x{}".format(*config.grid)


def resize_filter(weight: Float[Tensor, "D C p q"], size: tuple[int, int]) -> Float[Tensor, "D C p2 q2"]:
    """The patch filter for patches of another `size`: FlexiViT's PI-resize (arXiv:2212.08013).

    With x' = B x the bilinear resize of a patch, it is w' = pinv(B^T) w: the filter that gives the resized
    patch the token nearest to the old one's, <x', w'> = <x, w>, exactly where the patch grows. B is the
    Kronecker product of the resizes of rows and columns, and so is its pseudo-inverse: two small matrices are
    inverted. Computed in float64, given back in the dtype of `weight`.
    """
    old = weight.shape[2], weight.shape[3]
    if old == size:
        return weight
    rows, columns = (torch.linalg.pinv(resize_matrix(a, b).T) for a, b in zip(old, size, strict=True))
    return (rows.to(weight.device) @ weight.double() @ columns.T.to(weight.device)).to(weight.dtype)


def resize_matrix(old: int, new: int) -> Float[Tensor, "new old"]:
    """Bilinear resizing of `old` samples to `new`, without smoothing (as `tf.image.resize`), in float64."""
    basis = torch.eye(old, dtype=torch.float64)[:, None, :]
    return torch.nn.functional.interpolate(basis, size=new, mode="linear", align_corners=False)[:, 0].T.contiguous()
