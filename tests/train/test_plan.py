from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.made import bundle
from vitrine.config.models import named
from vitrine.config.options import Config, PreprocessConfig
from vitrine.errors import BadConfig, NotFound, Unavailable, UsageError
from vitrine.train.length import CPU_LIMIT_S, GPU_LIMIT_S, wanted_epochs, with_length
from vitrine.train.plan import Facts, advice, decide, recipe_for


def facts(**changes: Any) -> Facts:
    """Ten thousand colour photographs of three classes on a CPU of eight cores."""
    usual: dict[str, Any] = {
        "num_train": 10_000, "class_names": ("a", "b", "c"), "median_size": (640, 480), "photographs": True,
        "grey": False, "on_cpu": True, "cores": 8, "memory_bytes": 8 << 30,
    }  # fmt: skip
    return Facts(**{**usual, **changes})


TINY = {"median_size": (8, 8), "photographs": False, "grey": True}
THUMBS = {"median_size": (28, 28), "photographs": False}


@pytest.mark.parametrize(
    ("changes", "width", "patch", "side"),
    [
        (TINY, 64, 2, 8),
        ({**TINY, "median_size": (9, 15)}, 64, 2, 16),
        (THUMBS, 96, 4, 28),
        ({**THUMBS, "grey": True}, 96, 7, 28),
        ({**THUMBS, "on_cpu": False}, 192, 4, 28),
        ({**THUMBS, "median_size": (30, 47)}, 96, 4, 48),
        ({}, 192, 8, 64),
        ({"on_cpu": False}, 192, 8, 64),
        ({"on_cpu": False, "num_train": 20_000}, 384, 16, 224),
    ],
)
def test_the_model_follows_the_pictures_and_the_machine(
    changes: dict[str, Any], width: int, patch: int, side: int
) -> None:
    config, reasons = decide(facts(**changes), {})
    assert (config.model.embed_dim, config.model.patch_size, config.model.img_size) == (width, patch, side)
    assert config.model.num_classes == 3
    assert config.model.in_chans == config.preprocess.channels == (1 if changes.get("grey") else 3)
    assert config.preprocess.size == config.model.size
    assert f"width {width}" in reasons[0] and f"patch {patch}" in reasons[0]


def test_small_pictures_are_squashed_and_photographs_cropped() -> None:
    assert decide(facts(**TINY), {})[0].preprocess.resize == "squash"
    assert decide(facts(), {})[0].preprocess == PreprocessConfig(size=(64, 64))


def test_augmentation() -> None:
    photographs = decide(facts(), {})[0].augment
    assert photographs.flip and photographs.crop_min_area == 0.25 and photographs.jitter > 0
    tuned = decide(facts(init=bundle()), {})[0].augment
    assert tuned.flip and tuned.crop_min_area == 0.35 and tuned.jitter == 0
    assert photographs.mixup == photographs.cutmix == tuned.mixup == tuned.cutmix == 0
    assert (
        decide(facts(**{**THUMBS, "num_train": 50_000}), {})[0].augment.rotate_deg
        == 0
        < decide(facts(**TINY), {})[0].augment.rotate_deg
    )
    for changes in (TINY, {**THUMBS, "grey": True}, {"grey": True}):
        signs, reasons = decide(facts(**changes), {})
        assert not signs.augment.flip and signs.augment.crop_min_area == 1 and signs.augment.shift > 0
        assert any("no mirror images" in reason for reason in reasons)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"num_train": 10}, 32),
        ({"num_train": 1077, **TINY}, 64),
        ({"num_train": 60_000, **THUMBS}, 128),
        ({"num_train": 60_000, "on_cpu": False, **THUMBS, "memory_bytes": 80 << 30}, 1024),
        ({"num_train": 60_000, "on_cpu": False, "memory_bytes": 80 << 30}, 128),
        ({"num_train": 60_000, "memory_bytes": 1 << 26}, 8),  # blocks are computed again
        ({"num_train": 60_000, "memory_bytes": 1 << 20}, 1),
    ],
)
def test_the_batch_follows_the_pictures_and_the_memory(changes: dict[str, Any], expected: int) -> None:
    assert decide(facts(**changes), {})[0].batch_size == expected


