"""The recipes: their options exist, their numbers are the published ones, and each of them trains."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.made import bundle, photos, told_to_nobody
from vitrine.__main__ import main
from vitrine.cli.recipes import row
from vitrine.config.models import named
from vitrine.config.options import Config
from vitrine.config.recipes import RECIPES, recipe
from vitrine.config.text import flatten, from_dict, merge, partial, read_toml
from vitrine.errors import BadConfig, NotFound, UsageError
from vitrine.models.cost import num_parameters
from vitrine.train import pace
from vitrine.train.follow import decide, with_length
from vitrine.train.plan import Facts
from vitrine.weights.bundle import open_bundle, save

ROOT = Path(__file__).parents[2]


def reference(name: str, given: dict[str, Any], **changes: Any) -> Facts:
    """The data that a recipe was published for, on a machine with space for all of it."""
    found = recipe(name)
    usual: dict[str, Any] = {
        "num_train": found.pictures, "class_names": tuple(map(str, range(1000))), "median_size": (500, 375),
        "photographs": True, "grey": False, "on_cpu": False, "cores": 8, "memory_bytes": 1 << 60,
    }  # fmt: skip
    if found.options.get("task") == "masked_patches":
        usual["class_names"] = ()
    if found.stage == "fine-tune":
        model = named(given.get("model_of_init", "vit-b/16"), num_classes=3)
        usual["init"] = bundle_of(model)
    return Facts(**{**usual, **changes})


def bundle_of(model: Any) -> Any:
    """A bundle of that architecture with no weights in it."""
    from dataclasses import replace

    return replace(bundle(), model=model, tensors={})


# What a recipe cannot do without.
NEEDED: dict[str, dict[str, Any]] = {"deit-distilled": {"distill": {"teacher": "a model"}}}


def settled(name: str, given: dict[str, Any] | None = None, **changes: Any) -> tuple[Config, list[str]]:
    """The configuration and what is said, at a millisecond a step."""
    given = {**NEEDED.get(name, {}), **(given or {})}
    facts = reference(name, given, **changes)
    given.pop("model_of_init", None)
    given["recipe"] = name
    config, said = decide(facts, given)
    config, _, more = with_length(config, facts, given, 1e-3)
    return config, [*said, *more]


# What the sources say, each number literally: optimiser, peak rate, decay, batch, passes, warm-up, side.
PUBLISHED: dict[str, tuple[str, float, float, int, int, int, int]] = {
    "small-data": ("muon", 3e-3, 0.1, 512, 300, 10 * 97, 32),
    "head-only": ("adamw", 2e-3, 0.05, 128, 100, 5 * 39, 224),
    "attention-only": ("adamw", 1e-5, 0.1, 512, 20, 5 * 2502, 384),
    "lora": ("adamw", 5e-3, 0.0, 512, 5, 0, 224),
    "masked-patches": ("adamw", 2e-4, 0.1, 4096, 14, 10_000, 224),
    "vit-paper-jft": ("adamw", 8e-4, 0.1, 4096, 7, 10_000, 224),
    "vit-paper-i21k": ("adamw", 1e-3, 0.03, 4096, 90, 10_000, 224),
    "vit-paper-i1k": ("adamw", 3e-3, 0.3, 4096, 300, 10_000, 224),
    "finetune": ("sgd", 0.03, 0.0, 512, 8, 500, 384),
    "finetune-polyak": ("sgd", 0.03, 0.0, 512, 8, 500, 512),
    "google-finetune": ("sgd", 0.03, 0.0, 512, 8, 500, 384),
    "augreg-finetune": ("sgd", 0.03, 0.0, 512, 8, 500, 384),
    **{
        f"augreg-{data}{level}": ("adamw", 1e-3, 0.1, 4096, 300, 10_000, 224)
        for data in ("", "i21k-")
        for level in ("none", "light1", "light2", "medium1", "medium2", "strong1", "strong2")
    },
    "plain-vit-s16": ("adamw", 1e-3, 0.1, 1024, 90, 10_000, 224),
    "bit-hyperrule": ("sgd", 0.003, 0.0, 512, 8, 500, 480),
    "bit-i1k": ("sgd", 1.6, 1e-4, 4096, 90, 1000, 224),
    "vit-g": ("adamw", 8e-4, 0.03, 16_384, 5, 10_000, 224),
    "deit": ("adamw", 1e-3, 0.05, 1024, 300, 5 * 1251, 224),
    "deit-distilled": ("adamw", 1e-3, 0.05, 1024, 300, 5 * 1251, 224),
    "deit-384": ("adamw", 5e-6, 1e-8, 512, 30, 5 * 2502, 384),
    "deit3-s": ("lamb", 4e-3, 0.05, 2048, 800, 5 * 625, 224),
    "deit3-b": ("lamb", 3e-3, 0.05, 2048, 800, 5 * 625, 192),
    "deit3-l": ("lamb", 3e-3, 0.05, 2048, 800, 5 * 625, 192),
    "deit3-h": ("lamb", 3e-3, 0.05, 2048, 800, 5 * 625, 154),
    "deit3-finetune": ("adamw", 1e-5, 0.1, 512, 20, 5 * 2502, 224),
    "deit3-finetune-384": ("adamw", 1e-5, 0.1, 512, 20, 5 * 2502, 384),
    "deit3-21k-s": ("lamb", 1e-3, 0.02, 2048, 240, 5 * 6932, 224),
    "deit3-21k-b": ("lamb", 1e-3, 0.02, 2048, 240, 5 * 6932, 224),
    "deit3-21k-l": ("lamb", 1e-3, 0.02, 2048, 240, 5 * 6932, 224),
    "deit3-21k-h": ("lamb", 1e-3, 0.02, 2048, 90, 5 * 6932, 126),
    "deit3-21k-finetune": ("lamb", 3e-4, 0.02, 2048, 50, 5 * 625, 224),
    "torchvision-vit": ("adamw", 3e-3, 0.3, 4096, 300, 30 * 312, 224),
    "layer-decay": ("adamw", 4e-3, 0.05, 1024, 100, 20 * 1251, 224),
}

# And what else is peculiar to each, by dotted name.
ALSO: dict[str, dict[str, Any]] = {
    "small-data": {
        "model.embed_dim": 256, "model.depth": 8, "model.num_heads": 4, "model.patch_size": 4, "model.qk_norm": True,
        "model.class_token": False, "augment.flip": True, "augment.mix_off_share": 0.33, "ema_decay": 0.999,
    },
    "head-only": {"mode": "head", "augment.flip": False, "augment.crop_min_area": 1},
    "attention-only": {"mode": "attention", "augment.policy": "rand-m9-mstd0.5-inc1"},
    "lora": {"mode": "lora", "lora.rank": 16, "lora.targets": ["q", "v"], "optim.schedule": "linear"},
    "masked-patches": {"task": "masked_patches", "model.num_classes": 0, "label_smoothing": 0},
    "deit-distilled": {"distill.kind": "hard", "distill.alpha": 0.5, "model.distilled": True, "augment.mixup": 0.8},
    "vit-paper-jft": {
        "loss": "sigmoid", "model.head_bias": -10, "optim.schedule": "linear", "optim.min_lr": 1e-5,
        "optim.clip_norm": 0,
        "model.drop_rate": 0, "model.representation_size": 768, "optim.beta2": 0.999, "label_smoothing": 0,
    },
    "vit-paper-i21k": {"loss": "sigmoid", "model.drop_rate": 0.1, "optim.schedule": "linear", "optim.clip_norm": 0},
    "vit-paper-i1k": {
        "loss": "cross_entropy", "model.drop_rate": 0.1, "optim.schedule": "cosine", "optim.clip_norm": 1,
        "model.representation_size": 768,
    },
    "finetune": {
        "optim.momentum": 0.9, "optim.clip_norm": 1, "optim.schedule": "cosine", "ema_decay": 0, "augment.flip": True,
        "augment.crop_min_area": 0.05, "augment.convention": "google", "model.representation_size": 0,
        "model.weight_init": "jax", "model.head_bias": 0,
    },
    "finetune-polyak": {"ema_decay": 0.9999},
    "google-finetune": {"preprocess.resize": "squash"},
    "augreg-finetune": {"preprocess.resize": "shorter", "preprocess.crop_pct": 384 / 448, "model.drop_rate": 0},
    "augreg-none": {
        "loss": "sigmoid", "model.head_bias": -6.9, "augment.policy": "none", "augment.mixup": 0,
        "model.class_token": True, "model.representation_size": 768, "preprocess.crop_pct": 0.875,
    },
    "augreg-light1": {"augment.policy": "augreg-light1", "augment.mixup": 0},
    "augreg-light2": {"augment.policy": "augreg-light2", "augment.mixup": 0.2},
    "augreg-medium1": {"augment.policy": "augreg-medium1", "augment.mixup": 0.2},
    "augreg-medium2": {"augment.policy": "augreg-medium2", "augment.mixup": 0.5},
    "augreg-strong1": {"augment.policy": "augreg-strong1", "augment.mixup": 0.5},
    "augreg-strong2": {"augment.policy": "augreg-strong2", "augment.mixup": 0.8},
    "augreg-i21k-medium2": {
        "model.head_bias": -10, "augment.policy": "augreg-medium2", "augment.mixup": 0.5, "model.class_token": False,
        "model.representation_size": 0,
    },
    "plain-vit-s16": {
        "model.embed_dim": 384, "model.pos_embed": "sincos2d", "model.class_token": False, "augment.mixup": 0.2,
        "model.global_pool": "norm_then_avg", "model.representation_size": 384, "augment.policy": "augreg-light2",
        "loss": "cross_entropy", "optim.min_lr": 0, "augment.mix_per": "batch", "ema_decay": 0, "label_smoothing": 0,
    },
    "bit-hyperrule": {
        "augment.mixup": 0.1, "optim.step_at": [0.3, 0.6, 0.9], "optim.schedule": "steps", "augment.crop": "simple",
        "augment.crop_min_area": (480 / 512) ** 2, "preprocess.resize": "squash",
    },
    "bit-i1k": {"model.family": "resnet", "model.resnet.layers": [3, 4, 6, 3], "optim.momentum": 0.9},
    "vit-g": {
        "optim.schedule": "rsqrt", "optim.cooldown_steps": 50_000, "optim.timescale_steps": 10_000,
        "model.global_pool": "map", "model.embed_dim": 1408, "model.patch_size": 14,
    },
    "deit": {
        "ema_decay": 0.99996, "label_smoothing": 0.1, "optim.warmup_lr": 1e-6, "optim.min_lr": 1e-5,
        "optim.clip_norm": 0, "model.drop_path_rate": 0.1, "augment.policy": "rand-m9-mstd0.5-inc1",
        "augment.mixup": 0.8, "augment.cutmix": 1, "augment.erase": 0.25, "augment.repeats": 3, "augment.jitter": 0,
        "augment.convention": "torch", "preprocess.mean": [0.485, 0.456, 0.406], "preprocess.crop_pct": 0.875,
        "model.weight_init": "timm", "augment.crop_min_area": 0.08,
    },
    "deit-384": {"optim.min_lr": 5e-6},
    "deit3-b": {
        "loss": "bce", "target_threshold": 0, "label_smoothing": 0, "model.drop_path_rate": 0.2,
        "model.drop_path_over": "constant", "model.init_values": 1e-4, "augment.policy": "three", "augment.jitter": 0.3,
        "augment.mixup": 0.8, "augment.cutmix": 1, "augment.erase": 0, "augment.repeats": 3, "preprocess.crop_pct": 1,
        "optim.clip_norm": 1, "optim.warmup_lr": 1e-6,
    },
    "deit3-s": {"model.drop_path_rate": 0.05},
    "deit3-l": {"model.drop_path_rate": 0.45},
    "deit3-h": {"model.drop_path_rate": 0.6},
    "deit3-finetune": {
        "model.drop_path_rate": 0.2, "augment.policy": "rand-m9-mstd0.5-inc1", "augment.repeats": 1,
        "label_smoothing": 0.1, "loss": "cross_entropy", "augment.mixup": 0.8, "model.drop_path_over": "constant",
    },
    "deit3-finetune-384": {"model.drop_path_rate": 0.15},
    "deit3-21k-b": {
        "model.drop_path_rate": 0.1, "augment.mixup": 0, "augment.crop": "simple", "augment.crop_min_area": 1,
        "label_smoothing": 0.1, "loss": "cross_entropy", "augment.repeats": 1,
    },
    "deit3-21k-l": {"model.drop_path_rate": 0.3},
    "deit3-21k-h": {"model.drop_path_rate": 0.5},
    "deit3-21k-finetune": {"model.drop_path_rate": 0.15, "augment.crop": "simple"},
    "torchvision-vit": {"label_smoothing": 0.11, "augment.mixup": 0.2, "augment.repeats": 3, "optim.clip_norm": 1},
    "layer-decay": {
        "optim.layer_decay": 0.65, "model.drop_path_rate": 0.1, "augment.mixup": 0.8, "augment.erase": 0.25,
    },
}  # fmt: skip


def test_every_recipe_has_its_published_numbers_here() -> None:
    assert set(PUBLISHED) == set(RECIPES) and set(ALSO) <= set(RECIPES)
    assert all(found.name == name for name, found in RECIPES.items())


@pytest.mark.parametrize("name", RECIPES)
def test_at_the_published_data_and_batch_every_number_is_the_published_one(name: str) -> None:
    config, said = settled(name)
    optim = config.optim
    found = (
        optim.name, optim.lr, optim.weight_decay, config.batch_size, config.epochs, optim.warmup_steps,
        config.model.size[0],
    )  # fmt: skip
    assert found == PUBLISHED[name]
    flat = dict(flatten(merge({}, dict_of(config))))
    for option, value in ALSO.get(name, {}).items():
        assert flat[option] == value, option
    assert config.recipe == name and config.accumulate == 1 and config.max_time_s == 0
    assert not [line for line in said if "→" in line and not line.startswith("side")]
    assert f"--recipes {name}" in said[1]


def dict_of(config: Config) -> dict[str, Any]:
    from vitrine.config.text import to_dict

    return to_dict(config)


@pytest.mark.parametrize("name", RECIPES)
def test_what_a_recipe_leaves_out_is_the_default_and_not_a_choice_of_the_plan(name: str) -> None:
    config, _ = settled(name)
    stated = {option for option, _ in flatten(recipe(name).options)}
    stated |= {option for group in recipe(name).choices for c in group for option, _ in flatten(c.options or {})}
    stated |= recipe(name).by_data
    counted = {"optim.warmup_steps", "optim.cooldown_steps", "optim.timescale_steps"}
    default = dict(flatten(dict_of(Config())))
    for option, value in flatten(dict_of(config)):
        if option.startswith(("optim.", "augment.")) and option not in stated | counted:
            assert value == default[option], option
    assert {"label_smoothing", "ema_decay", "loss", "optim.lr", "optim.weight_decay", "augment.flip"} <= stated | {
        "optim.lr" if recipe(name).choices else ""
    }


@pytest.mark.parametrize("name", RECIPES)
def test_options_of_a_recipe_exist_and_it_says_where_it_is_from(name: str) -> None:
    found = recipe(name)
    from_dict(partial(Config), found.options)
    for group in found.choices:
        for case in group:
            from_dict(partial(Config), case.options or {})
            assert all(named(alias) for alias in case.models)
    assert found.source and found.title and found.deviations
    assert len(set(found.deviations)) == len(found.deviations)
    assert all(50 < expected.value < 100 and expected.source for expected in found.expects)
    assert not found.arch or named(found.arch)
    assert (found.stage == "fine-tune") == (not found.arch)


@pytest.mark.parametrize(
    ("name", "arch", "wanted"),
    [
        ("vit-paper-jft", "vit-l/16", {"optim.lr": 4e-4, "epochs": 14}),
        ("vit-paper-jft", "vit-l/32", {"optim.lr": 6e-4, "epochs": 7}),
        ("vit-paper-jft", "vit-h/14", {"optim.lr": 3e-4, "epochs": 14, "model.representation_size": 1280}),
        ("vit-paper-jft", "r50+vit-l/32", {"optim.lr": 2e-4}),
        ("vit-paper-jft", "bit-r101x1", {"optim.lr": 8e-4}),
        ("vit-paper-jft", "bit-r152x2", {"optim.lr": 6e-4, "model.representation_size": 0}),
        ("vit-paper-i21k", "vit-l/32", {"optim.lr": 1e-3, "optim.weight_decay": 0.03, "epochs": 90}),
    ],
)
def test_the_row_of_table_3_is_that_of_the_architecture(name: str, arch: str, wanted: dict[str, Any]) -> None:
    config, said = settled(name, {"arch": arch})
    flat = dict(flatten(dict_of(config)))
    assert {option: flat[option] for option in wanted} == wanted
    assert any(line.startswith("of the recipe:") and "Table 3" in line for line in said)


def test_a_model_without_a_row_has_the_first_one_and_it_is_said() -> None:
    config, said = settled("vit-paper-jft", {"arch": "vit-s/16"})
    assert config.optim.lr == 8e-4
    assert "the recipe has no case for this: taken is ViT-B of Table 3" in said


@pytest.mark.parametrize(
    ("name", "init", "wanted"),
    [
        ("finetune", "vit-h/14", 378),
        ("finetune-polyak", "vit-h/14", 518),
        ("finetune-polyak", "vit-l/16", 512),
        ("bit-hyperrule", "bit-r50x1", 480),
    ],
)
def test_the_side_is_a_multiple_of_the_patch(name: str, init: str, wanted: int) -> None:
    config, said = settled(name, {"model_of_init": init})
    assert config.model.img_size == wanted and config.preprocess.size == (wanted, wanted)
    assert any("nearest multiple of 14" in line for line in said) == (init == "vit-h/14")


@pytest.mark.parametrize(
    ("name", "pictures", "side", "wanted"),
    [
        # steps, warm-up, and what goes with them
        ("finetune", 3_312, 300, {"batch_size": 512, "steps": 500, "optim.warmup_steps": 100, "optim.lr": 0.01}),
        ("finetune", 49_000, 32, {"batch_size": 512, "steps": 10_000, "optim.warmup_steps": 500, "optim.lr": 0.01}),
        ("augreg-finetune", 1_020, 500, {"batch_size": 512, "steps": 500, "optim.warmup_steps": 100, "optim.lr": 0.03}),
        ("bit-hyperrule", 3_312, 300, {"optim.step_at": [0.4, 0.6, 0.8], "augment.mixup": 0, "steps": 500}),
        ("bit-hyperrule", 50_000, 32, {"model.img_size": 128, "augment.crop_min_area": 0.64, "augment.mixup": 0.1}),
    ],
)
def test_published_lengths_in_steps_follow_the_number_of_pictures(
    name: str, pictures: int, side: int, wanted: dict[str, Any]
) -> None:
    config, _ = settled(name, num_train=pictures, median_size=(side, side))
    flat = dict(flatten(dict_of(config)))
    if steps := wanted.pop("steps", None):
        a_pass = pictures // config.batch_size
        assert abs(config.epochs * a_pass - steps) <= a_pass / 2
    for option, value in wanted.items():
        assert flat[option] == (value if isinstance(value, list) else pytest.approx(value)), option


def test_on_fewer_pictures_each_change_is_said_with_both_numbers() -> None:
    config, said = settled("plain-vit-s16", num_train=4_096)
    assert config.batch_size == 256 and config.optim.lr == pytest.approx(5e-4) and config.epochs == 90
    total = 90 * 16
    assert config.optim.warmup_steps == round(10_000 * total / (90 * 1251))
    assert "batch: 1,024 → 256: enough steps in a pass for 4,096 pictures" in said
    assert "learning rate: 0.001 at batch 1,024 → 0.0005 at 256: with the root of the batch" in said
    assert "warm-up: 10,000 of 112,590 steps → 128 of 1,440: the same share of the run" in said
    assert any(line.startswith("length: 90 epochs of 16 steps, as published") for line in said)


def test_a_rate_in_proportion_takes_its_ends_with_it() -> None:
    config, said = settled("deit", num_train=8_192)
    assert config.batch_size == 512
    assert (config.optim.lr, config.optim.min_lr, config.optim.warmup_lr) == pytest.approx((5e-4, 5e-6, 5e-7))
    assert "learning rate: 0.001 at batch 1,024 → 0.0005 at 512: in proportion" in said


def test_the_warm_up_is_never_longer_than_published() -> None:
    config, _ = settled("deit", {"batch_size": 256})
    assert config.epochs * (1_281_167 // 256) == 1_501_200 and config.optim.warmup_steps == 6_255


def test_a_little_less_of_the_published_data_keeps_the_published_warm_up() -> None:
    config, _ = settled("plain-vit-s16", num_train=1_268_355)
    assert config.optim.warmup_steps == 10_000


def test_what_is_given_stands_above_the_recipe_and_is_said() -> None:
    given = {"optim": {"lr": 0.5}, "augment": {"mixup": 0.0}, "epochs": 3, "model": {"drop_path_rate": 0.3}}
    config, said = settled("deit", given)
    assert (config.optim.lr, config.augment.mixup, config.epochs, config.model.drop_path_rate) == (0.5, 0.0, 3, 0.3)
    assert "not as in the recipe, as asked: optim.lr, augment.mixup, model.drop_path_rate" in said
    assert config.augment.cutmix == 1.0


def test_a_batch_without_space_goes_through_in_parts() -> None:
    config, said = settled("deit", memory_bytes=16 << 30)
    assert config.batch_size == 1024 and config.optim.lr == 1e-3
    assert config.accumulate > 1 and any(line.startswith(f"accumulate: {config.accumulate}") for line in said)


def test_a_named_architecture_brings_its_side() -> None:
    assert settled("deit3-b")[0].model.img_size == 192
    assert settled("deit3-b", {"arch": "deit3_base_patch16_224"})[0].model.img_size == 224


def test_small_pictures_are_enlarged_and_it_is_said() -> None:
    config, said = settled("deit", median_size=(32, 32), photographs=False)
    assert config.model.img_size == 224
    assert any("pictures of 32 pixels are enlarged to 224" in line for line in said)


def test_small_pictures_keep_their_side_where_the_recipe_leaves_it_to_them_and_grey_ones_are_not_mirrored() -> None:
    mnist, said = settled("small-data", median_size=(28, 28), grey=True, photographs=False)
    assert (mnist.model.img_size, mnist.model.in_chans, mnist.augment.flip) == (28, 1, False)
    assert not any("enlarged" in line for line in said)
    assert settled("small-data", median_size=(64, 50))[0].model.img_size == 64
    assert settled("small-data", {"model": {"img_size": 32}}, median_size=(64, 64))[0].model.img_size == 32
    assert settled("small-data", median_size=(300, 200))[0].model.img_size == 32


def test_the_recipe_for_small_data_has_no_more_parameters_than_it_says() -> None:
    config, _ = settled("small-data", median_size=(32, 32), class_names=tuple("abcdefghij"))
    assert 6.2e6 < num_parameters(config.model) < 6.4e6


def test_a_teacher_must_be_named() -> None:
    with pytest.raises(BadConfig, match=r"distill\.kind = 'hard': needs distill\.teacher"):
        decide(reference("deit-distilled", {}), {"recipe": "deit-distilled"})


def test_grey_pictures_have_one_mean() -> None:
    config, _ = settled("deit", grey=True)
    assert config.preprocess.mean == pytest.approx((0.449,)) and config.model.in_chans == 1


def test_fine_tuning_keeps_mean_and_architecture_of_the_model_to_start_from() -> None:
    config, _ = settled("deit3-21k-finetune", {"model_of_init": "vit-l/16"})
    assert config.preprocess.mean == (0.5, 0.5, 0.5) and config.model.drop_path_rate == 0.4
    assert config.model.init_values is None


def test_the_time_limit_shortens_and_without_one_the_length_is_kept() -> None:
    facts = reference("deit", {})
    given = {"recipe": "deit", "max_time_s": 600.0}
    config, _ = decide(facts, given)
    config, epochs, _ = with_length(config, facts, given, 0.04)
    assert config.epochs == 300 and epochs == int(0.9 * 600 / (1251 * 0.04)) and config.max_time_s == 600


def test_what_does_not_go_together_is_refused() -> None:
    with pytest.raises(NotFound, match=r"'diet': there is no such recipe\. Did you mean 'deit'"):
        recipe("diet")
    with pytest.raises(UsageError, match="--recipe finetune: it is for fine-tuning; give the model"):
        settled("finetune", init=None)


# Each of them trains

TOY: dict[str, Any] = {
    "model": {"img_size": 32, "patch_size": 16, "embed_dim": 16, "depth": 1, "num_heads": 2, "mlp_ratio": 2.0},
    "batch_size": 9, "epochs": 1, "device": "cpu", "threads": 1,
}  # fmt: skip
RESNET: dict[str, Any] = {"img_size": 32, "resnet": {"layers": (1,)}}


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of pictures of three classes, and a model of other classes to start from."""
    folder = tmp_path_factory.mktemp("recipes")
    photos(folder / "photos", {"a": 6, "b": 6, "c": 6}, size=(60, 50))
    save(bundle(class_names=("a", "b", "c"), num_classes=3), folder / "teacher.safetensors")
    save(bundle(class_names=("x", "y"), num_classes=2, img_size=32, patch_size=16), folder / "init.safetensors")
    return folder


