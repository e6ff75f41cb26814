"""Every option: its help, its default, and what it refuses."""

from __future__ import annotations

import math
from dataclasses import FrozenInstanceError, fields, is_dataclass
from typing import Any, get_type_hints

import jaxtyping
import pytest

from vitrine.config.architecture import ModelConfig
from vitrine.config.options import AugmentConfig, Config, DataConfig, OptimConfig, PreprocessConfig
from vitrine.errors import BadConfig

KINDS = [DataConfig, ModelConfig, PreprocessConfig, AugmentConfig, OptimConfig, Config]

REFUSED: list[tuple[type, str, Any, str]] = [
    *[(ModelConfig, f"model.{name}", 0, "at least 1") for name in ("patch_size", "in_chans", "embed_dim", "depth")],
    (ModelConfig, "model.num_heads", 0, "at least 1"),
    (ModelConfig, "model.num_heads", 7, "must divide embed_dim = 768, or head_dim"),
    (ModelConfig, "model.head_dim", 0, "at least 1"),
    (ModelConfig, "model.num_classes", -1, "0 or more"),
    (ModelConfig, "model.representation_size", -1, "0 or more"),
    (ModelConfig, "model.drop_rate", 1.0, "in [0, 1)"),
    (ModelConfig, "model.drop_path_rate", -0.1, "in [0, 1)"),
    (ModelConfig, "model.drop_path_rate", math.nan, "in [0, 1)"),
    (ModelConfig, "model.mlp_ratio", 0.0, "above 0"),
    (ModelConfig, "model.norm_eps", 0.0, "above 0"),
    (ModelConfig, "model.global_pool", "avg", "one of token, norm_then_avg, avg_then_norm"),
    (ModelConfig, "model.act_layer", "gelu_tan", "Did you mean 'gelu_tanh'"),
    (ModelConfig, "model.pos_embed", "lern", "Did you mean 'learn'"),
    (ModelConfig, "model.pos_interpolation", "nearest", "one of bicubic, bilinear"),
    (ModelConfig, "model.representation_act", "relu", "one of tanh, gelu"),
    (ModelConfig, "model.weight_init", "flax", "one of jax, timm"),
    (ModelConfig, "model.img_size", 225, "multiple of patch_size = 16"),
    (ModelConfig, "model.img_size", 0, "multiple of patch_size = 16"),
    (ModelConfig, "model.img_size", (32, 40), "multiple of patch_size = 16"),
    (ModelConfig, "model.img_size", 16_000, "at most 8,192"),
    (ModelConfig, "model.norm_eps", math.inf, "a finite number"),
    (ModelConfig, "model.pos_offset", math.inf, "a finite number"),
    *[(ModelConfig, f"model.{name}", 10**26, "at most 1,000,000") for name in ("head_dim", "representation_size")],
    *[(ModelConfig, f"model.{name}", 10**26, "at most 1,000,000") for name in ("num_classes", "reg_tokens")],
    (PreprocessConfig, "preprocess.size", (0, 4), "at least 1 x 1"),
    (PreprocessConfig, "preprocess.size", (8_193, 4), "at most 8,192 x 8,192"),
    (PreprocessConfig, "preprocess.mean", (0.5, 0.5, math.inf), "finite numbers"),
    (PreprocessConfig, "preprocess.std", (0.5, 0.5, math.nan), "finite numbers"),
    (PreprocessConfig, "preprocess.crop_pct", 0.0, "in (0, 1]"),
    (PreprocessConfig, "preprocess.crop_pct", 1.1, "in (0, 1]"),
    (PreprocessConfig, "preprocess.mean", (0.5, 0.5), "1 value (grey) or 3 (RGB)"),
    (PreprocessConfig, "preprocess.std", (0.5,), "as long as mean"),
    (PreprocessConfig, "preprocess.std", (0.5, 0.0, 0.5), "above 0"),
    (PreprocessConfig, "preprocess.interpolation", "cubic", "Did you mean 'bicubic'"),
    (PreprocessConfig, "preprocess.resize", "short", "Did you mean 'shorter'"),
    (AugmentConfig, "augment.crop_min_area", 0.0, "in (0, 1]"),
    (AugmentConfig, "augment.crop_max_ratio", 0.9, "at least 1"),
    *[(AugmentConfig, f"augment.{name}", -1.0, "0 or more") for name in ("shift", "rotate_deg", "jitter")],
    *[(AugmentConfig, f"augment.{name}", -1.0, "0 or more") for name in ("mixup", "cutmix")],
    (AugmentConfig, "augment.zoom", 1.0, "in [0, 1)"),
    (OptimConfig, "optim.name", "adam", "Did you mean 'adamw'"),
    (OptimConfig, "optim.schedule", "cosin", "Did you mean 'cosine'"),
    (OptimConfig, "optim.lr", 0.0, "above 0"),
    (OptimConfig, "optim.lr", math.nan, "above 0"),
    *[(OptimConfig, f"optim.{name}", -1, "0 or more") for name in ("weight_decay", "clip_norm")],
    *[(OptimConfig, f"optim.{name}", -1, "0 or more") for name in ("warmup_steps", "min_lr")],
    *[(OptimConfig, f"optim.{name}", 1.0, "in [0, 1)") for name in ("momentum", "beta1", "beta2")],
    *[(DataConfig, f"data.{name}", 1.0, "in [0, 1)") for name in ("val_share", "test_share", "max_bad_share")],
    (DataConfig, "data.val_share", 0.8, "leave something to train on beside data.test_share"),
    *[(DataConfig, f"data.{name}", 0, "at least 1") for name in ("max_pixels", "max_bytes")],
    *[(Config, name, 0, "at least 1") for name in ("epochs", "batch_size")],
    *[(OptimConfig, "optim.layer_decay", value, "in (0, 1]; 1 for none") for value in (0.0, 1.1)],
    (OptimConfig, "optim.timescale_steps", 0, "at least 1"),
    *[(OptimConfig, "optim.step_at", shares, "rising, in (0, 1)") for shares in ((0.5, 0.5), (0.0,), (0.5, 1.0))],
    *[(OptimConfig, f"optim.{name}", -1, "0 or more") for name in ("cooldown_steps", "eps")],
    (Config, "accumulate", 0, "at least 1"),
    (Config, "accumulate", 129, "batch_size at most"),
    (Config, "loss", "bec", "Did you mean 'bce'"),
    (Config, "class_weights", "balance", "Did you mean 'balanced'"),
    (Config, "target_threshold", 0.2, "needs loss = bce or sigmoid"),
    *[(Config, name, 1.0, "in [0, 1)") for name in ("label_smoothing", "ema_decay")],
    *[(Config, name, -1, "0 or more") for name in ("num_workers", "max_time_s", "seed")],
    (Config, "precision", "fp16", "Did you mean 'bf16'"),
    (Config, "device", "gpu", "one of auto, cpu, cuda, mps"),
]


