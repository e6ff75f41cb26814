"""transformers' files, saved by transformers at random weights, read here; and ours, loaded there strictly."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests import made
from tests.models.toys import pictures, randomise
from tests.parity import peers  # noqa: F401  makes transformers importable beside a torchvision without operators
from tests.weights.formats.readings import bundle_of, gap, model_of, raw, round_trip
from vitrine.errors import BadData, UsageError
from vitrine.weights.bundle import build
from vitrine.weights.foreign import Raw, Reading
from vitrine.weights.formats.transformers import FORMAT
from vitrine.weights.opening import open_model

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from transformers import (
        DeiTConfig,
        DeiTForImageClassification,
        DeiTForImageClassificationWithTeacher,
        DeiTModel,
        Dinov2Config,
        Dinov2ForImageClassification,
        Dinov2Model,
        Dinov2WithRegistersConfig,
        Dinov2WithRegistersModel,
        ViTConfig,
        ViTForImageClassification,
        ViTForMaskedImageModeling,
        ViTModel,
    )

CLOSE = 2e-5
SIZE: dict[str, Any] = {
    "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3, "image_size": 32, "patch_size": 8,
    "attn_implementation": "eager",
}  # fmt: skip
VIT = {**SIZE, "intermediate_size": 96, "num_labels": 5}
DINO = {**SIZE, "mlp_ratio": 2}
SIDES = ((32, 32), (48, 48), (16, 24), (64, 32))


def saved(model: Any, folder: Path, **options: Any) -> Raw:
    """The model written by transformers, as it is opened here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(folder, **options)
    config = json.loads((folder / "config.json").read_text())
    return raw(load_file(folder / "model.safetensors"), "safetensors", config=config)


def home(kind: Any, config: Any, seed: int = 3) -> Any:
    """A model of transformers with every parameter random, in eval mode."""
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return randomise(kind(config).eval(), seed)


def largest_gap(model: Any, reading: Reading, output: Any, sides: Any = SIDES, **options: Any) -> float:
    """The largest |difference| of our logits to `output` of the home's answer, over all sizes."""
    ours, found = model_of(reading), 0.0
    for height, width in sides:
        images = pictures(2, reading.model.in_chans, height, width)
        more = options if (height, width) != (32, 32) else {}
        with torch.no_grad():
            found = max(found, gap(ours(images), output(model(images, **more))))
    return found


def logits(answer: Any) -> torch.Tensor:
    return answer.logits


RESIZED = {"interpolate_pos_encoding": True}


@pytest.mark.parametrize("original", [True, False], ids=["version 4 names", "version 5 names"])
@pytest.mark.parametrize(
    "options",
    [{}, {"hidden_act": "gelu_pytorch_tanh"}, {"hidden_act": "quick_gelu"}, {"hidden_act": "relu"},
     {"qkv_bias": False}, {"layer_norm_eps": 1e-3}, {"num_channels": 1}],
    ids=str,
)  # fmt: skip
def test_a_classifier_equals_transformers(tmp_path: Path, original: bool, options: dict[str, Any]) -> None:
    model = home(ViTForImageClassification, ViTConfig(**VIT, **options))
    file = saved(model, tmp_path, save_original_format=original)
    assert any(".encoder.layer." in name for name in file.tensors) == original
    assert FORMAT.fits(file)
    assert largest_gap(model, FORMAT.read(file), logits, **RESIZED) <= CLOSE


def test_a_picture_that_is_not_square(tmp_path: Path) -> None:
    model = home(ViTForImageClassification, ViTConfig(**{**VIT, "image_size": [16, 40]}))
    reading = FORMAT.read(saved(model, tmp_path))
    assert reading.model.img_size == (16, 40)
    assert largest_gap(model, reading, logits, [(16, 40)]) <= CLOSE


