"""big_vision's .npz against logits that its own code gave (recorded in `tests/golden/google.json`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.weights.formats.filled import filled, pixels, recorded
from vitrine.errors import BadData, UsageError
from vitrine.models.vit import VisionTransformer
from vitrine.weights.foreign import Raw, Reading
from vitrine.weights.formats import big_vision, google
from vitrine.weights.resample import resized

CASES = ("bv_gap", "bv_tok", "bv_map", "bv_rep", "bv_scan", "bv_sincos")


def raw(tensors: Mapping[str, Tensor], **given: Any) -> Raw:
    return Raw(path="some.npz", kind="npz", tensors=tensors, given=given)


def file(case: str, **given: Any) -> Raw:
    """The file of a recorded case as it is read."""
    tensors = {name: torch.from_numpy(x) for name, x in filled(recorded()[case]["shapes"]).items()}
    return raw(tensors, **({"img_size": 32} if case == "bv_sincos" else {}), **given)


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


SIZES = [(case, size) for case in CASES for size in recorded()[case]["logits"]]


@pytest.mark.parametrize(("case", "size"), SIZES)
def test_logits_are_those_of_jax_at_the_own_size_and_at_others(case: str, size: str) -> None:
    found = file(case)
    assert big_vision.FORMAT.fits(found) and not google.FORMAT.fits(found)
    reading = big_vision.FORMAT.read(found)
    assert set(reading.used) == set(found.tensors) and not reading.dropped and not reading.fresh
    assert distance(case, reading, size) <= 2e-5


def test_conventions_of_the_source_come_along() -> None:
    reading = big_vision.FORMAT.read(file("bv_gap"))
    model, pre = reading.model, reading.preprocess
    assert (model.norm_eps, model.act_layer, model.class_token) == (1e-6, "gelu_tanh", False)
    assert (model.pos_interpolation, model.pos_align_corners) == ("bilinear", True)
    assert (pre.resize, pre.crop_pct, pre.interpolation) == ("shorter", 0.875, "box")
    assert pre.mean == pre.std == (0.5, 0.5, 0.5)
    assert any("before 2022" in said for said in big_vision.FORMAT.read(file("bv_rep")).said)
    assert big_vision.FORMAT.write is None


def test_mistake_2_numbers_of_the_other_code_base_are_not_taken_for_these() -> None:
    mixed = {name.replace("MlpBlock_0", "MlpBlock_3"): x for name, x in file("bv_gap").tensors.items()}
    with pytest.raises(BadData, match="missing: Transformer/encoderblock_0/MlpBlock_0/Dense_0/kernel"):
        big_vision.FORMAT.read(raw(mixed))


def test_mistake_3_an_old_table_with_a_row_for_the_class_token_is_added_to_it() -> None:
    # The same function with the token's share moved into the table: v = (v - row) + row.
    row = torch.linspace(-1, 1, 32).reshape(1, 1, 32)
    old = dict(file("bv_tok").tensors)
    old["cls"] = old["cls"] - row
    table = torch.cat([row, old.pop("pos_embedding")], dim=1)
    for name in ("pos_embedding", "Transformer/pos_embedding"):
        found = raw({**old, name: table})
        assert big_vision.FORMAT.fits(found) and not google.FORMAT.fits(found)
        reading = big_vision.FORMAT.read(found)
        assert reading.tensors["pos_embed"].shape == (1, 16, 32)
        assert any("old table" in said for said in reading.said)
        assert distance("bv_tok", reading) <= 2e-5
        assert distance("bv_tok", reading, "48x48") <= 2e-5
    # Files older still have it where Google's first code did, and are read as that.
    oldest = raw({**old, google.POSITIONS: table})
    assert google.FORMAT.fits(oldest) and not big_vision.FORMAT.fits(oldest)
    assert distance("bv_tok", google.FORMAT.read(oldest), "48x48") <= 2e-5


def test_mistake_4_the_class_token_has_no_position() -> None:
    reading = big_vision.FORMAT.read(file("bv_tok"))
    assert reading.model.no_embed_class
    assert reading.tensors["pos_embed"].shape == (1, 16, 32)
    # With the first row of a table that is one longer, the token gets what belongs to the first patch.
    table = torch.cat([reading.tensors["pos_embed"][:, :1], reading.tensors["pos_embed"]], dim=1)
    placed = replace(reading, tensors={**reading.tensors, "pos_embed": table})
    assert distance("bv_tok", reading) <= 2e-5 < 1e-2 < distance("bv_tok", placed, no_embed_class=False)


def test_mistake_6_bfloat16_becomes_float32_without_loss() -> None:
    short = {name: x.bfloat16() for name, x in file("bv_gap").tensors.items()}
    reading = big_vision.FORMAT.read(raw(short))
    assert all(x.dtype == torch.float32 for x in reading.tensors.values())
    assert "weights: stored as bfloat16, computed in float32" in reading.said
    widened = big_vision.FORMAT.read(raw({name: x.float() for name, x in short.items()}))
    assert all(torch.equal(x, widened.tensors[name]) for name, x in reading.tensors.items())


@pytest.mark.parametrize("prefix", ["params/", "opt/target/"])
def test_mistake_6_a_training_dump_gives_its_parameters_and_drops_the_rest_by_name(prefix: str) -> None:
    dump = {prefix + name: x for name, x in file("bv_gap").tensors.items()}
    beside = {"opt/state/mu" if prefix[0] == "o" else "opt/0/mu": torch.zeros(3), "chrono/steps": torch.tensor(1.0)}
    reading = big_vision.FORMAT.read(raw({**dump, **beside}))
    assert set(reading.dropped) == set(beside)
    assert distance("bv_gap", reading) <= 2e-5


@pytest.mark.parametrize("outer", ["params/", ""])
def test_of_two_towers_the_text_is_dropped_by_name(outer: str) -> None:
    tower = {f"{outer}img/{name}": x for name, x in file("bv_map").tensors.items()}
    text = {f"{outer}txt/Encoder_0/encoder_norm/scale": torch.ones(3), f"{outer}t": torch.ones(1)}
    text[f"{outer}b"] = torch.ones(1)
    found = raw({**tower, **text})
    assert big_vision.FORMAT.fits(found) and not google.FORMAT.fits(found)
    reading = big_vision.FORMAT.read(found)
    assert set(reading.dropped) == set(text)
    assert (reading.preprocess.resize, reading.preprocess.interpolation) == ("squash", "bilinear")
    assert any("embedding of the picture" in said for said in reading.said)
    assert distance("bv_map", reading) <= 2e-5
    with pytest.raises(BadData, match=f"unexpected: {outer}c"):
        big_vision.FORMAT.read(raw({**tower, **text, f"{outer}c": torch.ones(1)}))


def test_attention_pooling_may_stand_at_the_top_of_the_names() -> None:
    old = {name.removeprefix("MAPHead_0/"): x for name, x in file("bv_map").tensors.items()}
    assert distance("bv_map", big_vision.FORMAT.read(raw(old))) <= 2e-5


def test_mistake_9_the_mean_before_the_norm_would_show() -> None:
    reading = big_vision.FORMAT.read(file("bv_gap"))
    assert reading.model.global_pool == "norm_then_avg"
    tensors = {name.replace("norm.", "fc_norm.") if name.startswith("norm.") else name: x
               for name, x in reading.tensors.items()}  # fmt: skip
    mistaken = replace(reading, tensors=tensors)
    assert distance("bv_gap", mistaken, global_pool="avg_then_norm") > 1e-2


def test_mistake_9_a_residual_around_the_pooling_attention_would_show() -> None:
    reading = big_vision.FORMAT.read(file("bv_map"))
    # With the residual, x = latent + attention: the bias of the projection is where a constant can be added.
    bias = reading.tensors["attn_pool.proj.bias"] + reading.tensors["attn_pool.latent"].flatten()
    mistaken = replace(reading, tensors={**reading.tensors, "attn_pool.proj.bias": bias})
    assert distance("bv_map", reading) <= 2e-5 < 1e-2 < distance("bv_map", mistaken)


def test_mistake_20_a_grid_that_is_no_square_is_asked_for_and_not_guessed() -> None:
    changed = dict(file("bv_gap").tensors)
    changed["pos_embedding"] = changed["pos_embedding"][:, :15]
    with pytest.raises(UsageError, match=r"15 positions of patches are no square grid.*--model\.img-size HEIGHT WIDTH"):
        big_vision.FORMAT.read(raw(changed))
    reading = big_vision.FORMAT.read(raw(changed, img_size=(24, 40)))
    assert reading.model.grid == (3, 5)
    # 10 rows are 3 x 3 patches and a class token, or 2 x 5 patches: the size that is given decides.
    changed["pos_embedding"] = changed["pos_embedding"][:, :10]
    assert big_vision.FORMAT.read(raw(changed)).model.grid == (3, 3)
    assert big_vision.FORMAT.read(raw(changed, img_size=(16, 40))).model.grid == (2, 5)


def test_without_a_table_the_size_is_given_or_224() -> None:
    bare = file("bv_sincos").tensors
    reading = big_vision.FORMAT.read(raw(bare))
    assert reading.model.size == reading.preprocess.size == (224, 224)
    assert reading.model.pos_embed == "sincos2d" and "pos_embed" not in reading.tensors
    assert any("224" in said for said in reading.said)
    odd = {**bare, "embedding/kernel": torch.zeros(9, 9, 3, 32)}
    with pytest.raises(UsageError, match=r"no position table.*--model\.img-size"):
        big_vision.FORMAT.read(raw(odd))


def test_pre_logits_are_never_left_out() -> None:
    bare = {name: x for name, x in file("bv_rep").tensors.items() if not name.startswith("pre_logits")}
    with pytest.raises(BadData, match="pre_logits is missing"):
        big_vision.FORMAT.read(raw(bare))


def test_patches_that_are_no_squares_and_other_channels_are_refused() -> None:
    found = dict(file("bv_gap").tensors)
    with pytest.raises(UsageError, match="patches of 8x4 pixels"):
        big_vision.FORMAT.read(raw({**found, "embedding/kernel": torch.zeros(8, 4, 3, 32)}))
    with pytest.raises(UsageError, match="5 channels"):
        big_vision.FORMAT.read(raw({**found, "embedding/kernel": torch.zeros(8, 8, 5, 32)}))


@pytest.mark.parametrize("length", [1, 3])
def test_a_stacked_file_whose_stacks_differ_in_length_is_refused(length: int) -> None:
    found = dict(file("bv_scan").tensors)
    name = "Transformer/encoderblock/LayerNorm_1/scale"
    with pytest.raises(BadData, match=rf"of the wrong shape: .*LayerNorm_1/scale \({length}, 32\)"):
        big_vision.FORMAT.read(raw({**found, name: torch.ones(length, 32)}))