def optim_of(given: dict[str, Any], **changes: Any) -> tuple[float, float]:
    """Learning rate and weight decay that are chosen."""
    chosen = decide(facts(**changes), given)[0].optim
    return chosen.lr, chosen.weight_decay


def test_the_learning_rate_follows_the_batch_and_the_width_and_is_a_fifth_for_fine_tuning() -> None:
    assert optim_of({"batch_size": 32}) == (1e-3, 0.5)
    assert optim_of({"batch_size": 64}) == (1.4e-3, 0.5)
    assert optim_of({"batch_size": 64, "model": {"embed_dim": 384}}) == (7.1e-4, 0.5)
    assert optim_of({"batch_size": 64, "model": {"embed_dim": 48}})[0] == 3e-3
    assert optim_of({"batch_size": 64}, init=bundle(embed_dim=64)) == (6e-4, 0.05)
    assert optim_of({"batch_size": 64}, num_train=100_000) == (1.4e-3, 0.05)


def test_sgd_has_a_learning_rate_and_a_decay_of_its_own() -> None:
    sgd = {"optim": {"name": "sgd"}}
    assert optim_of({**sgd, "batch_size": 256}) == (0.1, 1e-4)
    assert optim_of({**sgd, "batch_size": 64}) == (0.025, 1e-4)
    assert optim_of({**sgd, "batch_size": 512}, init=bundle()) == (0.03, 0.0)
    assert optim_of({"optim": {"name": "sgd", "lr": 0.5}, "batch_size": 256}) == (0.5, 1e-4)


def test_lamb_has_a_rate_of_its_own_and_a_head_that_it_can_move() -> None:
    lamb = {"optim": {"name": "lamb"}}
    assert optim_of(lamb) == optim_of({**lamb, "batch_size": 64}) == (1e-2, 0.05)
    assert optim_of(lamb, init=bundle()) == (1e-3, 0.05)
    config, reasons = decide(facts(), lamb)
    assert config.model.weight_init == "timm" and any("LAMB moves a matrix by a share" in why for why in reasons)
    assert decide(facts(), {**lamb, "model": {"weight_init": "jax"}})[0].model.weight_init == "jax"
    assert decide(facts(), {})[0].model.weight_init == "jax"


def test_a_batch_in_parts_may_be_as_many_times_as_large() -> None:
    tight = {"memory_bytes": 2**24, "num_train": 100_000}
    one, four = (decide(facts(**tight), {"accumulate": parts})[0].batch_size for parts in (1, 4))
    assert four == 4 * one < 128
    assert decide(facts(memory_bytes=1), {"accumulate": 4})[0].batch_size == 4


def test_the_reasons_show_what_the_user_gave_as_asked() -> None:
    given = {"batch_size": 7, "optim": {"name": "sgd", "lr": 0.25, "weight_decay": 0.125}, "model": {"depth": 2}}
    reasons = " | ".join(decide(facts(), given)[1])
    for words in (
        "depth = 2 as asked", "training: batch 7 as asked", "; sgd, ", "learning rate 0.25 as asked",
        "weight decay 0.125 as asked",
    ):  # fmt: skip
        assert words in reasons
    config, reasons_alone = decide(facts(), {})
    chosen = " | ".join(reasons_alone)
    assert "as asked" not in chosen
    assert f"learning rate {config.optim.lr:g}" in chosen and f"batch {config.batch_size}, for 10,000" in chosen
    partly = " | ".join(decide(facts(), {"optim": {"lr": 0.25}})[1])
    assert "learning rate 0.25 as asked, weight decay 0.5, from scratch" in partly


@pytest.mark.parametrize("size", [[60, 64], [64, 4]])
def test_a_size_of_pictures_that_the_model_cannot_take_is_refused(size: list[int]) -> None:
    with pytest.raises(UsageError) as caught:
        decide(facts(), {"preprocess": {"size": size}})
    assert f"preprocess.size = {tuple(size)}: must be a multiple of model.patch_size = 8" in str(caught.value)
    assert decide(facts(), {"preprocess": {"size": [64, 80]}})[0].preprocess.size == (64, 80)


