"""preprocessor_config.json in and out: the pixels of transformers' own processors and ours."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.parity import peers  # noqa: F401  makes transformers importable beside a torchvision without operators
from vitrine.config.options import PreprocessConfig
from vitrine.errors import BadConfig, UsageError
from vitrine.images.preprocess import preprocess
from vitrine.weights.formats import image_processor

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    from transformers.models.deit.image_processing_pil_deit import DeiTImageProcessorPil
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil


def photo(size: tuple[int, int]) -> Image.Image:
    """A smooth random picture of (width, height) `size`."""
    coarse = np.random.default_rng(0).integers(0, 256, (6, 7, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


HALF = PreprocessConfig(size=(32, 32), resize="squash", interpolation="bilinear")


def same_pixels(processor: Any, config: PreprocessConfig, picture: Image.Image) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = processor(picture, return_tensors="np")["pixel_values"][0]
    np.testing.assert_allclose(preprocess(picture, config), theirs, atol=1e-5)


def test_mistake_12_vits_size_is_both_sides() -> None:
    """A plain number, as in old files, and a dictionary: the picture is squashed, nothing is cropped."""
    for size in (24, {"height": 24, "width": 24}):
        processor = ViTImageProcessorPil(size=size, image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6])
        config, said = image_processor.read(processor.to_dict(), HALF, "x")
        assert (config.resize, config.size, config.interpolation, said) == ("squash", (24, 24), "bilinear", ())
        same_pixels(processor, config, photo((60, 37)))
    old = {"feature_extractor_type": "ViTFeatureExtractor", "size": 24, "resample": 2, "image_mean": [0.5] * 3}
    assert image_processor.read(old, HALF, "x")[0] == replace(HALF, size=(24, 24))


@pytest.mark.parametrize(("edge", "crop"), [(28, 24), (24, 24), (242, 224), (256, 224), (248, 224), (462, 384)])
def test_mistake_12_clips_size_is_the_shorter_side(edge: int, crop: int) -> None:
    processor = CLIPImageProcessorPil(size={"shortest_edge": edge}, crop_size={"height": crop, "width": crop})
    config, said = image_processor.read(processor.to_dict(), HALF, "x")
    assert (config.resize, config.size, int(crop / config.crop_pct), said) == ("shorter", (crop, crop), edge, ())
    same_pixels(processor, config, photo((300, 300 + edge % 2)))


def test_mistake_12_a_plain_number_is_clips_shorter_side() -> None:
    old = {"feature_extractor_type": "CLIPFeatureExtractor", "size": 28, "crop_size": 24, "do_center_crop": True}
    config, said = image_processor.read(old, HALF, "x")
    assert (config.resize, config.size, int(24 / config.crop_pct), said) == ("shorter", (24, 24), 28, ())


def test_mistake_12_deits_squash_and_crop_is_said_to_differ() -> None:
    processor = DeiTImageProcessorPil(size={"height": 32, "width": 32}, crop_size={"height": 28, "width": 28})
    config, said = image_processor.read(processor.to_dict(), HALF, "x")
    assert "squashes to 32 x 32 and then crops" in said[0]
    same_pixels(processor, config, photo((60, 60)))


@pytest.mark.parametrize(("rescale", "normalise"), [(1 / 127.5, True), (1 / 255, False), (None, True)])
def test_other_scalings_come_out_the_same(rescale: float | None, normalise: bool) -> None:
    processor = ViTImageProcessorPil(
        size={"height": 24, "width": 24}, do_rescale=rescale is not None, rescale_factor=rescale or 1 / 255,
        do_normalize=normalise, image_mean=[1.0, 0.9, 0.8], image_std=[1.0, 1.1, 0.9],
    )  # fmt: skip
    config, _ = image_processor.read(processor.to_dict(), HALF, "x")
    theirs = processor(photo((40, 30)), return_tensors="np")["pixel_values"][0]
    ours = preprocess(photo((40, 30)), config)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=2e-4 if rescale is None else 1e-5)


@pytest.mark.parametrize(
    "config",
    [HALF, replace(HALF, interpolation="lanczos", mean=(0.1, 0.2, 0.3)),
     replace(HALF, resize="shorter", crop_pct=0.88, interpolation="bicubic")],
)  # fmt: skip
def test_our_preprocessing_is_written_so_that_theirs_gives_our_pixels(config: PreprocessConfig) -> None:
    facts, _ = image_processor.write(config)
    kind = {"ViTImageProcessor": ViTImageProcessorPil, "CLIPImageProcessor": CLIPImageProcessorPil}
    processor = kind[facts["image_processor_type"]](**{k: v for k, v in facts.items() if k != "image_processor_type"})
    same_pixels(processor, config, photo((60, 60)))
    back, _ = image_processor.read(facts, HALF, "x")
    assert back == replace(config, crop_pct=back.crop_pct)
    assert int(32 / back.crop_pct) == int(32 / config.crop_pct)


@pytest.mark.parametrize(
    ("facts", "error", "words"),
    [
        ({"size": "large"}, BadConfig, "cannot be understood"),
        ({"size": 24, "resample": 17}, BadConfig, "cannot be understood"),
        ({"size": 24, "image_mean": [0.1, 0.2]}, BadConfig, "2 different constants for 3 channels"),
        ({"image_processor_type": "CLIPImageProcessor", "size": 24, "crop_size": 32}, UsageError, "exceeds size 24"),
    ],
)
def test_preprocessing_that_cannot_be_followed_is_refused(facts: Any, error: Any, words: str) -> None:
    with pytest.raises(error, match=words):
        image_processor.read(facts, HALF, "x")