@pytest.mark.parametrize("kind", [ViTForImageClassification, DeiTForImageClassification])
@torch.no_grad()
def test_a_folder_in_bfloat16_is_opened_and_computed_in_float32(tmp_path: Path, kind: Any) -> None:
    model = home(kind, kind.config_class(**VIT)).bfloat16()
    saved(model, tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"size": 32, "image_mean": [0.1, 0.2, 0.3]}))
    found = open_model(tmp_path)
    assert found.format == "hf"
    assert "weights: stored as bfloat16, computed in float32" in found.said
    assert found.bundle.preprocess.mean == (0.1, 0.2, 0.3)
    images = pictures(2, 3, 32, 32)
    assert gap(build(found.bundle)(images), model.float()(images).logits) <= CLOSE


def test_mistake_3_rows_before_the_patches_are_counted_from_the_table(tmp_path: Path) -> None:
    """ViT has one, DeiT two; a table that belongs to neither is refused, with the numbers."""
    file = saved(home(ViTForImageClassification, ViTConfig(**VIT)), tmp_path)
    bare = replace(file, config={}, given={"num_heads": 3})
    assert FORMAT.read(bare).model.img_size == 32
    deit = saved(home(DeiTForImageClassificationWithTeacher, DeiTConfig(**VIT)), tmp_path / "deit")
    assert FORMAT.read(replace(deit, config={}, given={"num_heads": 3})).model.img_size == 32
    table = "vit.embeddings.position_embeddings"
    short = {**file.tensors, table: file.tensors[table][:, :12]}
    with pytest.raises(BadData, match="12 positions do not belong to 32 x 32 pixels in patches of 8 and 1 tokens more"):
        FORMAT.read(replace(file, tensors=short))
    with pytest.raises(UsageError, match=r"11 positions of patches are no square grid.*--model.img-size"):
        FORMAT.read(replace(bare, tensors=short))
    given = FORMAT.read(replace(bare, given={"num_heads": 3, "img_size": (16, 64)}))
    assert given.model.grid == (2, 8)
    larger = FORMAT.read(replace(bare, given={"num_heads": 3, "img_size": 64}))
    assert larger.model.img_size == 32  # the size to resize to, which is done after


def test_mistake_10_the_epsilon_is_that_of_config_json(tmp_path: Path) -> None:
    """Small tokens make it show: with timm's 1e-6 the logits are off."""
    model = home(ViTForImageClassification, ViTConfig(**VIT))
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if "embeddings" in name:
                tensor.mul_(1e-3)
    file = saved(model, tmp_path)
    reading = FORMAT.read(file)
    assert reading.model.norm_eps == 1e-12
    assert FORMAT.read(replace(file, config={}, given={"num_heads": 3})).model == reading.model
    assert largest_gap(model, reading, logits, [(32, 32)]) <= CLOSE
    wrong = replace(reading, model=replace(reading.model, norm_eps=1e-6))
    assert largest_gap(model, wrong, logits, [(32, 32)]) > 10 * CLOSE


def test_mistake_16_names_are_not_renamed_in_the_wrong_order(tmp_path: Path) -> None:
    """`attention.output.dense` is no `output.dense`: every tensor of the file goes to its own place."""
    file = saved(home(ViTForImageClassification, ViTConfig(**VIT)), tmp_path)
    reading = FORMAT.read(file)
    stem = "vit.encoder.layer.1."
    assert torch.equal(
        reading.tensors["blocks.1.attn.proj.weight"], file.tensors[stem + "attention.output.dense.weight"]
    )
    assert torch.equal(reading.tensors["blocks.1.mlp.fc2.weight"], file.tensors[stem + "output.dense.weight"])
    assert set(reading.used) == set(file.tensors)
    assert not reading.dropped


@pytest.mark.parametrize("original", [True, False])
@pytest.mark.parametrize("act", ["tanh", "gelu"])
def test_mistake_16_a_model_without_prefix_and_its_pooler(tmp_path: Path, original: bool, act: str) -> None:
    model = home(ViTModel, ViTConfig(**VIT, pooler_output_size=40, pooler_act=act))
    reading = FORMAT.read(saved(model, tmp_path, save_original_format=original))
    assert (reading.model.num_classes, reading.model.representation_size) == (0, 40)
    assert largest_gap(model, reading, lambda answer: answer.pooler_output, **RESIZED) <= CLOSE
    with torch.no_grad():
        tokens = model_of(reading).forward_features(pictures(2, 3, 32, 32))
        assert gap(tokens, model(pictures(2, 3, 32, 32)).last_hidden_state) <= CLOSE