def test_what_the_user_gives_always_wins() -> None:
    given: dict[str, Any] = {
        "model": {"depth": 2, "embed_dim": 32, "num_heads": 4, "drop_rate": 0.3},
        "augment": {"flip": False, "mixup": 0.7},
        "optim": {"lr": 0.5, "weight_decay": 0.0},
        "preprocess": {"interpolation": "box"},
        "batch_size": 7,
        "num_workers": 3,
        "seed": 9,
    }
    config, reasons = decide(facts(), given)
    for name, value in given.items():
        found = getattr(config, name)
        for inner, wanted in value.items() if isinstance(value, dict) else []:
            assert getattr(found, inner) == wanted, (name, inner)
        assert isinstance(value, dict) or found == value
    assert config.augment.crop_min_area == decide(facts(), {})[0].augment.crop_min_area
    assert "width 32" in reasons[0] and "depth 2" in reasons[0] and "as asked" in reasons[0]


@pytest.mark.parametrize("preprocess", [{}, {"interpolation": "box"}])
@pytest.mark.parametrize("side", [128, (32, 96)])
def test_preprocessing_follows_another_picture_size(side: Any, preprocess: dict[str, Any]) -> None:
    config, _ = decide(facts(), {"model": {"img_size": side}, "preprocess": preprocess})
    assert config.preprocess.size == config.model.size == ((128, 128) if side == 128 else side)


@pytest.mark.parametrize("channels", [1, 3])
def test_preprocessing_follows_other_channels(channels: int) -> None:
    config, _ = decide(facts(), {"model": {"in_chans": channels}, "preprocess": {"crop_pct": 1.0}})
    assert config.preprocess.channels == config.model.in_chans == channels


@pytest.mark.parametrize("given", [{"mean": [0.5], "std": [0.5]}, {"mean": [0.1, 0.2], "std": [1.0, 1.0]}])
def test_means_that_do_not_fit_the_channels_are_refused_before_training(given: dict[str, Any]) -> None:
    with pytest.raises((UsageError, BadConfig), match=r"preprocess\.mean"):
        decide(facts(), {"preprocess": given})


@pytest.mark.parametrize("channels", [2, 4])
def test_other_channels_than_one_or_three_are_refused(channels: int) -> None:
    with pytest.raises(UsageError, match=rf"--model.in-chans {channels}: pictures are read as grey \(1\) or RGB \(3\)"):
        decide(facts(), {"model": {"in_chans": channels}})


def test_another_number_of_classes_than_the_data_has_is_refused() -> None:
    with pytest.raises(UsageError, match=r"--model.num-classes 5: the data has 3 classes"):
        decide(facts(), {"model": {"num_classes": 5}})


def test_a_named_architecture() -> None:
    config, reasons = decide(facts(), {"arch": "vit-s/32"})
    assert config.model == named("vit_small_patch32_224", num_classes=3)
    assert config.preprocess.size == (224, 224) and "vit-s/32" in reasons[0]
    with pytest.raises(NotFound, match="vit_smal"):
        decide(facts(), {"arch": "vit_smal_patch32_224"})


def test_a_model_to_start_from_keeps_its_architecture_and_preprocessing() -> None:
    old = bundle()
    old = replace(old, preprocess=replace(old.preprocess, mean=(0.1, 0.2, 0.3), interpolation="lanczos"))
    config, _ = decide(facts(init=old), {})
    assert config.model == old.model and config.preprocess == old.preprocess
    other, _ = decide(facts(init=old, class_names=("x", "y")), {"model": {"img_size": 32, "in_chans": 1}})
    assert other.model == replace(old.model, img_size=32, in_chans=1, num_classes=2)
    assert other.preprocess.size == (32, 32) and other.preprocess.mean == pytest.approx((0.2,))
    assert other.preprocess.interpolation == "lanczos"


