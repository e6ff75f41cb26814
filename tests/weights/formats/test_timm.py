"""timm's files, written by timm at random weights, read here."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

from tests.models.toys import SIZE, pictures, randomise
from tests.parity.peers import timm, timm_vit
from tests.weights.formats.readings import gap, model_of, raw
from tests.weights.formats.timm_home import config_json, toy_of_timm
from vitrine.config.architecture import ModelConfig
from vitrine.errors import BadData, UsageError, VitrineError
from vitrine.weights.foreign import Raw
from vitrine.weights.formats import deit
from vitrine.weights.formats.timm import fits, read
from vitrine.weights.formats.timm_names import UNLIKE, activation_of, eps_of, heads_of

CLOSE = 2e-5

# timm's arguments, and the options of ours that must come out of them.
VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "token": ({}, {"global_pool": "token"}),
    "avg": ({"global_pool": "avg"}, {"global_pool": "avg_then_norm"}),
    "avg without fc_norm": ({"global_pool": "avg", "fc_norm": False}, {"global_pool": "norm_then_avg"}),
    "token with fc_norm": ({"global_pool": "token", "fc_norm": True}, {"global_pool": "token"}),
    "map": ({"global_pool": "map", "class_token": False}, {"global_pool": "map"}),
    "map of patches": ({"global_pool": "map", "reg_tokens": 2, "no_embed_class": True}, {"global_pool": "map"}),
    "map of all": (
        {"global_pool": "map", "class_token": False, "pool_include_prefix": True}, {"global_pool": "map"}
    ),
    "no class token": (
        {"class_token": False, "global_pool": "avg"},
        {"class_token": False, "global_pool": "avg_then_norm"},
    ),
    "pre_norm": ({"pre_norm": True, "act_layer": "quick_gelu"}, {"pre_norm": True, "act_layer": "quick_gelu"}),
    "gelu_tanh": ({"act_layer": "gelu_tanh"}, {"act_layer": "gelu_tanh"}),
    "scale": ({"init_values": 1e-3}, {"init_values": 1e-5}),
    "no_embed_class": ({"no_embed_class": True}, {"no_embed_class": True}),
    "registers": ({"reg_tokens": 3, "no_embed_class": True}, {"reg_tokens": 3, "no_embed_class": True}),
    "registers with positions": ({"reg_tokens": 4}, {"reg_tokens": 4, "no_embed_class": False}),
    "registers alone": (
        {"reg_tokens": 2, "class_token": False, "global_pool": "avg"}, {"reg_tokens": 2, "class_token": False}
    ),
    "qk_norm": ({"qk_norm": True, "qkv_bias": False}, {"qk_norm": True, "qkv_bias": False}),
    "wide": ({"img_size": (16, 40)}, {"img_size": (16, 40)}),
    "grey": ({"in_chans": 1}, {"in_chans": 1}),
    "no positions": ({"pos_embed": "none"}, {"pos_embed": "none"}),
    "no norm": ({"final_norm": False}, {"final_norm": False}),
    "no head": ({"num_classes": 0}, {"num_classes": 0}),
}  # fmt: skip


def compare(peer: torch.nn.Module, source: Raw, sides: tuple[tuple[int, int], ...]) -> ModelConfig:
    """Read the file of `peer` and compare logits at several sizes."""
    assert fits(source)
    assert not deit.fits(source)
    reading = read(source)
    model = model_of(reading)
    for height, width in (model.config.size, *sides):
        images = pictures(2, model.config.in_chans, height, width)
        with torch.no_grad():
            assert gap(model(images), peer(images)) <= CLOSE
    return reading.model


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_of_a_folder_are_timms(variant: str) -> None:
    args, options = VARIANTS[variant]
    torch.manual_seed(0)
    peer = randomise(timm_vit(**{**SIZE, "dynamic_img_size": True, **args}))
    config = compare(peer, raw(peer.state_dict(), "safetensors", config=config_json(args)), ((48, 48), (24, 56)))
    assert {name: getattr(config, name) for name in options} == options


@pytest.mark.parametrize("prefix", ["", "module.", "model.", "module.model."])
def test_a_bare_state_dict_is_read_and_its_heads_asked_for(prefix: str) -> None:
    peer = randomise(timm_vit(**SIZE))
    tensors = {f"{prefix}{name}": tensor for name, tensor in peer.state_dict().items()}
    with pytest.raises(UsageError, match=r"--model\.num-heads"):
        read(raw(tensors))
    compare(peer, raw(tensors, "npz", given={"num_heads": 3}), ())


def test_packed_swiglu() -> None:
    peer = randomise(timm_vit(**SIZE, mlp_layer=timm.layers.SwiGLUPacked, act_layer=torch.nn.SiLU, init_values=1e-5))
    config = compare(peer, raw(peer.state_dict(), given={"num_heads": 3}), ())
    assert (config.mlp_layer, config.mlp_dim) == ("swiglu", 48)


def test_the_distilled_model_of_timm() -> None:
    peer = randomise(toy_of_timm("deit_tiny_distilled_patch16_224"))
    source = raw(peer.state_dict(), config={**config_json({}), "architecture": "deit_tiny_distilled_patch16_224"})
    assert compare(peer, source, ()).distilled


@pytest.mark.parametrize("pool", ["avg", "token"])
@pytest.mark.parametrize("shared", [True, False])
def test_relative_biases_from_a_table(pool: str, shared: bool) -> None:
    args = {"rel_pos_type": "bias", "shared_rel_pos": shared, "class_token": pool == "token", "global_pool": pool}
    peer = randomise(toy_of_timm("vit_relpos_base_patch16_224", **args))
    config = {**config_json(args), "architecture": "vit_relpos_base_patch16_224"}
    assert compare(peer, raw(peer.state_dict(), config=config), ()).pos_at == ("layers_shared" if shared else "layers")


def test_pre_logits_of_old_files_are_kept() -> None:
    """Files of before 2022 have the pre-training head's hidden layer, tanh, which timm leaves out now."""
    peer = randomise(timm_vit(**SIZE))
    fc = randomise(torch.nn.Linear(48, 48))
    tensors = {**peer.state_dict(), "pre_logits.fc.weight": fc.weight.detach(), "pre_logits.fc.bias": fc.bias.detach()}
    model = model_of(read(raw(tensors, given={"num_heads": 3})))
    images = pictures(2, 3, 32, 32)
    with torch.no_grad():
        features = peer.forward_head(peer.forward_features(images), pre_logits=True)
        assert gap(model(images), peer.head(torch.tanh(fc(features)))) <= CLOSE