def test_mistake_16_no_pooler_is_made_up_where_the_file_has_none(tmp_path: Path) -> None:
    model = home(lambda config: ViTModel(config, add_pooling_layer=False), ViTConfig(**VIT))
    reading = FORMAT.read(saved(model, tmp_path))
    assert reading.model.representation_size == 0
    assert not reading.fresh
    assert largest_gap(model, reading, lambda answer: answer.last_hidden_state[:, 0], **RESIZED) <= CLOSE


def test_mistake_17_the_number_of_heads_is_not_that_of_the_width(tmp_path: Path) -> None:
    """transformers' "small" is 768 wide, 8 deep, with 8 heads: config.json says so, and without it one is asked."""
    config = ViTConfig(
        **{**VIT, "hidden_size": 768, "num_hidden_layers": 8, "num_attention_heads": 8, "intermediate_size": 8}
    )
    model = home(ViTForImageClassification, config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.2 if parameter.dim() > 1 else 1.0)  # so wide a model has large logits otherwise
    file = saved(model, tmp_path)
    assert FORMAT.read(file).model.num_heads == 8
    with pytest.raises(UsageError, match=r"width 768 with 8 blocks is no published size.*--model.num-heads N"):
        FORMAT.read(replace(file, config={}))
    reading = FORMAT.read(replace(file, config={}, given={"num_heads": 8}))
    assert largest_gap(model, reading, logits, [(32, 32)]) <= CLOSE


def test_masked_image_modelling_leaves_its_mask_and_decoder(tmp_path: Path) -> None:
    model = home(ViTForMaskedImageModeling, ViTConfig(**VIT, encoder_stride=8))
    reading = FORMAT.read(saved(model, tmp_path))
    assert set(reading.dropped) == {"vit.embeddings.mask_token", "decoder.0.weight", "decoder.0.bias"}
    assert largest_gap(model.vit, reading, lambda answer: answer.last_hidden_state[:, 0], **RESIZED) <= CLOSE


@pytest.mark.parametrize("original", [True, False])
def test_deit_averages_its_two_heads(tmp_path: Path, original: bool) -> None:
    model = home(DeiTForImageClassificationWithTeacher, DeiTConfig(**VIT))
    reading = FORMAT.read(saved(model, tmp_path, save_original_format=original))
    assert reading.model.distilled
    assert largest_gap(model, reading, logits, **RESIZED) <= CLOSE


def test_deit_with_one_head_keeps_the_second_token_as_a_register(tmp_path: Path) -> None:
    model = home(DeiTForImageClassification, DeiTConfig(**VIT))
    reading = FORMAT.read(saved(model, tmp_path))
    assert (reading.model.distilled, reading.model.reg_tokens) == (False, 1)
    assert any("kept as a register" in sentence for sentence in reading.said)
    assert largest_gap(model, reading, logits, **RESIZED) <= CLOSE
    backbone = home(DeiTModel, DeiTConfig(**VIT))
    reading = FORMAT.read(saved(backbone, tmp_path / "model"))
    assert largest_gap(backbone, reading, lambda answer: answer.pooler_output, **RESIZED) <= CLOSE


@pytest.mark.parametrize("original", [True, False])
@pytest.mark.parametrize("swiglu", [False, True], ids=["MLP", "SwiGLU"])
@pytest.mark.parametrize("registers", [0, 3])
def test_dinov2_equals_transformers(tmp_path: Path, original: bool, swiglu: bool, registers: int) -> None:
    facts = {**DINO, "use_swiglu_ffn": swiglu}
    config = Dinov2WithRegistersConfig(**facts, num_register_tokens=registers) if registers else Dinov2Config(**facts)
    model = home(Dinov2WithRegistersModel if registers else Dinov2Model, config)
    file = saved(model, tmp_path, save_original_format=original)
    reading = FORMAT.read(file)
    assert set(reading.dropped) == {"embeddings.mask_token"}
    assert (reading.model.reg_tokens, reading.model.mlp_layer) == (registers, "swiglu" if swiglu else "mlp")
    assert largest_gap(model, reading, lambda answer: answer.pooler_output) <= CLOSE
    bare = FORMAT.read(replace(file, config={}, given={"num_heads": 3}))
    assert bare.model == replace(reading.model)


