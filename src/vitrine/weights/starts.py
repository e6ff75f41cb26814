"""Public models that a training on photographs may begin from: which are wanted, and which can be had here."""

from __future__ import annotations

from vitrine.errors import VitrineError
from vitrine.weights import hub

ON_CPU = (
    "hf://timm/vit_small_patch32_224.augreg_in21k",
    "hf://timm/vit_tiny_patch16_224.augreg_in21k",
    "hf://timm/vit_small_patch16_224.augreg_in21k",
    "hf://timm/vit_base_patch32_224.augreg_in21k",
    "hf://timm/vit_base_patch16_224.augreg_in21k",
)
ON_GPU = (
    "hf://timm/vit_base_patch16_224.augreg_in21k",
    "hf://timm/vit_small_patch16_224.augreg_in21k",
    "hf://timm/vit_base_patch32_224.augreg_in21k",
    "hf://timm/vit_small_patch32_224.augreg_in21k",
    "hf://timm/vit_tiny_patch16_224.augreg_in21k",
)
"""In the order in which they are wanted. All are pre-trained on ImageNet-21k, which transfers better than ImageNet-1k
(arXiv:2106.10270, section 4.2); S/32 costs a CPU less than Ti/16 and is more accurate (there, figure 4)."""


def found(*, on_cpu: bool) -> tuple[str | None, str]:
    """The hub id of the model to begin from, or None; and how it was found, or why there is none.

    A copy in the hub's cache goes before fetching, whichever of the list it is: nothing is fetched then. Else the
    first of the list is fetched where the hub can be reached.
    """
    wanted = ON_CPU if on_cpu else ON_GPU
    for name in wanted:
        if hub.has_weights(name):
            return name, "found in the hub's cache"
    why = hub.unreachable()
    if why:
        return None, f"{why}, and the cache has none of {len(wanted)} models that would do"
    try:
        hub.fetch(wanted[0])
    except VitrineError as error:
        return None, str(error).rstrip(".")
    return wanted[0], "fetched from the hub"