def test_mistake_03_the_table_tells_the_prefix_by_its_length() -> None:
    for args in ({}, {"no_embed_class": True}, {"reg_tokens": 4}, {"reg_tokens": 4, "no_embed_class": True}):
        peer = randomise(timm_vit(**{**SIZE, **args}))
        compare(peer, raw(peer.state_dict(), given={"num_heads": 3}), ())
    # 11 rows are 2 x 5 patches and a class token, or 10 or 11 patches: no square, so the size is asked for.
    wide = randomise(timm_vit(**{**SIZE, "img_size": (16, 40)}))
    with pytest.raises(UsageError, match=r"--model\.img-size"):
        read(raw(wide.state_dict(), given={"num_heads": 3}))
    compare(wide, raw(wide.state_dict(), given={"num_heads": 3, "img_size": (16, 40)}), ())
    # With the class token and four registers 9 rows are 3 x 3 patches, or 2 x 2 and five prefix tokens.
    both = timm_vit(**{**SIZE, "img_size": 24, "reg_tokens": 4, "no_embed_class": True})
    with pytest.raises(UsageError, match="several"):
        read(raw(both.state_dict(), given={"num_heads": 3}))


@pytest.mark.parametrize("no_embed_class", [False, True])
def test_mistake_04_the_class_token_has_a_position_or_not(no_embed_class: bool) -> None:
    peer = randomise(timm_vit(**SIZE, no_embed_class=no_embed_class))
    config = compare(peer, raw(peer.state_dict(), given={"num_heads": 3}), ())
    assert config.no_embed_class is no_embed_class


def test_mistake_05_a_21k_head_without_its_hidden_layer_is_refused() -> None:
    peer = timm_vit(**{**SIZE, "num_classes": 21843})
    config = config_json({})
    config["pretrained_cfg"] |= {"tag": "orig_in21k"}
    with pytest.raises(BadData, match="pre_logits"):
        read(raw(peer.state_dict(), config=config))


def test_a_head_can_be_left_out_on_request() -> None:
    peer = randomise(timm_vit(**SIZE))
    reading = read(raw(peer.state_dict(), given={"num_heads": 3, "num_classes": 0}))
    assert set(reading.dropped) == {"head.weight", "head.bias"}
    images = pictures(2, 3, 32, 32)
    with torch.no_grad():
        features = peer.forward_head(peer.forward_features(images), pre_logits=True)
        assert gap(model_of(reading)(images), features) <= CLOSE


