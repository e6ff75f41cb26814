"""Every recipe by name. One more is one row here, or in a table that is joined here."""

from __future__ import annotations

from vitrine.config import big_vision_recipes, own_recipes, paper_recipes, torch_recipes
from vitrine.config.recipe import Recipe
from vitrine.errors import NotFound, nearest

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for table in (own_recipes.RECIPES, paper_recipes.RECIPES, big_vision_recipes.RECIPES, torch_recipes.RECIPES)
    for recipe in table
}

CONVENTIONS = (
    "augment.convention: random crops. torch: area uniform, aspect ratio log-uniform, 10 tries, then the largest "
    "centred crop. google: aspect ratio and height uniform, 100 tries, then the whole picture. own: one draw, shrunk "
    "if need be.",
    "augment.convention: RandAugment. torch: timm's 15 operations for timm's strings, the mean outside the picture; "
    "torchvision's 14 for AugReg's levels, black outside. google: big_vision's 16 (Cutout, SolarizeAdd and Invert, no "
    "Identity, a contrast about a constant grey), grey 128 outside. own: each as published.",
    "augment.mix_per: batch: one share of mixup, or one box of CutMix, for all; picture: one for each.",
)
"""Where Google's code and PyTorch's differ, and the options that choose. A recipe has what its source has."""


def recipe(name: str) -> Recipe:
    """The recipe of that name. Raises `NotFound` with the nearest one."""
    if name not in RECIPES:
        raise NotFound(
            f"{name!r}: there is no such recipe.{nearest(name, RECIPES)} `vitrine info --recipes` lists them."
        )
    return RECIPES[name]
