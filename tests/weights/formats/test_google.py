"""Google's .npz against logits that its own code gave (recorded in `tests/golden/google.json`), and back again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.made import bundle
from tests.weights.formats.filled import filled, pixels, recorded
from vitrine.errors import BadData, UsageError
from vitrine.models.resnet import StdConv
from vitrine.models.vit import VisionTransformer
from vitrine.weights.bundle import Bundle, build
from vitrine.weights.foreign import Raw, Reading, numbered
from vitrine.weights.formats import big_vision, google
from vitrine.weights.resample import resized

CASES = ("token", "gap", "pre_logits", "hybrid", "root")
TOLERANCE = {"hybrid": 1e-4, "root": 1e-4}
BLOCK = "Transformer/encoderblock_0/"
ATTENTION = f"{BLOCK}MultiHeadDotProductAttention_1/"


def file(case: str, **given: Any) -> Raw:
    """The file of a recorded case as it is read."""
    return raw({name: torch.from_numpy(x) for name, x in filled(recorded()[case]["shapes"]).items()}, **given)


def raw(tensors: Mapping[str, Tensor], **given: Any) -> Raw:
    return Raw(path="some.npz", kind="npz", tensors=tensors, given=given)


def of(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Tensors without numbers, for what is told by shapes alone."""
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def shapes_of_21k(width: int, patch: int, positions: int, **hidden: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a ViT with one block and a head of 21,843 classes."""
    d = 64
    heads = width // d
    kernels = {f"{ATTENTION}{part}/kernel": (width, heads, d) for part in ("query", "key", "value")}
    biases = {f"{ATTENTION}{part}/bias": (heads, d) for part in ("query", "key", "value")}
    norms = {f"{BLOCK}LayerNorm_{i}/{part}": (width,) for i in (0, 2) for part in ("scale", "bias")}
    return {
        "cls": (1, 1, width), "embedding/kernel": (patch, patch, 3, width), "embedding/bias": (width,),
        google.POSITIONS: (1, positions, width), **kernels, **biases, **norms,
        f"{ATTENTION}out/kernel": (heads, d, width), f"{ATTENTION}out/bias": (width,),
        f"{BLOCK}MlpBlock_3/Dense_0/kernel": (width, 8), f"{BLOCK}MlpBlock_3/Dense_0/bias": (8,),
        f"{BLOCK}MlpBlock_3/Dense_1/kernel": (8, width), f"{BLOCK}MlpBlock_3/Dense_1/bias": (width,),
        "Transformer/encoder_norm/scale": (width,), "Transformer/encoder_norm/bias": (width,),
        "head/kernel": (width, 21_843), "head/bias": (21_843,),
        **{f"pre_logits/{part}": shape for part, shape in hidden.items()},
    }  # fmt: skip


def logits(reading: Reading, size: str, **changes: Any) -> Tensor:
    """What the model that was read says about the recorded pictures of `size`."""
    height, width = map(int, size.split("x"))
    config, tensors, _ = resized(replace(reading.model, **changes), reading.tensors, (height, width))
    model = VisionTransformer(config).eval()
    model.load_state_dict(tensors, strict=True)
    with torch.no_grad():
        return model(torch.from_numpy(pixels(height, width)))


def distance(case: str, reading: Reading, size: str = "32x32", **changes: Any) -> float:
    """The largest difference to the logits of the home, with options of the model changed."""
    return (logits(reading, size, **changes) - torch.tensor(recorded()[case]["logits"][size])).abs().max().item()


def as_bundle(reading: Reading) -> Bundle:
    return Bundle(
        model=reading.model, preprocess=reading.preprocess, tensors=reading.tensors,
        class_names=numbered(reading.model.num_classes),
    )  # fmt: skip


SIZES = [(case, size) for case in CASES for size in recorded()[case]["logits"]]


@pytest.mark.parametrize(("case", "size"), SIZES)
def test_logits_are_those_of_jax_at_the_own_size_and_at_others(case: str, size: str) -> None:
    found = file(case)
    assert google.FORMAT.fits(found) and not big_vision.FORMAT.fits(found)
    reading = google.FORMAT.read(found)
    assert set(reading.used) == set(found.tensors) and not reading.dropped and not reading.fresh
    assert distance(case, reading, size) <= TOLERANCE.get(case, 2e-5)


def test_conventions_of_the_source_come_along() -> None:
    reading = google.FORMAT.read(file("token"))
    model, pre = reading.model, reading.preprocess
    assert (model.norm_eps, model.act_layer) == (1e-6, "gelu_tanh")
    assert (model.pos_interpolation, model.pos_align_corners, model.no_embed_class) == ("bilinear", True, False)
    assert (pre.size, pre.resize, pre.interpolation) == ((32, 32), "squash", "bilinear")
    assert pre.mean == pre.std == (0.5, 0.5, 0.5)
    assert any("1e-6" in said for said in reading.said) and any("squashed" in said for said in reading.said)
    stem = google.FORMAT.read(file("hybrid")).model.resnet
    assert (stem.layers, stem.preact, stem.padding, stem.conv_eps, stem.conv_eps_at) == (
        (1, 2), False, "same", 1e-5, "std",
    )  # fmt: skip
    assert stem.norm_eps == 1e-6
    assert google.FORMAT.read(file("root")).model.resnet.layers == ()
    assert google.FORMAT.read(file("pre_logits")).model.representation_size == 24


def test_exact_gelu_would_show() -> None:
    assert distance("token", google.FORMAT.read(file("token")), act_layer="gelu") > 1e-4


@pytest.mark.parametrize("part", ["query", "value", "out"])
def test_mistake_1_heads_reshaped_before_they_are_transposed_would_show(part: str) -> None:
    reading = google.FORMAT.read(file("token"))
    name, place = ("proj", 0) if part == "out" else ("qkv", {"query": 0, "value": 2}[part])
    kernel = file("token").tensors[f"{ATTENTION}{part}/kernel"]
    # The wrong order: the axes reversed first, (d, h, D) or (D, d, h), and flattened after.
    wrong = kernel.permute(2, 1, 0).reshape(32, 32)
    weight = reading.tensors[f"blocks.0.attn.{name}.weight"].clone()
    weight[place * 32 : (place + 1) * 32] = wrong
    mistaken = replace(reading, tensors={**reading.tensors, f"blocks.0.attn.{name}.weight": weight})
    assert distance("token", reading) <= 2e-5 < 1e-2 < distance("token", mistaken)


@pytest.mark.parametrize(("part", "shape"), [("out", (32, 4, 8)), ("query", (4, 8, 32)), ("key", (32, 8, 4))])
def test_mistake_1_a_kernel_with_its_axes_elsewhere_is_refused(part: str, shape: tuple[int, ...]) -> None:
    name = f"{ATTENTION}{part}/kernel"
    found = file("token")
    changed = {**found.tensors, name: found.tensors[name].reshape(shape)}
    with pytest.raises(BadData, match=f"of the wrong shape|takes|{part}"):
        google.FORMAT.read(raw(changed))


def test_mistake_2_numbers_of_the_other_code_base_are_told_apart() -> None:
    old = file("token").tensors
    new = {
        name.replace("Attention_1", "Attention_0")
        .replace("LayerNorm_2", "LayerNorm_1")
        .replace("Block_3", "Block_0"): x
        for name, x in old.items()
    }
    assert google.FORMAT.fits(raw(new)) and not big_vision.FORMAT.fits(raw(new))
    reading = google.FORMAT.read(raw(new))
    assert distance("token", reading) <= 2e-5
    # Half of one and half of the other is a damaged file.
    mixed = {name.replace("LayerNorm_2", "LayerNorm_1"): x for name, x in old.items()}
    with pytest.raises(BadData, match=r"missing: \S+LayerNorm_2/bias.*unexpected: \S+LayerNorm_1/bias"):
        google.FORMAT.read(raw(mixed))


def test_mistake_3_the_table_has_a_row_for_the_class_token_and_none_without_one() -> None:
    assert google.FORMAT.read(file("token")).tensors["pos_embed"].shape == (1, 17, 32)
    assert google.FORMAT.read(file("gap")).tensors["pos_embed"].shape == (1, 16, 32)
    with pytest.raises(UsageError, match="15 positions of patches are no square grid"):
        changed = dict(file("token").tensors)
        changed[google.POSITIONS] = changed[google.POSITIONS][:, 1:]
        google.FORMAT.read(raw(changed))


def test_mistake_4_the_class_token_has_a_position() -> None:
    reading = google.FORMAT.read(file("token"))
    assert not reading.model.no_embed_class
    table = reading.tensors["pos_embed"].clone()
    table[:, 0] = 0
    without = replace(reading, tensors={**reading.tensors, "pos_embed": table})
    assert distance("token", reading) <= 2e-5 < 1e-2 < distance("token", without)


def test_mistake_5_pre_logits_are_never_left_out() -> None:
    kept = file("pre_logits").tensors
    for gone, said in (
        (
            {"pre_logits/kernel", "pre_logits/bias"},
            r"takes 24 features and the encoder gives 32.*pre_logits is missing",
        ),
        ({"pre_logits/kernel"}, r"pre_logits/kernel is missing while the head is there"),
        ({"pre_logits/bias"}, r"pre_logits/bias is missing while the head is there"),
    ):
        with pytest.raises(BadData, match=said):
            google.FORMAT.read(raw({name: x for name, x in kept.items() if name not in gone}))
    with pytest.raises(UsageError, match=r"--model\.representation-size 0: the file says 24"):
        google.FORMAT.read(file("pre_logits", representation_size=0))


def test_mistake_5_a_21k_head_without_pre_logits_is_refused_where_that_is_known() -> None:
    huge = of(shapes_of_21k(1280, 14, 257))
    with pytest.raises(BadData, match=r"head of 21,843 classes without pre_logits.*--model\.representation-size 0"):
        google.FORMAT.read(raw(huge))
    assert google.FORMAT.read(raw(huge, representation_size=0)).model.representation_size == 0
    whole = of(shapes_of_21k(1280, 14, 257, kernel=(1280, 1280), bias=(1280,)))
    assert google.FORMAT.read(raw(whole)).model.representation_size == 1280
    # B/16 was published both ways with the same shapes: read, and said.
    assert any("it would be missing" in said for said in google.FORMAT.read(raw(of(shapes_of_21k(768, 16, 197)))).said)
    # S/16 was never published with it.
    assert not any("missing" in said for said in google.FORMAT.read(raw(of(shapes_of_21k(384, 16, 197)))).said)


def test_mistake_6_old_shapes_of_group_norms_are_read() -> None:
    old = {
        name: x.reshape(1, 1, 1, -1) if "gn" in name.split("/")[-2:][0] else x
        for name, x in file("hybrid").tensors.items()
    }
    assert sum(x.shape[:3] == (1, 1, 1) for x in old.values()) == 2 * 12
    assert distance("hybrid", google.FORMAT.read(raw(old))) <= 1e-4


@pytest.mark.parametrize("prefix", ["opt/target/", "params/"])
def test_mistake_6_a_training_dump_gives_its_parameters_and_drops_the_rest_by_name(prefix: str) -> None:
    dump = {prefix + name: x for name, x in file("token").tensors.items()}
    state = "opt/state/param_states/cls/momentum" if prefix.startswith("opt") else "opt/0/mu/cls"
    beside = {state: torch.zeros(3), "step": torch.tensor(3), "extra/accum_train_time": torch.tensor(1.0)}
    reading = google.FORMAT.read(raw({**dump, **beside}))
    assert set(reading.dropped) == set(beside)
    assert distance("token", reading) <= 2e-5
    with pytest.raises(BadData, match=r"unexpected: head2/bias"):
        google.FORMAT.read(raw({**dump, **beside, "head2/bias": torch.zeros(5)}))


@pytest.mark.parametrize(
    "wrong",
    [{"conv_eps_at": "var"}, {"conv_eps": 1e-8, "conv_eps_at": "var"}, {"conv_eps": 1e-10, "conv_eps_at": "var"}],
    ids=str,
)
def test_mistake_7_another_epsilon_of_the_filters_would_show(wrong: dict[str, Any]) -> None:
    reading = google.FORMAT.read(file("hybrid"))
    resnet = replace(reading.model.resnet, **wrong)
    assert distance("hybrid", reading) <= 1e-4 < 2e-4 < distance("hybrid", reading, resnet=resnet)


def test_mistake_7_the_deviation_of_a_filter_is_the_biased_one() -> None:
    # A group norm after the convolution hides this in the logits, so the filter itself is looked at.
    reading = google.FORMAT.read(file("hybrid"))
    name = "patch_embed.backbone.stages.0.blocks.0.conv1.weight"
    w = reading.tensors[name].double()
    centred = w - w.mean(dim=(1, 2, 3), keepdim=True)
    expected = centred / (centred.square().mean(dim=(1, 2, 3), keepdim=True).sqrt() + 1e-5)
    conv = StdConv(reading.model.resnet, (64, 64), 1)
    conv.load_state_dict({"weight": reading.tensors[name]})
    found = conv(torch.eye(64).reshape(64, 64, 1, 1)).detach().reshape(64, 64).T
    torch.testing.assert_close(found.double(), expected.reshape(64, 64), atol=1e-5, rtol=0)
    assert (found - found * (63 / 64) ** 0.5).abs().max() > 1e-3


def test_mistake_8_symmetric_padding_would_show() -> None:
    for case in ("hybrid", "root"):
        reading = google.FORMAT.read(file(case))
        resnet = replace(reading.model.resnet, padding="fixed")
        for size in recorded()[case]["logits"]:
            assert distance(case, reading, size) <= 1e-4 < 1e-2 < distance(case, reading, size, resnet=resnet)


@pytest.mark.parametrize("classes", [21_843, 21_841, 1000])
def test_mistake_14_class_names_are_never_guessed_from_their_number(classes: int) -> None:
    head = {"head/kernel": (192, classes), "head/bias": (classes,)}
    reading = google.FORMAT.read(raw(of({**shapes_of_21k(192, 16, 197), **head})))
    assert reading.model.num_classes == classes and reading.class_names is None


def test_mistake_20_a_grid_that_is_no_square_is_asked_for_and_not_guessed() -> None:
    changed = dict(file("gap").tensors)
    changed[google.POSITIONS] = changed[google.POSITIONS][:, :15]
    with pytest.raises(UsageError, match=r"15 positions of patches are no square grid.*--model\.img-size HEIGHT WIDTH"):
        google.FORMAT.read(raw(changed))
    with pytest.raises(UsageError, match="no square grid"):
        google.FORMAT.read(raw(changed, img_size=(32, 40)))  # 20 patches
    assert google.FORMAT.read(raw(changed, img_size=(24, 40))).model.grid == (3, 5)
    # A size that is asked for beside a square table is for resizing, which comes later.
    assert google.FORMAT.read(file("gap", img_size=(16, 64))).model.grid == (4, 4)


def test_an_option_that_the_file_says_otherwise_is_refused() -> None:
    with pytest.raises(UsageError, match=r"--model\.num-heads 8: the file says 4"):
        google.FORMAT.read(file("token", num_heads=8))
    assert google.FORMAT.read(file("token", num_heads=4)).model.num_heads == 4


def test_without_positions_the_size_is_asked_for() -> None:
    bare = {name: x for name, x in file("gap").tensors.items() if name != google.POSITIONS}
    with pytest.raises(UsageError, match=r"no positions.*--model\.img-size"):
        google.FORMAT.read(raw(bare))
    model = google.FORMAT.read(raw(bare, img_size=32)).model
    assert (model.pos_embed, model.size) == ("none", (32, 32))


def test_a_file_of_another_kind_does_not_fit() -> None:
    assert not google.FORMAT.fits(replace(file("token"), kind="safetensors"))
    assert not google.FORMAT.fits(raw({"cls_token": torch.zeros(1, 1, 4)}))
    assert not google.FORMAT.fits(raw({}))


@pytest.mark.parametrize("case", CASES)
def test_written_again_a_file_is_bit_for_bit_what_it_was(case: str) -> None:
    assert google.FORMAT.write is not None
    found = file(case)
    reading = google.FORMAT.read(found)
    writing = google.FORMAT.write(as_bundle(reading))
    assert writing.kind == "npz" and not writing.files
    assert {name: tuple(x.shape) for name, x in writing.tensors.items()} == {
        name: tuple(shape) for name, shape in recorded()[case]["shapes"].items()
    }
    assert all(torch.equal(x, found.tensors[name]) and x.is_contiguous() for name, x in writing.tensors.items())
    again = google.FORMAT.read(raw(writing.tensors))
    assert again.model == reading.model
    assert all(torch.equal(x, reading.tensors[name]) for name, x in again.tensors.items())
    assert not any("warning" in said for said in writing.said)


def test_fixed_positions_are_written_out_as_a_table() -> None:
    ours = bundle(
        pos_embed="sincos2d", class_token=False, global_pool="norm_then_avg", act_layer="gelu_tanh", num_classes=3
    )
    writing = google.write(ours)
    reading = google.read(raw(writing.tensors))
    assert "positions: sincos2d written out as a table" in writing.said
    x = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(build(as_bundle(reading))(x), build(ours)(x), atol=1e-6, rtol=0)


def test_a_class_token_without_position_gets_one_of_zeros() -> None:
    ours = bundle(no_embed_class=True, act_layer="gelu_tanh")
    writing = google.write(ours)
    reading = google.read(raw(writing.tensors))
    assert not reading.tensors["pos_embed"][:, 0].any()
    x = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(build(as_bundle(reading))(x), build(ours)(x), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"reg_tokens": 2}, "model.reg_tokens = 2"),
        ({"qk_norm": True}, "model.qk_norm = True"),
        ({"init_values": 0.1}, "model.init_values = 0.1"),
        ({"distilled": True}, "model.distilled = True"),
        ({"qkv_bias": False}, "model.qkv_bias = False"),
        ({"act_layer": "relu"}, "model.act_layer = 'relu'"),
        ({"global_pool": "norm_then_avg"}, "model.class_token = True"),
        ({"global_pool": "map", "class_token": False}, "model.global_pool = 'map'"),
        ({"pos_at": "layers"}, "model.pos_at = 'layers'"),
        ({"pos_embed": "rope2d", "pos_at": "layers"}, "model.pos_embed = 'rope2d'"),
        ({"img_size": (16, 24)}, r"model.img_size = \(16, 24\)"),
        ({"representation_size": 8, "representation_act": "gelu"}, "model.representation_act = 'gelu'"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_what_the_format_has_no_place_for_is_refused_by_its_option(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        google.write(bundle(**options))


def test_what_readers_do_otherwise_is_said() -> None:
    said = google.write(bundle(act_layer="gelu", norm_eps=1e-5)).said
    assert any("exact GELU" in sentence for sentence in said)
    assert any("norm_eps is 1e-05" in sentence for sentence in said)
    assert any("resize shorter" in sentence for sentence in said)
