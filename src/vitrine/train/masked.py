"""Masked patch prediction: half of the patches are hidden, and their mean colour is learnt (appendix B.1.2).

arXiv:2010.11929: "we corrupt 50% of patch embeddings by either replacing their embeddings with a learnable [mask]
embedding (80%), a random other patch embedding (10%) or just keeping them as is (10%)", and predict "the 3-bit, mean
color (i.e., 512 colors in total) of every corrupted patch using their respective patch representations".
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64, Int64
from torch import Tensor, nn

from vitrine.config.options import Config, PreprocessConfig
from vitrine.images.augment import Draw, draws, more, pixels_of
from vitrine.models.positions import vectors
from vitrine.models.vit import VisionTransformer
from vitrine.train.objective import Objective, Part

CORRUPTED, BY_MASK, BY_OTHER = 0.5, 0.8, 0.1
"""Share of the patches that is corrupted; of these, the shares replaced by [mask] and by another patch."""

LEVELS = 8
"""Of a channel: three bits."""

MASK = -1
"""Stands for the [mask] embedding where a number of a patch could stand."""

JUDGING = -1
"""The epoch whose draws hide the patches that are judged on: none of training's, and the same in every run."""


class MaskedPatches(nn.Module):
    """A ViT with what it needs for this training alone: the [mask] embedding, and a linear head of 8^C colours."""

    def __init__(self, network: VisionTransformer) -> None:
        super().__init__()
        D = network.config.embed_dim
        self.network = network
        self.mask_token = vectors(1, 1, D)
        self.head = nn.Linear(D, LEVELS**network.config.in_chans)
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def forward(
        self, images: Float[Tensor, "B C H W"], where: Int64[Tensor, "B M"], source: Int64[Tensor, "B M"]
    ) -> Float[Tensor, "B M K"]:
        """Logits of the colours of the patches at `where`, whose embeddings are replaced by those of `source`.

        `source` are numbers of patches, or `MASK`. Embeddings are replaced before positions are added.
        """

        def change(patches: Float[Tensor, "B P D"]) -> Float[Tensor, "B P D"]:
            return replaced(patches, where, source, self.mask_token)

        tokens = self.network.forward_features(images, change)[:, self.network.num_prefix_tokens :]
        return self.head(taken(self.network.fc_norm(tokens), where))


def taken(patches: Float[Tensor, "B P D"], where: Int64[Tensor, "B M"]) -> Float[Tensor, "B M D"]:
    """The patches of those numbers."""
    return patches.gather(1, where[..., None].expand(-1, -1, patches.shape[2]))


def replaced(
    patches: Float[Tensor, "B P D"],
    where: Int64[Tensor, "B M"],
    source: Int64[Tensor, "B M"],
    mask_token: Float[Tensor, "1 1 D"],
) -> Float[Tensor, "B P D"]:
    """`patches` with those at `where` replaced by the patch numbered in `source`, or by `mask_token`."""
    others = taken(patches, source.clamp(min=0))
    new = torch.where(source[..., None] == MASK, mask_token.to(patches.dtype), others)
    return patches.scatter(1, where[..., None].expand_as(new), new)


def corruption(table: Float64[Tensor, "B 16"], num_patches: int) -> tuple[Int64[Tensor, "B M"], Int64[Tensor, "B M"]]:
    """Which patches of each picture are corrupted, and what stands in their place: the `where` and `source` of
    `MaskedPatches`, from the draws of the pictures. M is half of the patches, rounded down; for at least two."""
    P, M = num_patches, int(CORRUPTED * num_patches)
    numbers = more(table[:, Draw.MASK].numpy(), P + 2 * M)
    where = np.argsort(numbers[:, :P], axis=1, kind="stable")[:, :M]
    kind, pick = numbers[:, P : P + M], numbers[:, P + M :]
    other = (pick * (P - 1)).astype(np.int64)
    other += other >= where  # uniform over all patches but the own one
    source = np.where(kind < BY_MASK, MASK, np.where(kind < BY_MASK + BY_OTHER, other, where))
    return torch.from_numpy(where.astype(np.int64)), torch.from_numpy(source)


def colours(images: Float[Tensor, "B C H W"], patch_size: int, preprocess: PreprocessConfig) -> Int64[Tensor, "B P"]:
    """The mean colour of each patch of normalised pictures, in `LEVELS` equal steps a channel from black to white.

    The numbers count the channels as digits, the first one first: 64 r + 8 g + b, or the grey level alone.
    """
    levels = (F.avg_pool2d(pixels_of(images, preprocess), patch_size) * LEVELS).floor().clamp(0, LEVELS - 1).long()
    digits = LEVELS ** torch.arange(images.shape[1] - 1, -1, -1, device=images.device)
    return (levels * digits[:, None, None]).sum(1).flatten(1)


def predict_colours(config: Config) -> Objective:
    """Cross-entropy over the colours, the mean over the corrupted patches of a picture; the others do not count.

    The model is a `MaskedPatches`. Right is the share of the corrupted patches whose colour is named. Targets are of
    the pictures as the model is given them, augmented and mixed.
    """
    p = config.model.patch_size

    def objective(model: nn.Module, part: Part) -> tuple[Tensor, Tensor]:
        found = colours(part.images, p, config.preprocess)
        where, source = (numbers.to(found.device) for numbers in corruption(part.draws, found.shape[1]))
        logits = model(part.images, where, source).float()
        wanted = found.gather(1, where)
        each = F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="none").unflatten(0, wanted.shape)
        return each.mean(1), (logits.argmax(2) == wanted).float().mean(1)

    return objective


@torch.inference_mode()
def judged(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], config: Config, device: torch.device
) -> tuple[Float64[np.ndarray, " n"], Float64[np.ndarray, " n"]]:
    """The loss of each picture, and the share of its corrupted patches whose colour is named.

    `batches` gives pictures (B, C, H, W) and their numbers in the source (B,), which decide what is hidden.
    """
    objective, found = predict_colours(config), []
    for images, numbers in batches:
        table = torch.from_numpy(np.stack([draws(0, JUDGING, int(i)) for i in numbers]))
        nothing = torch.zeros(len(images), 0, device=device)
        answers = objective(model, Part(images=images.to(device), targets=nothing, draws=table))
        found.append(torch.stack(answers).double().cpu().numpy())
    each, right = np.concatenate(found, axis=1)
    return cast("np.ndarray", each), cast("np.ndarray", right)