@pytest.mark.parametrize("name", RECIPES)
def test_it_trains(name: str, desk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "LONGEST_S", 0.0)
    found, options = recipe(name), dict(TOY)
    if found.stage == "fine-tune":
        options |= {"init": str(desk / "init.safetensors"), "model": {"img_size": 48}}
    elif found.arch.startswith("bit"):
        options["model"] = RESNET
    if name in NEEDED:
        options["distill"] = {"teacher": str(desk / "teacher.safetensors")}
    outcome = told_to_nobody(str(desk / "photos"), tmp_path / "r", recipe=name, **options)
    assert outcome.bundle.run["recipe"] == name
    record = json.loads((tmp_path / "r/metrics.jsonl").read_text().splitlines()[-1])
    assert record["step"] == 2 and record["train_loss"] > 0 and record["grad_norm"] > 0
    assert read_toml(tmp_path / "r/config.toml")["optim"]["name"] == PUBLISHED[name][0]


def test_a_recipe_from_a_file_yields_to_it_and_it_to_the_words(
    desk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pace, "LONGEST_S", 0.0)
    file = tmp_path / "own.toml"
    file.write_text('recipe = "finetune"\nlabel_smoothing = 0.2\n[optim]\nmomentum = 0.5\nclip_norm = 3.0\n')
    words = ["--config", str(file), "--init", str(desk / "init.safetensors"), "--optim.clip-norm", "2", "--epochs", "1"]
    words += ["--model.img-size", "32", "--device", "cpu", "--threads", "1", "--batch-size", "6", "-q"]
    assert main(["train", str(desk / "photos"), "--out", str(tmp_path / "r"), *words]) == 0
    config = open_bundle(tmp_path / "r").run
    optim = config["optim"]
    assert (config["recipe"], config["label_smoothing"], optim["momentum"], optim["clip_norm"]) == (
        "finetune", 0.2, 0.5, 2.0
    )  # fmt: skip
    assert optim["lr"] == pytest.approx(0.01 * 6 / 512, rel=1e-2)