def test_a_named_architecture_must_be_that_of_the_model_to_start_from() -> None:
    old = bundle(**{name: getattr(named("vit-micro/2"), name) for name in ("embed_dim", "depth", "num_heads")})
    old = replace(old, model=named("vit-micro/2", num_classes=3))
    assert decide(facts(init=old), {"arch": "vit-micro/2"})[0].model == old.model
    with pytest.raises(BadConfig, match=r"embed_dim = 384 \(it has 64\)"):
        decide(facts(init=old), {"arch": "vit-s/16"})


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"modell": {}}, "modell: there is no such option. Did you mean 'model'"),
        ({"model": {"dept": 3}}, "model.dept: there is no such option. Did you mean 'depth'"),
        ({"batch_size": -1}, "batch_size = -1: must be at least 1"),
        ({"model": {"patch_size": 3}}, "model.img_size = 64: must be a multiple of patch_size = 3"),
    ],
)
def test_what_cannot_hold_is_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(BadConfig) as caught:
        decide(facts(), given)
    assert said in str(caught.value)


def length(step_s: float, given: dict[str, Any], **changes: Any) -> tuple[Any, int, list[str]]:
    known = facts(**changes)
    config, _ = decide(known, {"batch_size": 100, **given})
    return with_length(config, known, given, step_s)


def test_epochs_given_are_run_without_a_limit() -> None:
    config, epochs, reasons = length(100.0, {"epochs": 7})
    assert (config.epochs, epochs, config.max_time_s) == (7, 7, 0.0)
    assert reasons[0].startswith("length: 7 epochs of 100 steps, as asked")


@pytest.mark.parametrize(("on_cpu", "limit"), [(True, CPU_LIMIT_S), (False, GPU_LIMIT_S)])
def test_without_epochs_there_is_a_limit(on_cpu: bool, limit: float) -> None:
    config, epochs, _ = length(0.001, {}, on_cpu=on_cpu)
    assert config.max_time_s == limit
    assert epochs == config.epochs == wanted_epochs(facts()) == 300


@pytest.mark.parametrize("given", [{}, {"epochs": 500}])
def test_a_time_limit_shortens_the_run(given: dict[str, Any]) -> None:
    config, epochs, reasons = length(0.1, {**given, "max_time_s": 200.0})
    assert epochs == 18  # nine tenths of 200 seconds at 10 seconds an epoch
    assert config.epochs == given.get("epochs", 300) and config.max_time_s == 200.0
    assert "what 200 seconds allow" in reasons[0]
    assert length(1000.0, {"max_time_s": 1.0})[1] == 1


def test_warm_up_and_averaging_follow_the_length() -> None:
    config, _, _ = length(0.001, {"epochs": 10})
    assert config.optim.warmup_steps == 50 and config.ema_decay == pytest.approx(0.98)
    config, _, _ = length(0.001, {"epochs": 10, "ema_decay": 0.0, "optim": {"warmup_steps": 0}})
    assert config.optim.warmup_steps == 0 and config.ema_decay == 0.0


@pytest.mark.parametrize(("num", "scratch", "tuned"), [(100, 300, 60), (20_000, 150, 5), (10**6, 60, 5)])
def test_epochs_worth_running(num: int, scratch: int, tuned: int) -> None:
    assert wanted_epochs(facts(num_train=num)) == scratch
    assert wanted_epochs(facts(num_train=num, init=bundle())) == tuned


def test_advice_is_given_for_few_photographs_from_scratch_alone() -> None:
    said = advice(Config(), True, 10_000)
    assert "10,000 photographs are few" in said[0] and "--init" in said[0]
    assert not advice(Config(), True, 20_000)
    assert not advice(Config(), False, 10_000)
    assert not advice(Config(init="runs/x"), True, 10_000)


@pytest.mark.parametrize("on_cpu", [True, False])
def test_a_step_is_compiled_where_the_run_outlasts_it(on_cpu: bool) -> None:
    for given, step_s, compiler, expected in [
        ({"epochs": 300}, 1.0, True, "on"),
        ({"epochs": 300}, 0.001, True, "off"),
        ({"epochs": 300}, 1.0, False, "off"),
        ({"epochs": 300, "compile": "off"}, 1.0, True, "off"),
        ({"epochs": 300, "compile": "on"}, 0.001, True, "on"),
    ]:
        config, _, reasons = length(step_s, given, compiler=compiler, on_cpu=on_cpu)
        assert config.compile == expected, given
        said = any(reason.startswith("torch.compile: on") for reason in reasons)
        assert said == (expected == "on" and "compile" not in given)


