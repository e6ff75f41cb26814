"""A ResNet and a hybrid go the whole way of a ViT: trained, saved, opened, asked, explained, judged, fine-tuned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.made import MODEL, bundle, photo, photos, trained
from tests.models.toys import toy_config
from tests.train.test_plan import TINY, facts
from vitrine.config.architecture import ResNetConfig
from vitrine.config.models import STEM
from vitrine.errors import BadConfig, UsageError
from vitrine.models.cost import num_kept
from vitrine.predict.classifier import load
from vitrine.train.plan import decide
from vitrine.weights.start import initialise

RESNET: dict[str, Any] = {"family": "resnet", "img_size": 8, "resnet": {"layers": [1]}}
HYBRID: dict[str, Any] = {
    **MODEL, "family": "hybrid", "img_size": 8, "patch_size": 1, "resnet": {"layers": [], **STEM},
}  # fmt: skip


@pytest.mark.parametrize(("model", "method", "heads"), [(RESNET, "class_map", 0), (HYBRID, "rollout", 2)])
def test_the_whole_way(tmp_path: Path, model: dict[str, Any], method: str, heads: int) -> None:
    data = str(photos(tmp_path / "data", {"a": 30, "b": 30}))
    outcome = trained(tmp_path / "run", data, model=model, epochs=2)
    assert outcome.bundle.model.family == model["family"]
    assert outcome.test is not None
    opened = load(tmp_path / "run")
    picture = photo(tmp_path / "picture.png", seed=99)
    found = opened.explain(picture)
    assert (found.method, found.rollout.shape, found.heads.shape) == (method, (2, 2), (heads, 2, 2))
    if method == "class_map":
        logits = opened.logits(opened.tensor(picture))[0]
        assert found.rollout.sum() == pytest.approx(logits[found.predictions[0].index].item(), abs=1e-4)
    with Image.open(found.save(tmp_path / "explained.png")) as page:
        assert page.width == 1600
    assert opened.evaluate(data).figures["top1"] == outcome.test.figures["top1"]
    further = trained(tmp_path / "further", data, model={"img_size": 16}, init=str(tmp_path / "run"), epochs=1)
    assert further.bundle.model.size == (16, 16)
    assert further.bundle.model.resnet == outcome.bundle.model.resnet


def test_the_plan_says_what_is_built() -> None:
    config, reasons = decide(facts(**TINY), {"model": {**RESNET, "resnet": {"layers": [1, 2]}}})
    assert "ResNet of 1-2 units, 512 channels at its end, at 8 px" in reasons[0]
    assert config.optim.lr == pytest.approx(1e-3 * (config.batch_size / 32) ** 0.5, rel=0.05)
    config, reasons = decide(facts(), {"arch": "r50+vit-b/16"})
    assert "ViT of width 768, depth 12, on a ResNet of 3-4-9 units and patch 1 of its map, at 224 px" in reasons[0]
    assert config.model.resnet.padding == "same"


@pytest.mark.parametrize(
    ("model", "why"),
    [(RESNET, "must be a multiple of 4, its stride"), ({**HYBRID, "patch_size": 2}, "must be a multiple of 8, its")],
)
def test_the_preprocessing_must_fit_the_stride(model: dict[str, Any], why: str) -> None:
    with pytest.raises(UsageError, match=rf"preprocess\.size = \(10, 12\): {why}"):
        decide(facts(**TINY), {"model": model, "preprocess": {"size": [10, 12]}})


def test_the_batch_of_a_resnet_fits_the_memory() -> None:
    config, _ = decide(facts(memory_bytes=3 << 30), {"arch": "resnetv2_50x1_bit"})
    picture = 4 * num_kept(config.model)
    assert config.batch_size < 128
    assert config.batch_size * picture <= 1.5 * 2**30 < 2 * config.batch_size * picture


def test_a_resnet_is_started_from_a_resnet_of_its_kind_alone() -> None:
    other = bundle(family="resnet", img_size=16, resnet=ResNetConfig(layers=(1,)))
    config = toy_config(family="resnet", img_size=32, resnet=ResNetConfig(layers=(1,)), num_classes=2, **_as(other))
    model, notes = initialise(config, ("x", "y"), other)
    assert not model.head.weight.any()
    assert any("head: fresh and zero" in note for note in notes)
    assert model.state_dict()["stem.conv.weight"].equal(other.tensors["stem.conv.weight"])
    with pytest.raises(BadConfig, match="another architecture: resnet = "):
        initialise(toy_config(family="resnet", resnet=ResNetConfig(layers=(2,)), **_as(other)), ("x",), other)


def _as(other: Any) -> dict[str, Any]:
    """The options that a ResNet does not read, as `other` has them."""
    names = ("embed_dim", "depth", "num_heads", "mlp_ratio", "patch_size")
    return {name: getattr(other.model, name) for name in names}