@pytest.mark.parametrize(
    ("kind", "name", "value", "remedy"), REFUSED, ids=lambda part: getattr(part, "__name__", str(part))
)
def test_a_refusal_names_option_value_and_remedy(
    kind: type, name: str, value: object, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The check of types that runs in tests alone would refuse a wrong choice first; users have it not.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(BadConfig) as caught:
        kind(**{name.rpartition(".")[2]: value})
    message = str(caught.value)
    assert message.startswith(f"{name} = {value!r}: must ")
    assert remedy in message
    assert "\n" not in message


@pytest.mark.parametrize(("threshold", "smoothing", "sound"), [(0.0, 0.0, True), (0.0, 0.1, False), (1.0, 0.0, False)])
def test_a_threshold_above_which_everything_or_nothing_lies_is_refused(
    threshold: float, smoothing: float, sound: bool
) -> None:
    given = {"loss": "bce", "target_threshold": threshold, "label_smoothing": smoothing}
    if sound:
        assert Config(**given).target_threshold == threshold  # type: ignore[arg-type]
        return
    with pytest.raises(BadConfig, match=f"target_threshold = {threshold}: must be from label_smoothing = {smoothing} "):
        Config(**given)  # type: ignore[arg-type]


def test_no_class_token_needs_a_mean() -> None:
    with pytest.raises(BadConfig, match=r"model\.global_pool = 'token': needs class_token; choose norm_then_avg"):
        ModelConfig(class_token=False)
    assert not ModelConfig(class_token=False, global_pool="avg_then_norm").class_token


def test_sincos_positions_need_four_parts() -> None:
    with pytest.raises(BadConfig, match=r"model\.embed_dim = 6: must be a multiple of 4 for sincos2d"):
        ModelConfig(embed_dim=6, num_heads=1, pos_embed="sincos2d")


@pytest.mark.parametrize("kind", KINDS)
def test_every_option_has_help_and_a_usable_default(kind: type) -> None:
    kind()
    hints = get_type_hints(kind)
    for f in fields(kind):
        if not is_dataclass(hints[f.name]):
            assert len(f.metadata["help"]) > 10, f.name
            assert not f.metadata["help"].endswith("."), f.name


@pytest.mark.parametrize("kind", KINDS)
def test_a_unit_in_the_name_is_the_unit_of_the_option(kind: type) -> None:
    units = {"_s": "seconds", "_deg": "degrees", "_steps": "steps", "_pixels": "pixels", "_bytes": "bytes"}
    for f in fields(kind):
        for end, unit in units.items():
            if f.name.endswith(end):
                assert f.metadata["unit"] == unit, f.name


@pytest.mark.parametrize("kind", KINDS)
def test_options_are_frozen_and_named(kind: type) -> None:
    config = kind()
    name = fields(kind)[0].name
    with pytest.raises(FrozenInstanceError):
        setattr(config, name, getattr(config, name))
    with pytest.raises(TypeError):
        kind(getattr(config, name))


def test_what_follows_from_the_options() -> None:
    config = ModelConfig(img_size=(32, 64), patch_size=8, embed_dim=48, num_heads=3, mlp_ratio=2.5)
    assert (config.size, config.grid, config.width_of_head, config.mlp_dim) == ((32, 64), (4, 8), 16, 120)
    assert ModelConfig(head_dim=10).width_of_head == 10
    assert ModelConfig().size == (224, 224)
    assert PreprocessConfig().channels == 3
    assert PreprocessConfig(mean=(0.5,), std=(0.5,)).channels == 1