def test_an_unknown_recipe_is_told_at_once(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["train", "nowhere", "--out", str(tmp_path / "r"), "--recipe", "deti"]) == 66
    assert "'deti': there is no such recipe. Did you mean 'deit'?" in capsys.readouterr().err


# What is said of them


def test_info_lists_all_and_shows_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "--recipes"]) == 0
    said = capsys.readouterr().out
    for found in RECIPES.values():
        assert re.search(rf"^ +{found.name} +{found.stage} +{re.escape(found.title)} ", said, re.MULTILINE), found.name
    assert main(["info", "--recipes", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)["recipes"]
    assert [one["name"] for one in listed] == list(RECIPES)


@pytest.mark.parametrize("name", RECIPES)
def test_the_page_of_a_recipe_has_all_that_is_known(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = recipe(name)
    assert main(["info", "--recipes", name]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert found.source in said and f"batch {found.batch_size:,}" in said
    for option, _ in flatten(found.options):
        assert f"--{option.replace('_', '-')} " in said, option
    for sentence in (*found.deviations, *(case.name for group in found.choices for case in group)):
        assert " ".join(sentence.split()) in said
    for expected in found.expects:
        assert f"{expected.what} {expected.value:g} " in said
    assert main(["info", name, "--recipes", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["schema_version"] == 1 and told["deviations"] == list(found.deviations)
    assert told["length"]["steps"] == found.published(found.length)[0]


def test_the_table_of_the_page_is_that_of_the_recipes() -> None:
    page = (ROOT / "docs/recipes.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `[a-z].*\|$", page, re.MULTILINE)
    assert rows == [table_row(name) for name in RECIPES]


def table_row(name: str) -> str:
    """The row of docs/recipes.md: print all by `python -m tests.config.test_recipes`."""
    name, stage, title, figure = row(recipe(name))
    return f"| `{name}` | {stage} | {title} | {figure} | {len(recipe(name).deviations)} | {recipe(name).source} |"


if __name__ == "__main__":
    print("\n".join(map(table_row, RECIPES)))
