"""Options as dicts, TOML and JSON, and the strictness of reading them back."""

from __future__ import annotations

import json
import os
import re
import tomllib
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import tomli_w
from hypothesis import given as for_all
from hypothesis import settings
from hypothesis import strategies as st

from vitrine.config import architecture as a
from vitrine.config import options as o
from vitrine.config.text import flatten, from_dict, given, merge, partial, read_toml, to_dict, write_toml
from vitrine.errors import BadConfig, NotFound

KINDS = [o.DataConfig, a.ResNetConfig, a.ModelConfig, o.PreprocessConfig, o.AugmentConfig, o.OptimConfig, o.Config]


# Made here: inside a strategy the check of its tuple would draw from the global random numbers.
RESNET = a.ResNetConfig(layers=(2, 1), width_factor=2)


def _model(
    heads: int, head_dim: int | None, width: int, grid: tuple[int, int], patch: int, **rest: Any
) -> a.ModelConfig:
    class_token = rest["global_pool"] == "token" or rest.pop("lone")
    rest.pop("lone", None)
    sides = (grid[0] * patch, grid[1] * patch)
    img_size = sides[0] if sides[0] == sides[1] else sides
    if rest["pos_embed"] not in (*a.ADDED, "none"):  # these act inside the attention
        rest["pos_at"] = "layers"
    head_dim = 4 * (head_dim or 1) if rest["pos_embed"] == "rope2d" else head_dim
    return a.ModelConfig(num_heads=heads, head_dim=head_dim, embed_dim=4 * heads * width, img_size=img_size,
                         patch_size=patch, class_token=class_token, resnet=RESNET, **rest)  # fmt: skip


count, share = st.integers(1, 8), st.floats(0, 0.99)
MODELS = st.builds(
    _model,
    heads=count,
    head_dim=st.none() | count,
    width=count,
    grid=st.tuples(count, count),
    patch=st.integers(1, 32),
    lone=st.booleans(),
    mlp_ratio=st.floats(0.1, 8),
    norm_eps=st.floats(1e-12, 1e-3),
    drop_rate=share,
    drop_path_rate=share,
    num_classes=st.integers(0, 30_000),
    qkv_bias=st.booleans(),
    global_pool=st.sampled_from(get_args(a.Pooling)),
    act_layer=st.sampled_from(get_args(a.Activation)),
    pos_embed=st.sampled_from(get_args(a.Positions)),
)


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@for_all(MODELS)
def test_any_model_config_comes_back_from_json_and_toml(config: a.ModelConfig) -> None:
    assert from_dict(a.ModelConfig, json.loads(json.dumps(to_dict(config)))) == config
    assert from_dict(a.ModelConfig, tomllib.loads(tomli_w.dumps(to_dict(config)))) == config


@pytest.mark.parametrize("kind", KINDS)
def test_every_option_class_comes_back(kind: type, tmp_path: Path) -> None:
    config = kind()
    write_toml(config, tmp_path / "run.toml")
    assert from_dict(kind, read_toml(tmp_path / "run.toml")) == config
    assert from_dict(kind, json.loads(json.dumps(to_dict(config)))) == config


def test_a_whole_run_that_is_not_the_default_comes_back(tmp_path: Path) -> None:
    config = o.Config(
        data=o.DataConfig(source='a "quoted" földer'),
        model=a.ModelConfig(img_size=(32, 64), head_dim=10, num_classes=3),
        preprocess=o.PreprocessConfig(size=(32, 64), mean=(0.1,), std=(0.2,)),
        optim=o.OptimConfig(name="sgd", lr=0.1, warmup_steps=3),
        max_time_s=1.5,
        precision="bf16",
    )
    write_toml(config, tmp_path / "run.toml")
    back = from_dict(o.Config, read_toml(tmp_path / "run.toml"))
    assert back == config
    assert isinstance(back.model.img_size, tuple)
    assert isinstance(back.preprocess.mean, tuple)


def test_what_is_none_is_left_out() -> None:
    assert "head_dim" not in to_dict(a.ModelConfig())
    assert to_dict(a.ModelConfig(img_size=(32, 64)))["img_size"] == [32, 64]


@pytest.mark.parametrize(
    ("values", "where", "nearest"),
    [
        ({"epoch": 3}, "epoch", "epochs"),
        ({"model": {"num_head": 3}}, "model.num_head", "num_heads"),
        ({"optim": {"learning_rate": 3}}, "optim.learning_rate", None),
        ({"modell": {}}, "modell", "model"),
    ],
)
def test_an_unknown_name_is_refused(values: dict[str, Any], where: str, nearest: str | None) -> None:
    with pytest.raises(BadConfig) as caught:
        from_dict(o.Config, values)
    hint = f" Did you mean {nearest!r}?" if nearest else ""
    assert str(caught.value) == f"{where}: there is no such option.{hint}"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epochs": "3"}, "epochs = '3': must be of type int."),
        ({"epochs": 3.0}, "epochs = 3.0: must be of type int."),
        ({"epochs": True}, "epochs = True: must be of type int."),
        ({"max_time_s": "1"}, "max_time_s = '1': must be of type float."),
        ({"max_time_s": False}, "max_time_s = False: must be of type float."),
        ({"init": 3}, "init = 3: must be of type str."),
        ({"model": {"qkv_bias": 1}}, "model.qkv_bias = 1: must be of type bool."),
        ({"model": {"head_dim": 1.5}}, "model.head_dim = 1.5: must be of type int or None."),
        ({"model": {"img_size": [1, 2, 3]}}, "model.img_size = [1, 2, 3]: must be of type int or tuple[int, int]."),
        ({"preprocess": {"size": [1]}}, "preprocess.size = [1]: must be of type tuple[int, int]."),
        ({"preprocess": {"mean": 0.5}}, "preprocess.mean = 0.5: must be of type tuple[float, ...]."),
        ({"preprocess": {"mean": ["a"]}}, "preprocess.mean = 'a': must be of type float."),
        ({"optim": {"name": "adam"}}, "optim.name = 'adam': must be one of adamw, sgd, muon, lamb. Did you mean "
             "'adamw'?"),
        ({"model": 3}, "model = 3: must be a table of options."),
    ],
)  # fmt: skip
def test_a_wrong_type_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(BadConfig) as caught:
        from_dict(o.Config, values)
    assert str(caught.value) == message


