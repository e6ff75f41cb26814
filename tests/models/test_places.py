"""Every kind of positions at every place: against the literal network, at other grids, in learning, in export."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.models.literal import Literal
from tests.models.toys import pictures, randomise, toy, toy_config
from vitrine.errors import BadConfig, UsageError
from vitrine.models.positions import resize
from vitrine.models.relative import moved
from vitrine.models.vit import Attention, VisionTransformer, use_attention
from vitrine.train.optim import decays

INPUT, OWN, SHARED = ({"pos_at": place} for place in ("input", "layers", "layers_shared"))
KINDS: dict[str, tuple[dict[str, Any], ...]] = {
    "none": (INPUT,),
    "learn": (INPUT, OWN, SHARED),
    "sincos1d": (INPUT, OWN),
    "learn2d": (INPUT, OWN, SHARED),
    "sincos2d": (INPUT, OWN),
    "sincos2d_mae": (INPUT, OWN),
    "rel1d": (OWN, SHARED),
    "rel_shaw": (OWN, SHARED),
    "rel_bias2d": (OWN, SHARED),
    "rope2d": (OWN,),
}
ALL = [{"pos_embed": kind, **place} for kind, places in KINDS.items() for place in places]
LEARNT = [options for options in ALL if options["pos_embed"] in ("learn", "learn2d", "rel1d", "rel_shaw", "rel_bias2d")]
EVERY = pytest.mark.parametrize("options", ALL, ids=lambda o: f"{o['pos_embed']} {o['pos_at']}")
EXTRA_ROWS = 3
PREFIXES: dict[str, dict[str, Any]] = {
    "class token": {},
    "class token without a position": {"no_embed_class": True},
    "class, distillation, registers": {"distilled": True, "reg_tokens": 2},
    "none": {"class_token": False, "global_pool": "norm_then_avg"},
}


@pytest.mark.parametrize("prefix", PREFIXES)
@EVERY
@torch.no_grad()
def test_equals_the_literal_network(options: dict[str, Any], prefix: str) -> None:
    # Two rows of three patches: rows and columns cannot be mistaken for each other; Shaw's clip of 2 acts.
    model = toy(img_size=(16, 24), embed_dim=24, pos_clip=2, **options, **PREFIXES[prefix]).double()
    images = pictures(2, 3, 16, 24, dtype=torch.float64)
    expected = torch.stack([torch.from_numpy(Literal(model).tokens(image)) for image in images])
    for way in ("fused", "written"):
        use_attention(model, way)
        torch.testing.assert_close(model.forward_features(images), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", ["sincos1d", "sincos2d", "sincos2d_mae", "rel_shaw", "rope2d"])
@torch.no_grad()
def test_kinds_without_a_table_of_the_grid_equal_the_literal_network_on_any(kind: str) -> None:
    model = toy(img_size=(16, 24), embed_dim=24, pos_clip=2, pos_embed=kind, pos_at="layers").double()
    image = pictures(3, 24, 8, dtype=torch.float64)
    expected = torch.from_numpy(Literal(model).tokens(image))
    torch.testing.assert_close(model.forward_features(image[None])[0], expected, rtol=0, atol=1e-10)


@EVERY
@torch.no_grad()
def test_equal_patches_are_told_apart_by_what_reaches_the_values(options: dict[str, Any]) -> None:
    model = toy(global_pool="norm_then_avg", class_token=False, **options).double()
    tokens = model.forward_features(torch.ones(1, 3, 32, 32, dtype=torch.float64))[0]
    differ = (tokens - tokens[:1]).abs().amax(1) > 1e-6
    # Where positions act on weights alone, those differ, but a mixture of equal values does not.
    assert differ[1:].any().item() is (options["pos_embed"] not in ("none", "rope2d", "rel1d", "rel_bias2d"))


@EVERY
@torch.no_grad()
def test_the_order_of_patches_matters(options: dict[str, Any]) -> None:
    model, image = toy(**options).double(), pictures(1, 3, 32, 32, dtype=torch.float64)
    turned = image.unflatten(3, (4, 8)).flip(3).flatten(3)  # columns of patches the other way round
    turned = turned.unflatten(2, (4, 8)).roll(1, 2).flatten(2, 3)
    assert ((model(turned) - model(image)).abs().max() > 1e-4).item() is (options["pos_embed"] != "none")


CONVENTIONS: tuple[dict[str, Any], ...] = (
    {},
    {"pos_align_corners": True, "pos_interpolation": "bilinear"},
    {"pos_offset": 0.1, "pos_antialias": False},
)


@EVERY
@torch.no_grad()
def test_another_grid_is_the_model_moved_there(options: dict[str, Any]) -> None:
    for convention in CONVENTIONS if options in LEARNT else CONVENTIONS[:1]:
        for sides in ((48, 48), (16, 40), (24, 24), (8, 8)):
            model, images = toy(**options, **convention).double(), pictures(2, 3, *sides, dtype=torch.float64)
            config = toy_config(img_size=sides, **options, **convention)
            there = VisionTransformer(config).eval().double()
            there.load_state_dict(moved(model.state_dict(), model.config, config), strict=True)
            logits = model(images)
            assert logits.isfinite().all()
            torch.testing.assert_close(there(images), logits, rtol=0, atol=1e-12)


@torch.no_grad()
def test_a_model_is_moved_by_the_convention_of_the_new_one() -> None:
    model = toy()
    config = toy_config(img_size=48, pos_interpolation="bilinear", pos_align_corners=True)
    expected = resize(model.pos_embed, (4, 4), (6, 6), interpolation="bilinear", align_corners=True)
    assert torch.equal(moved(model.state_dict(), model.config, config)["pos_embed"], expected)


@EVERY
def test_gradients_reach_every_parameter(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = randomise(VisionTransformer(toy_config(distilled=True, reg_tokens=2, **options)))
    for sides in ((32, 32), (24, 40)):
        model.zero_grad()
        F.cross_entropy(model(pictures(4, 3, *sides)), torch.arange(4)).backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.abs().max() > 1e-7, name
    own = [name for name, p in model.named_parameters() if "pos" in name]
    assert bool(own) is (options in LEARNT)
    assert not any(decays(name, model.get_parameter(name)) for name in own)


@pytest.mark.parametrize("options", LEARNT, ids=lambda o: f"{o['pos_embed']} {o['pos_at']}")
def test_every_row_of_a_table_that_a_picture_uses_learns(options: dict[str, Any]) -> None:
    model = toy(**options)
    F.cross_entropy(model(pictures(4, 3, 32, 32)), torch.arange(4)).backward()
    for name, parameter in model.named_parameters():
        if "pos" in name:
            rows = parameter.grad.flatten(0, -2).abs().amax(-1)
            # In the last layer the class token is the only query whose output is used.
            used = slice(None) if "blocks.1" not in name else slice(-EXTRA_ROWS, None, 2)
            assert (rows[used] > 0).all(), name


@EVERY
def test_eight_pictures_are_learnt_by_heart(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = VisionTransformer(toy_config(num_classes=8, depth=1, img_size=16, **options)).train()
    images, labels = pictures(8, 3, 16, 16), torch.arange(8)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(40):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
    assert loss < 0.05
    assert torch.equal(model.eval()(images).argmax(1), labels)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"pos_embed": "none", "pos_at": "layers"}, "no positions: input"),
        ({"pos_embed": "rope2d"}, "inside the attention: layers."),
        ({"pos_embed": "rope2d", "pos_at": "layers_shared"}, "no parameters to share: layers"),
        ({"pos_embed": "sincos2d", "pos_at": "layers_shared"}, "no parameters to share: layers"),
        ({"pos_embed": "rel1d"}, "inside the attention: layers or layers_shared"),
        ({"pos_embed": "learn2d", "embed_dim": 9, "num_heads": 1}, "multiple of 2"),
    ],
)
def test_what_makes_no_sense_is_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(BadConfig, match=says):
        toy_config(**options)


def test_attention_with_relative_positions_wants_to_know_the_place() -> None:
    attention = Attention(toy_config(pos_embed="rel1d", pos_at="layers"))
    with pytest.raises(UsageError, match="needs the place of its tokens"):
        attention(pictures(1, 17, 48))


EXPORTED: tuple[dict[str, Any], ...] = (
    {"pos_embed": "learn"},
    {"pos_embed": "rel_shaw", "pos_at": "layers"},
    {"pos_embed": "rope2d", "pos_at": "layers", "reg_tokens": 2, "mlp_layer": "swiglu"},
    {"pos_embed": "rel_bias2d", "pos_at": "layers_shared", "global_pool": "map"},
)


@pytest.mark.parametrize("options", EXPORTED, ids=lambda o: o["pos_embed"])
@torch.no_grad()
def test_a_model_can_be_exported(options: dict[str, Any]) -> None:
    model, images = toy(**options), pictures(2, 3, 24, 32)
    exported = torch.export.export(model, (images,)).module()
    torch.testing.assert_close(exported(images), model(images), rtol=0, atol=1e-5)