def test_mistake_09_norm_and_mean_are_not_exchanged() -> None:
    """The same tensors but for the name of one norm are another function."""
    after = randomise(timm_vit(**SIZE, global_pool="avg"))
    tensors = {name.replace("fc_norm", "norm"): tensor for name, tensor in after.state_dict().items()}
    before = timm_vit(**SIZE, global_pool="avg", fc_norm=False)
    before.load_state_dict(tensors)
    images = pictures(2, 3, 32, 32)
    with torch.no_grad():
        assert (after(images) - before(images)).abs().max() > 1e-3
    for peer in (after, before):
        compare(peer, raw(peer.state_dict(), config=config_json({"global_pool": "avg"})), ())


@pytest.mark.parametrize(("name", "eps"), [("vit_base_patch16_clip_224", 1e-5), ("vit_base_patch16_224", 1e-6)])
def test_mistake_10_epsilon_comes_with_the_architecture(name: str, eps: float) -> None:
    peer = randomise(toy_of_timm(name, pre_norm=False))
    with torch.no_grad():  # tokens so small that the epsilon shows
        peer.pos_embed *= 1e-2
        peer.cls_token *= 1e-2
        peer.patch_embed.proj.weight *= 1e-2
        peer.patch_embed.proj.bias *= 1e-2
    source = raw(peer.state_dict(), config={**config_json({}), "architecture": name})
    assert compare(peer, source, ()).norm_eps == eps
    other = model_of(read(Raw(**{**vars(source), "given": {"norm_eps": 1.1e-5 - eps}})))
    images = pictures(2, 3, 32, 32)
    with torch.no_grad():
        assert (other(images) - peer(images)).abs().max() > 10 * CLOSE


def test_mistake_11_mean_and_deviation_are_the_files() -> None:
    peer = timm_vit(**SIZE)
    config = config_json({})
    config["pretrained_cfg"] |= {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "crop_mode": "squash"}
    preprocess = read(raw(peer.state_dict(), config=config)).preprocess
    assert (preprocess.mean, preprocess.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert preprocess.resize == "squash"
    bare = read(raw(peer.state_dict(), given={"num_heads": 3}))
    assert bare.preprocess.mean == (0.5, 0.5, 0.5)
    assert any("assumed" in sentence and "--format deit" in sentence for sentence in bare.said)


def test_mistake_12_resize_and_crop_are_the_files() -> None:
    peer = timm_vit(**SIZE)
    for crop in (0.9, 0.875, 1.0):
        config = config_json({})
        config["pretrained_cfg"] |= {"crop_pct": crop, "crop_mode": "center", "interpolation": "bilinear"}
        preprocess = read(raw(peer.state_dict(), config=config)).preprocess
        assert (preprocess.resize, preprocess.crop_pct, preprocess.interpolation) == ("shorter", crop, "bilinear")


def test_mistake_19_rows_of_qkv_are_q_k_v_each_head_by_head() -> None:
    """Rows ordered head by head, as some third parties store them, are another function."""
    peer = randomise(timm_vit(**SIZE))
    compare(peer, raw(peer.state_dict(), given={"num_heads": 3}), ())
    tensors = dict(peer.state_dict())
    for i in range(SIZE["depth"]):
        name = f"blocks.{i}.attn.qkv.weight"
        tensors[name] = tensors[name].unflatten(0, (3, 3, 16)).transpose(0, 1).flatten(0, 2).contiguous()
    mixed = model_of(read(raw(tensors, given={"num_heads": 3})))
    images = pictures(2, 3, 32, 32)
    with torch.no_grad():
        assert (mixed(images) - peer(images)).abs().max() > 1e-2


def test_class_names_come_from_the_configuration() -> None:
    state = timm_vit(**SIZE).state_dict()
    assert read(raw(state, config=config_json({}))).class_names is None
    names = ["a", "b", "c", "d", "e"]
    assert read(raw(state, config=config_json({}, label_names=names))).class_names == tuple(names)
    described = config_json({}, label_names=names, label_descriptions={"a": "an animal"})
    assert read(raw(state, config=described)).class_names == ("an animal", "b", "c", "d", "e")
    assert read(raw(state, config=config_json({}, label_names=names[:3]))).class_names is None


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"architecture": "vit_base_patch16_rpn_224"}, "after each branch"),
        ({"global_pool": "max", "model_args": {"num_heads": 3}}, "pooling 'max'"),
        ({"model_args": {"num_heads": 3, "norm_layer": "rmsnorm"}}, "norm_layer"),
        ({"model_args": {"num_heads": 3, "act_layer": "mish"}}, "act_layer"),
    ],
)
def test_what_has_no_equal_is_refused_with_the_reason(change: dict[str, Any], what: str) -> None:
    with pytest.raises(UsageError, match=what):
        read(raw(timm_vit(**SIZE).state_dict(), config={**config_json({}), **change}))


