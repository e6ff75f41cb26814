"""What a recipe becomes on the data and the machine at hand, each number that is not the published one told with both.

With the published batch and number of pictures every number is the published one. Else the batch is smaller where it
leaves too few steps, the learning rate goes with the batch as the recipe says, and the length is the same number of
passes, or of pictures seen where it was published in steps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from vitrine.config.architecture import ModelConfig
from vitrine.config.options import Config
from vitrine.config.recipe import Recipe, Stated
from vitrine.config.recipes import recipe as named_recipe
from vitrine.config.text import Nested, flatten, from_dict, merge, to_dict
from vitrine.data.loader import steps_per_epoch
from vitrine.errors import UsageError
from vitrine.train import length, memory, plan
from vitrine.train.length import Span
from vitrine.train.multi_label import biased, said_of_several
from vitrine.train.plan import Facts
from vitrine.weights.start import FREE

LEAST_STEPS, LEAST_BATCH = 16, 32
"""Steps that a pass should have, and the batch that is not made smaller for it."""

AS_PUBLISHED = 0.9
"""A run of this share of the published steps keeps the published warm-up: what is held out of ImageNet differs."""

LARGEST_OWN_SIDE = 64
"""Pixels of a picture up to which a recipe that leaves the side to the data takes the picture's own."""

ONLY_A_VIT = {"drop_rate", "drop_path_rate", "drop_path_over", "init_values", "no_embed_class"}
COUNTED = {"warmup_steps": "warm-up", "cooldown_steps": "cooldown", "timescale_steps": "timescale"}
RATES = ("lr", "warmup_lr", "min_lr")


def decide(facts: Facts, given: Mapping[str, Any]) -> tuple[Config, list[str]]:
    """The whole configuration but for the length of the run, and the reasons in sentences.

    `given` are the user's own options, nested; they name the recipe, and stand above it. Raises as `plan.decide`, and
    `UsageError` for a recipe of fine-tuning without a model to start from.
    """
    for_labels = plan.several(facts, given)
    plain = {name: value for name, value in given.items() if not isinstance(value, Mapping)}
    from_dict(Config, {**for_labels, **plain})
    recipe = named_recipe(given["recipe"])
    if recipe.stage == "fine-tune" and facts.init is None:
        raise UsageError(f"--recipe {recipe.name}: it is for fine-tuning; give the model to start from with --init.")
    shape, why = _shape(recipe, facts, given)
    stated = _stated(recipe, shape, facts)
    labels, for_several = _several(stated, for_labels, given)
    model, said = _model(recipe, stated, shape, facts, given)
    why += plan.as_asked(given.get("model", {}))
    plan.check_model(model, facts)
    preprocess = plan.preprocessing(facts, model)
    chosen: Nested = {
        "model": to_dict(model),
        "preprocess": merge(to_dict(preprocess), _preprocess(stated, facts, model)),
        "num_workers": plan.workers(facts),
    }
    numbers, changes = _numbers(recipe, stated, facts, model, given)
    rest = {name: value for name, value in stated.options.items() if name not in ("model", "preprocess")} | labels
    own = merge(rest, _by_data(recipe, facts), chosen, numbers, given)
    config = from_dict(Config, merge(to_dict(Config()), own, {"grad_checkpointing": numbers["grad_checkpointing"]}))
    plan.check(config, facts)
    lines = [*_introduced(recipe), *_taken(stated, given), f"model: {plan.words(model)}, {why}", *said]
    lines += [*for_several, *(said_of_several(config, given) if config.multi_label else []), *changes]
    return config, lines


def span(recipe: Recipe, config: Config, facts: Facts) -> Span:
    """The published length on these pictures: passes as published, or as many pictures seen as in the steps."""
    stated = _stated(recipe, config.model, facts)
    steps, warmup = recipe.published(stated.length)
    epochs, why = stated.length.epochs, "as published"
    if not epochs:
        a_pass = steps_per_epoch(facts.num_train, config.batch_size) * config.batch_size  # the rest of it is dropped
        epochs = max(1, round(steps * recipe.batch_size / a_pass))
        why = f"as many pictures seen as in {steps:,} steps of {recipe.batch_size:,}"
    counts = {"warmup_steps": warmup}
    counts |= {name: stated.options["optim"][name] for name in COUNTED if name in stated.options["optim"]}

    def scaled(total: int) -> dict[str, int]:
        if total >= AS_PUBLISHED * steps:
            return counts
        return {name: max(1, round(count * total / steps)) if count else 0 for name, count in counts.items()}

    decay = float(stated.options.get("ema_decay", 0.0))
    return Span(epochs=epochs, why=why, limit_s=0.0, steps=scaled, decay=lambda total: decay)