def test_dinov2s_head_is_refused_and_its_backbone_read(tmp_path: Path) -> None:
    model = home(Dinov2ForImageClassification, Dinov2Config(**DINO, num_labels=5))
    file = saved(model, tmp_path)
    with pytest.raises(UsageError, match=r"class token beside the mean of the patches.*--model.num-classes 0"):
        FORMAT.read(file)
    reading = FORMAT.read(replace(file, given={"num_classes": 0}))
    assert {"classifier.weight", "classifier.bias"} <= set(reading.dropped)
    assert largest_gap(model.dinov2, reading, lambda answer: answer.pooler_output) <= CLOSE


def test_a_head_is_dropped_on_request_alone(tmp_path: Path) -> None:
    model = home(ViTForImageClassification, ViTConfig(**VIT))
    file = saved(model, tmp_path)
    reading = FORMAT.read(replace(file, given={"num_classes": 0}))
    assert set(reading.dropped) == {"classifier.weight", "classifier.bias"}
    assert largest_gap(model.vit, reading, lambda answer: answer.last_hidden_state[:, 0], [(32, 32)]) <= CLOSE


def test_class_names_are_id2label_unless_it_holds_stand_ins(tmp_path: Path) -> None:
    names = ["tench", "crane", "crane", "owl", "emu"]
    model = home(ViTForImageClassification, ViTConfig(**VIT))
    file = saved(model, tmp_path)
    assert FORMAT.read(file).class_names is None
    labels = {str(index): name for index, name in enumerate(names)}
    assert FORMAT.read(replace(file, config={**file.config, "id2label": labels})).class_names == tuple(names)
    assert FORMAT.read(replace(file, config={**file.config, "id2label": {"0": "tench"}})).class_names is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"hidden_act": "mish"}, "hidden_act 'mish' has no equal here"),
        ({"model_type": "vit_mae"}, "model_type 'vit_mae' of transformers is not read"),
        ({"num_attention_heads": 5}, "5 attention heads do not divide the 48 queries"),
        ({"pooler_act": "relu"}, "pooler_act 'relu' has no equal here"),
    ],
)
def test_what_has_no_equal_is_named(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    kind = ViTModel if "pooler_act" in change else ViTForImageClassification
    file = saved(home(kind, ViTConfig(**VIT)), tmp_path)
    with pytest.raises(UsageError, match=words):
        FORMAT.read(replace(file, config={**file.config, **change}))


@pytest.mark.parametrize("value", ["x", [], {}, True, [1, 2, 3]])
@pytest.mark.parametrize("name", ["num_attention_heads", "layer_norm_eps", "image_size"])
def test_a_config_of_nonsense_is_refused_by_name(tmp_path: Path, name: str, value: Any) -> None:
    file = saved(home(ViTForImageClassification, ViTConfig(**VIT)), tmp_path)
    with pytest.raises(BadData, match=f"{name} = .* in the config beside it"):
        FORMAT.read(replace(file, config={**file.config, name: value}))


def test_a_missing_and_an_unknown_tensor_are_named(tmp_path: Path) -> None:
    file = saved(home(ViTForImageClassification, ViTConfig(**VIT)), tmp_path)
    tensors = {**file.tensors, "vit.extra": torch.ones(1)}
    del tensors["vit.encoder.layer.1.output.dense.bias"]
    with pytest.raises(BadData, match=r"missing: vit.encoder.layer.1.output.dense.bias; unexpected: vit.extra"):
        FORMAT.read(replace(file, tensors=tensors))


def test_mistake_11_the_constants_are_those_of_the_file(tmp_path: Path) -> None:
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    file = saved(home(ViTForImageClassification, ViTConfig(**VIT)), tmp_path)
    said = replace(
        file, preprocessor={"image_processor_type": "ViTImageProcessor", "image_mean": mean, "image_std": std}
    )
    assert FORMAT.read(said).preprocess.mean == tuple(mean)
    assert FORMAT.read(said).preprocess.std == tuple(std)
    plain = FORMAT.read(file)
    assert (plain.preprocess.mean, plain.preprocess.std) == ((0.5,) * 3, (0.5,) * 3)
    assert any("no preprocessor_config.json" in sentence for sentence in plain.said)
    deit = saved(home(DeiTForImageClassification, DeiTConfig(**VIT)), tmp_path / "deit")
    assert FORMAT.read(deit).preprocess.mean == tuple(mean)


# ---- written here, loaded there ----


@pytest.mark.parametrize(
    "options",
    [{}, {"act_layer": "gelu_tanh"}, {"act_layer": "quick_gelu"}, {"act_layer": "relu"}, {"qkv_bias": False},
     {"img_size": (16, 24)}, {"in_chans": 1}, {"norm_eps": 1e-3}, {"num_classes": 0, "representation_size": 24},
     {"num_classes": 0}],
    ids=str,
)  # fmt: skip
def test_what_is_written_loads_there_strictly_with_our_logits(tmp_path: Path, options: dict[str, Any]) -> None:
    bundle = made.bundle(**{"act_layer": "gelu", **options})
    assert FORMAT.write is not None
    writing = FORMAT.write(bundle)
    save_file(dict(writing.tensors), tmp_path / "model.safetensors", dict(writing.metadata))
    for name, facts in writing.files.items():
        (tmp_path / name).write_text(json.dumps(facts))
    config = bundle.model
    kind = ViTForImageClassification if config.num_classes else ViTModel
    rest = {} if config.num_classes or config.representation_size else {"add_pooling_layer": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, account = kind.from_pretrained(tmp_path, output_loading_info=True, **rest)
    assert not any(account[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    images = pictures(2, config.in_chans, *config.size)
    with torch.no_grad():
        answer = model.eval()(images)
        ours = model_of(Reading(model=config, preprocess=bundle.preprocess, tensors=bundle.tensors, used=()))(images)
    theirs = answer.logits if config.num_classes else answer.pooler_output
    assert gap(ours, answer.last_hidden_state[:, 0] if theirs is None else theirs) <= CLOSE
    if config.num_classes:
        assert model.config.id2label == dict(enumerate(bundle.class_names))
        assert model.config.label2id == {name: index for index, name in enumerate(bundle.class_names)}


def test_round_trip_is_bit_identical() -> None:
    bundle = made.bundle(norm_eps=1e-6, act_layer="gelu_tanh")
    back = round_trip(FORMAT, bundle)
    assert bundle_of(back).class_names == bundle.class_names
    assert back.model == replace(bundle.model, pos_antialias=False)
    assert replace(back.preprocess, crop_pct=0.9) == bundle.preprocess
    assert int(16 / back.preprocess.crop_pct) == int(16 / 0.9)
    for options in ({"num_classes": 0}, {"num_classes": 0, "representation_size": 24}, {"qkv_bias": False}):
        round_trip(FORMAT, made.bundle(**options))


@pytest.mark.parametrize(
    "options",
    [{"global_pool": "norm_then_avg"}, {"reg_tokens": 2}, {"pos_embed": "sincos2d"}, {"init_values": 1.0},
     {"mlp_layer": "swiglu"}, {"representation_size": 8}, {"head_dim": 4}, {"qk_norm": True}, {"final_norm": False}],
    ids=str,
)  # fmt: skip
def test_what_transformers_vit_cannot_express_is_refused_by_name(options: dict[str, Any]) -> None:
    (name,) = options
    assert FORMAT.write is not None
    with pytest.raises(UsageError, match=f"model.{name}"):
        FORMAT.write(made.bundle(**options))