def test_compiling_without_a_compiler_is_refused() -> None:
    with pytest.raises(Unavailable, match=r"--compile on: no C\+\+ compiler was found"):
        decide(facts(compiler=False), {"compile": "on"})


@pytest.mark.parametrize(
    ("changes", "given", "name"),
    [
        ({**THUMBS, "num_train": 50_000}, {}, "muon"),
        ({**THUMBS, "num_train": 50_000}, {"optim": {"name": "adamw"}}, "adamw"),
        ({**THUMBS, "num_train": 50_000, "on_cpu": False}, {}, "adamw"),
        ({**THUMBS, "num_train": 50_000}, {"model": {"family": "resnet", "img_size": 32}}, "adamw"),
        ({**THUMBS, "grey": True}, {}, "adamw"),
        ({**THUMBS, "num_train": 4_999}, {}, "adamw"),
        (THUMBS, {}, "muon"),
        ({"num_train": 50_000}, {}, "adamw"),
        ({**THUMBS, "num_train": 50_000, "init": bundle(in_chans=3)}, {}, "adamw"),
    ],
)
def test_many_small_pictures_from_scratch_on_a_cpu_are_learnt_with_muon(
    changes: dict[str, Any], given: dict[str, Any], name: str
) -> None:
    config, reasons = decide(facts(**changes), given)
    assert config.optim.name == name
    assert any(f"; {name}, learning rate" in reason for reason in reasons)


@pytest.mark.parametrize(
    ("changes", "given", "name"),
    [
        ({"on_cpu": False}, {}, "small-data"),
        ({"on_cpu": False}, {"max_time_s": 60.0, "seed": 3}, "small-data"),
        ({"on_cpu": False}, {"recipe": "deit"}, "deit"),
        ({"on_cpu": False}, {"optim": {"lr": 1e-3}}, ""),
        ({"on_cpu": False}, {"arch": "vit-ti/16"}, ""),
        ({"on_cpu": False, "num_train": 4_999}, {}, ""),
        ({"on_cpu": False, "init": bundle()}, {}, ""),
        ({"on_cpu": False, "median_size": (8, 8)}, {}, ""),
        ({"on_cpu": False, "photographs": True}, {}, ""),
        ({"on_cpu": False, "class_names": ()}, {}, ""),
        ({}, {}, ""),
        ({}, {"recipe": "deit"}, "deit"),
    ],
)
def test_the_recipe_for_small_data_is_taken_where_it_can_be_followed(
    changes: dict[str, Any], given: dict[str, Any], name: str
) -> None:
    assert recipe_for(facts(**{**THUMBS, **changes}), given) == name


def test_a_run_is_told_in_three_lines() -> None:
    config, reasons = decide(facts(**THUMBS), {})
    _, _, more = with_length(config, facts(**THUMBS), {}, 0.1)
    assert [line.partition(":")[0] for line in [*reasons, *more]] == ["model", "training", "length"]


def test_photographs_shrunk_to_thumbnails_are_learnt_as_small_pictures() -> None:
    asked = {"model": {"img_size": 32}}
    shrunk, small = decide(facts(), asked)[0], decide(facts(**{**THUMBS, "median_size": (32, 32)}), asked)[0]
    assert (shrunk.model, shrunk.optim, shrunk.augment) == (small.model, small.optim, small.augment)
    assert shrunk.model.patch_size == 4 and shrunk.optim.name == "muon"
    assert (shrunk.preprocess.resize, shrunk.preprocess.crop_pct) == (
        "shorter",
        1.0,
    )  # cropped all the same
    assert decide(facts(), {"model": {"img_size": [32, 64]}})[0].optim.name == "adamw"
    assert decide(facts(init=bundle(in_chans=3)), asked)[0].optim.name == "adamw"


def test_small_pictures_in_colour_are_mirrored_and_shifted() -> None:
    augment = decide(facts(**THUMBS), {})[0].augment
    assert augment.flip and augment.shift == 0.1 and not augment.rotate_deg
    assert not decide(facts(**THUMBS, grey=True), {})[0].augment.flip