def test_a_whole_number_serves_as_a_float() -> None:
    config = from_dict(o.Config, {"max_time_s": 3})
    assert (config.max_time_s, type(config.max_time_s)) == (3.0, float)


def test_a_value_out_of_range_is_refused_while_reading() -> None:
    with pytest.raises(BadConfig, match=re.escape("optim.lr = -1.0: must be above 0.")):
        from_dict(o.Config, {"optim": {"lr": -1}})


def test_merge_lays_later_over_earlier_and_changes_neither() -> None:
    one, other = {"a": {"x": 1, "y": 2}, "b": 1}, {"a": {"y": 3}, "c": {"z": 4}}
    assert merge(one, other) == {"a": {"x": 1, "y": 3}, "b": 1, "c": {"z": 4}}
    assert one == {"a": {"x": 1, "y": 2}, "b": 1}
    assert other == {"a": {"y": 3}, "c": {"z": 4}}
    assert merge(one, other, {"a": 5}) == {"a": 5, "b": 1, "c": {"z": 4}}
    assert merge() == {}


def test_flatten_gives_dotted_names() -> None:
    assert list(flatten({"a": {"b": {"c": 1}, "d": 2}, "e": 3})) == [("a.b.c", 1), ("a.d", 2), ("e", 3)]
    names = [name for name, _ in flatten(to_dict(o.Config()))]
    assert len(names) == len(set(names))
    assert {"optim.lr", "model.depth", "epochs"} <= set(names)


def every_name(kind: type, prefix: str = "") -> set[str]:
    hints = get_type_hints(kind)
    parts = [
        every_name(hints[f.name], f"{prefix}{f.name}.") if is_dataclass(hints[f.name]) else {prefix + f.name}
        for f in fields(kind)
    ]
    return set().union(*parts)


def test_a_partial_has_every_option_absent_and_with_its_help() -> None:
    part = partial(o.Config)
    assert given(part()) == {}
    assert part.__doc__ == o.Config.__doc__
    helps = {f.name: dict(f.metadata) for f in fields(part)}
    assert helps["epochs"] == dict(o.Config.__dataclass_fields__["epochs"].metadata)
    assert {f.name for f in fields(part)} == {f.name for f in fields(o.Config)}


def test_a_partial_leaves_out_what_it_is_told() -> None:
    part = partial(o.Config, frozenset({"model.img_size", "seed", "data"}))
    names = {f.name for f in fields(part)}
    assert names == {f.name for f in fields(o.Config)} - {"seed", "data"}
    inner = {f.name for f in fields(part().model)}
    assert inner == {f.name for f in fields(a.ModelConfig)} - {"img_size"}
    with pytest.raises(TypeError):
        part(seed=3)


def test_given_is_what_the_user_set_even_if_it_is_zero() -> None:
    part = partial(o.Config)
    model = type(part().model)
    options = part(model=model(depth=3, class_token=False), label_smoothing=0.0)
    assert given(options) == {"model": {"depth": 3, "class_token": False}, "label_smoothing": 0.0}
    merged = merge(to_dict(o.Config(epochs=7)), given(part(optim=type(part().optim)(lr=0.5))))
    assert from_dict(o.Config, merged) == o.Config(epochs=7, optim=o.OptimConfig(lr=0.5))


def test_every_option_is_known_by_its_dotted_name() -> None:
    spelt = {name for name, _ in flatten(to_dict(o.Config()))}
    assert every_name(o.Config) - spelt == {
        "model.head_dim",
        "model.init_values",
        "target_threshold",
    }  # None by default
    assert spelt <= every_name(o.Config)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"run\.toml: there is no such file"):
        read_toml(tmp_path / "run.toml")


def test_what_is_no_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=re.escape(f"{tmp_path}: cannot be read")):
        read_toml(tmp_path)


@pytest.mark.parametrize("content", [b"epochs = \n", b"\xff\xfe", b"a = 1\na = 2\n"])
def test_what_is_no_toml_is_named(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_bytes(content)
    with pytest.raises(BadConfig, match=r"run\.toml: this is not valid TOML: ") as caught:
        read_toml(path)
    assert os.linesep not in str(caught.value)