def with_length(config: Config, facts: Facts, given: Mapping[str, Any], step_s: float) -> tuple[Config, int, list[str]]:
    """As `length.with_length`, for the length of the recipe; no time limit unless one is given."""
    recipe = named_recipe(config.recipe)
    own = span(recipe, config, facts)
    config, epochs, said = length.with_length(config, facts, given, step_s, own)
    steps, _ = recipe.published(_stated(recipe, config.model, facts).length)
    total = epochs * steps_per_epoch(facts.num_train, config.batch_size)
    for name, was in own.steps(steps).items():
        found = getattr(config.optim, name)
        if found != was and name not in given.get("optim", {}):
            said.append(
                f"{COUNTED[name]}: {was:,} of {steps:,} steps → {found:,} of {total:,}: the same share of the run"
            )
    return config, epochs, said


def _shape(recipe: Recipe, facts: Facts, given: Mapping[str, Any]) -> tuple[ModelConfig, str]:
    """The architecture before the recipe's options, and where it comes from."""
    if facts.init is None and not given.get("arch"):
        model, _ = plan.architecture(facts, {**given, "arch": recipe.arch})
        return model, f"the recipe's {recipe.arch}"
    return plan.architecture(facts, given)


def _by_data(recipe: Recipe, facts: Facts) -> Nested:
    """What the recipe leaves to the pictures beside their side: colour is mirrored, grey may be signs."""
    return {"augment": {"flip": not facts.grey}} if "augment.flip" in recipe.by_data else {}


def _stated(recipe: Recipe, model: ModelConfig, facts: Facts) -> Stated:
    width, height = facts.median_size
    return recipe.stated(model, facts.num_train, width * height)


def _several(stated: Stated, wanted: Nested, given: Mapping[str, Any]) -> tuple[Nested, list[str]]:
    """The options that several classes a picture take from the recipe, and a sentence for each that differs from it.

    `wanted` are those of training without a recipe, none where a picture has one class. A loss over sigmoids stays the
    recipe's; one over a softmax, and smoothing, do not suit classes that do not exclude each other.
    """
    published = {name: stated.options.get(name, getattr(Config(), name)) for name in ("loss", "label_smoothing")}
    if not wanted:
        return {}, []
    kept = {"loss": published["loss"]} if published["loss"] != "cross_entropy" else {}
    taken = {**wanted, **kept}
    changed = [
        f"{name}: {value} \N{RIGHTWARDS ARROW} {taken[name]}: a picture may have several classes"
        for name, value in published.items()
        if taken[name] != value and name not in given
    ]
    return taken, changed


def _model(
    recipe: Recipe, stated: Stated, shape: ModelConfig, facts: Facts, given: Mapping[str, Any]
) -> tuple[ModelConfig, list[str]]:
    """The recipe's options of the model on `shape`, the user's on top; what is said of it."""
    own, options = given.get("model", {}), dict(stated.options.get("model", {}))
    if facts.init is not None:
        options = {name: value for name, value in options.items() if name in FREE}
    elif recipe.hidden_head and shape.family != "resnet":
        options["representation_size"] = own.get("embed_dim", shape.embed_dim)
    if shape.family == "resnet":
        options = {name: value for name, value in options.items() if name not in ONLY_A_VIT}
    if given.get("arch") and facts.init is None:
        options.pop("img_size", None)  # the name that was given says a side
    elif "model.img_size" in recipe.by_data and max(facts.median_size) <= LARGEST_OWN_SIDE:
        options["img_size"] = max(facts.median_size)
    if "head_bias" not in options and plan.fresh_head(facts):
        shape = biased(shape, facts.mean_share)
    said = []
    if "img_size" in options and "img_size" not in own:
        stride = shape.stride * int(own.get("patch_size", shape.patch_size)) // shape.patch_size
        side = max(1, round(options["img_size"] / stride)) * stride
        if side != options["img_size"]:
            said.append(f"side: {options['img_size']} → {side} pixels, the nearest multiple of {stride}")
        options["img_size"] = side
    model = from_dict(ModelConfig, merge(to_dict(shape), options, own), "model.")
    if max(facts.median_size) < min(model.size):
        what = f"pictures of {max(facts.median_size)} pixels are enlarged to {max(model.size)}"
        said.append(f"{what}: another side by --model.img-size, another model by --arch")
    return model, said


