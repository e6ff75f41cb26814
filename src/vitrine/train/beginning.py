"""The model that a run begins from: the one asked for, or one found for photographs; or none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vitrine.config.options import FROM_SCRATCH
from vitrine.config.recipes import recipe
from vitrine.errors import VitrineError
from vitrine.train.watch import Watch
from vitrine.weights import hub, starts
from vitrine.weights.bundle import Bundle
from vitrine.weights.opening import open_model

ASKED_OF_A_FILE = ("num_heads", "head_dim", "norm_eps", "act_layer")
"""Options of the model that a public weight file may leave open; the rest of them is for the model to come."""

OTHERWISE = ("arch", "task", "distill")
"""Options by which a user has chosen something else than to fine-tune a model: nothing is looked for then."""

ENOUGH_PHOTOGRAPHS = 1_000_000
"""From about here on a ViT from scratch is no worse off (arXiv:2010.11929, figure 3: ImageNet is too small, its
fourteen-fold is not)."""


def asked(path: str, model: Mapping[str, Any], watch: Watch) -> Bundle:
    """The model at `path`, how it was understood being said; `model` are the user's options of the model to come.

    Raises what `weights.opening.open_model` raises.
    """
    own = {name: value for name, value in model.items() if name in ASKED_OF_A_FILE}
    try:
        found = open_model(path, given=own)
    except VitrineError as error:
        detour = any(option in str(error) for option in ("--format", "--entry", "--model.num-classes 0"))
        way = f" Here by a detour: `vitrine export {path} --to vitrine --out FILE` takes it; start from FILE."
        raise type(error)(f"{error}{way if detour else ''}") from error
    if found.format != "vitrine":
        for sentence in (f"--init: {found.title}", *found.said):
            watch.say(sentence)
    return found.bundle


def worth_looking(given: Mapping[str, Any], *, photographs: bool, grey: bool, num_train: int) -> bool:
    """Whether a pre-trained model is looked for: there are photographs in colour, not too many, and the user has
    neither named one nor said what to train; or a part of a model or a recipe of fine-tuning is asked for."""
    if given.get("init") or any(given.get(name) for name in OTHERWISE) or not photographs or grey:
        return False
    if given.get("mode", "full") != "full" or _tunes(given):
        return True
    return not given.get("model") and not given.get("recipe") and num_train < ENOUGH_PHOTOGRAPHS


def _tunes(given: Mapping[str, Any]) -> bool:
    return bool(given.get("recipe")) and recipe(given["recipe"]).stage == "fine-tune"


def found(watch: Watch, *, on_cpu: bool) -> tuple[str, Bundle] | None:
    """The hub id, commit included, and the model to begin from where one can be had; says which, or why there is none.

    One that cannot be opened is said, and the run begins from scratch.
    """
    name, how = starts.found(on_cpu=on_cpu)
    if name is None:
        watch.say(f"start: from scratch, as {how}. --init takes any ViT file or run")
        return None
    pinned = hub.pinned(name)
    try:
        bundle = open_model(pinned).bundle
    except VitrineError as error:
        watch.say(f"start: from scratch, as {name} could not be opened: {error}")
        return None
    watch.say(
        f"start: {pinned}, {how}: photographs are learnt far better from it; --init {FROM_SCRATCH} begins from scratch"
    )
    return pinned, bundle