@pytest.mark.parametrize("pool", ["map", "avg"])
def test_pooling_over_the_prefix_is_refused(pool: str) -> None:
    peer = timm_vit(**SIZE, global_pool=pool, pool_include_prefix=True)
    with pytest.raises(UsageError, match="the class token among them"):
        read(raw(peer.state_dict(), config=config_json({"global_pool": pool, "pool_include_prefix": True})))


def test_positions_from_an_mlp_are_refused() -> None:
    peer = toy_of_timm("vit_relpos_base_patch16_224")
    with pytest.raises(UsageError, match="an MLP computes"):
        read(raw(peer.state_dict(), given={"num_heads": 3}))


def test_a_tensor_too_many_or_too_few_is_refused() -> None:
    tensors = dict(timm_vit(**SIZE).state_dict())
    with pytest.raises(BadData, match=r"unexpected: blocks\.0\.attn\.gate"):
        read(raw({**tensors, "blocks.0.attn.gate": torch.ones(3)}, given={"num_heads": 3}))
    del tensors["blocks.1.mlp.fc2.bias"]
    with pytest.raises(BadData, match=r"missing: blocks\.1\.mlp\.fc2\.bias"):
        read(raw(tensors, given={"num_heads": 3}))


@pytest.mark.parametrize(
    "config",
    [
        {"pretrained_cfg": [1]}, {"model_args": "x"}, {"pretrained_cfg": {"input_size": 3}}, {"label_names": 7},
        {"pretrained_cfg": {"mean": "abc"}}, {"pretrained_cfg": {"crop_pct": "wide"}}, {"model_args": {"img_size": ""}},
    ],
)  # fmt: skip
def test_a_strange_configuration_is_one_clear_error(config: dict[str, Any]) -> None:
    with pytest.raises(VitrineError, match=r"config\.json|must"):
        read(raw(timm_vit(**SIZE).state_dict(), config={"architecture": "vit_tiny", **config}, given={"num_heads": 3}))


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("blocks.999999999.norm1.weight", (48,)), ("blocks.0.norm1.weight", ()), ("blocks.0.attn.qkv.weight", (144,)),
        ("patch_embed.proj.weight", (48, 192)), ("pos_embed", (17, 48)), ("head.weight", (0, 48)),
        ("blocks.0.mlp.fc1.weight", (0, 48)), ("patch_embed.proj.weight", (48, 3, 8, 4)),
    ],
)  # fmt: skip
def test_strange_shapes_and_numbers_are_one_clear_error(name: str, shape: tuple[int, ...]) -> None:
    tensors = {**timm_vit(**SIZE).state_dict(), name: torch.zeros(shape)}
    with pytest.raises(VitrineError):
        model_of(read(raw(tensors, given={"num_heads": 3})))


def test_plain_tensors_in_an_entry_model_fit_two_formats() -> None:
    """DeiT's scripts and timm's cannot be told apart by tensors, and differ in mean and deviation."""
    plain = timm_vit(**SIZE).state_dict()
    both = raw(plain, "torch", wrapper="model")
    assert fits(both)
    assert deit.fits(both)
    for source in (raw(plain, "torch", wrapper="state_dict"), raw(plain, "npz"), raw(plain, config=config_json({}))):
        assert fits(source)
        assert not deit.fits(source)


def test_every_name_of_timm_says_what_we_think_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Heads, epsilon and activation of each registered architecture, without building one."""
    caught: dict[str, dict[str, Any]] = {}

    class Stop(Exception):
        pass

    def catch(cls: Any, variant: str, *args: Any, **kwargs: Any) -> None:
        caught[variant] = kwargs
        raise Stop

    monkeypatch.setattr(timm.models.vision_transformer, "build_model_with_cfg", catch)
    monkeypatch.setattr(timm.models.deit, "build_model_with_cfg", catch)
    for name in [*timm.list_models(module="vision_transformer"), *timm.list_models(module="deit")]:
        with pytest.raises(Stop):
            timm.create_model(name)
    checked = 0
    for name, kwargs in caught.items():
        if any(part in name for part in UNLIKE):
            continue
        norm, act = kwargs.get("norm_layer"), kwargs.get("act_layer")
        assert heads_of(name, kwargs.get("embed_dim", 768)) == kwargs.get("num_heads", 12), name
        assert eps_of(name) == (norm.keywords["eps"] if isinstance(norm, partial) else 1e-6), name
        assert set(kwargs) & {"block_fn", "attn_layer", "scale_attn_norm", "scale_mlp_norm"} == set(), name
        known = {"gelu_tanh": "gelu_tanh", "quick_gelu": "quick_gelu", "quickgelu": "quick_gelu", None: "gelu"}
        if "SiLU" not in str(act):
            assert activation_of(name) == known[act if isinstance(act, str | None) else str(act)], (name, act)
        checked += 1
    assert checked > 120