def _preprocess(stated: Stated, facts: Facts, model: ModelConfig) -> Nested:
    """The recipe's preprocessing for the channels at hand; mean and deviation are those of the model to start from."""
    found = dict(stated.options.get("preprocess", {}))
    for name in ("mean", "std"):
        values = found.pop(name, None)
        if values and facts.init is None:
            found[name] = list(plan.of_channels(values, model.in_chans))
    return found


def _numbers(
    recipe: Recipe, stated: Stated, facts: Facts, model: ModelConfig, given: Mapping[str, Any]
) -> tuple[Nested, list[str]]:
    """Batch, parts and learning rates on this data and machine, and a sentence for each that is not as published."""
    batch, said = recipe.batch_size, []
    if "batch_size" in given:
        batch = int(given["batch_size"])
    else:
        batch = _batch(recipe, stated, facts.num_train)
        if batch != recipe.batch_size:
            why = "enough steps in a pass" if stated.length.epochs else "a step at least in a pass"
            said.append(f"batch: {recipe.batch_size:,} → {batch:,}: {why} for {facts.num_train:,} pictures")
    choice = given.get("grad_checkpointing", "auto")
    again = memory.computes_again(model, facts.memory_bytes, min(batch, memory.SENSIBLE), choice)
    room = memory.room(model, facts.memory_bytes, checkpointing=again)
    parts = int(given.get("accumulate", 0)) or max(1, -(-batch // room))
    if again and "grad_checkpointing" not in given:
        said.append("grad_checkpointing: on: without it too few pictures fit into memory at once; a third more time")
    if parts > 1 and "accumulate" not in given:
        said.append(f"accumulate: {parts}: a batch of {batch:,} goes through the model in parts, for there to be space")
    optim = stated.options["optim"]
    factor = {"linear": batch / recipe.batch_size, "root": math.sqrt(batch / recipe.batch_size), "none": 1.0}[
        recipe.rate
    ]
    rates = {name: optim[name] if factor == 1 else _short(optim[name] * factor) for name in RATES if name in optim}
    if factor != 1 and "lr" not in given.get("optim", {}):
        rule = {"linear": "in proportion", "root": "with the root of the batch"}[recipe.rate]
        said.append(
            f"learning rate: {optim['lr']:g} at batch {recipe.batch_size:,} → {rates['lr']:g} at {batch:,}: {rule}"
        )
    checkpointing = {"grad_checkpointing": "on" if again else "off"}
    return {"batch_size": batch, "accumulate": parts, "optim": rates, **checkpointing}, said


def _batch(recipe: Recipe, stated: Stated, num_train: int) -> int:
    """The published batch, or the power of two that leaves about sixteen steps a pass; for a length in steps, of which
    a pass may be one, the power of two that the pictures fill."""
    if not stated.length.epochs:
        return min(recipe.batch_size, 2 ** int(math.log2(max(1, num_train))))
    wanted = 2 ** round(math.log2(max(1, num_train / LEAST_STEPS)))
    return min(recipe.batch_size, max(LEAST_BATCH, wanted))


def _short(number: float) -> float:
    return float(f"{number:.3g}")


def _introduced(recipe: Recipe) -> list[str]:
    """The recipe, what it should reach and where its deviations stand, in two lines."""
    lines = [f"recipe: {recipe.name}, {recipe.title} ({recipe.source})"]
    reach = "no figure was published with it"
    if recipe.expects:
        first, others = recipe.expects[0], len(recipe.expects) - 1
        reach = f"published: {first.value:g} % top-1 ({first.what})" + (f" and {others} more" if others else "")
    number = len(recipe.deviations)
    return [*lines, f"{reach}; {number} known deviations: `vitrine info --recipes {recipe.name}`"]


def _taken(stated: Stated, given: Mapping[str, Any]) -> list[str]:
    """Which cases of the recipe hold, and what the user changed of it."""
    lines = [f"of the recipe: {name}" for name in stated.cases if name not in stated.unmatched]
    lines += [f"the recipe has no case for this: taken is {name}" for name in stated.unmatched]
    changed = dict(flatten(stated.options))
    own = [name for name, value in flatten(given) if name in changed and changed[name] != value]
    return [*lines, f"not as in the recipe, as asked: {', '.join(own)}"] if own else lines
