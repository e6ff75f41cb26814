"""A trained model, open and ready to answer: predict, evaluate, explain."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from vitrine.config.models import named
from vitrine.config.options import DataConfig, Device, PreprocessConfig
from vitrine.config.text import from_dict
from vitrine.errors import BadData, UsageError
from vitrine.explain.look import Looked, look
from vitrine.images.decode import decode, upright
from vitrine.images.preprocess import convert, preprocess, view
from vitrine.machine import device as machine
from vitrine.models.vit import VisionTransformer
from vitrine.results import Figure, Metrics, Prediction, Provenance
from vitrine.weights import bundle as bundles

Picture = str | Path | bytes | Image.Image | np.ndarray

LARGEST_DRAWN = 2000
"""Pixels of a side above which a picture is shrunk before it is drawn on a page 1600 wide."""


def create(name: str, *, seed: int | None = None, **overrides: Any) -> VisionTransformer:
    """A fresh network of a named architecture, under timm's parameter names, for a loop of your own.

    `overrides` are options of `ModelConfig`, such as `num_classes=10`. With `seed` the weights are the same
    every time, and torch's own random state is left as it was. Raises `NotFound` or `BadConfig`.
    """
    config = named(name, **overrides)
    if seed is None:
        return VisionTransformer(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return VisionTransformer(config)


def load(
    path: str | Path, device: Device = "auto", *, max_pixels: int | None = None, max_bytes: int | None = None
) -> Classifier:
    """The model at `path`, a run folder or a bundle, ready on `device`.

    A picture of more than `max_pixels`, or whose file has more than `max_bytes`, is refused; by default the
    limits are those of the model's training. Raises `NotFound`, `BadData` for a file that is damaged or none of
    ours, `BadConfig` for a limit below 1, `Unavailable` for the device.
    """
    where = machine.pick(device)
    opened = bundles.open_bundle(path)
    limits = _limits(opened.run, {"max_pixels": max_pixels, "max_bytes": max_bytes})
    try:
        model = bundles.build(opened, where)
    except BadData as error:
        raise BadData(f"{bundles.locate(path)}: {error}") from error
    return Classifier(
        model=model,
        class_names=opened.class_names,
        preprocess=opened.preprocess,
        metrics=opened.metrics,
        provenance=opened.provenance,
        run=opened.run,
        path=str(path),
        limits=limits,
    )


def _limits(run: Mapping[str, Any], asked: Mapping[str, int | None]) -> DataConfig:
    """The limits of a run's training, but for those that are asked for."""
    trained: Mapping[str, Any] = run.get("data", {})
    limits = {name: trained.get(name) if value is None else value for name, value in asked.items()}
    return from_dict(DataConfig, {name: value for name, value in limits.items() if value is not None})


@dataclass(frozen=True, kw_only=True, eq=False)
class Explanation:
    """What a prediction looked at: the upright `picture`, the `box` of it that the model saw (left, top,
    right, bottom in pixels), `rollout` over the patches of that box, and the `heads` of the last layer."""

    picture: UInt8[np.ndarray, "H W 3"]
    box: tuple[float, float, float, float]
    rollout: Float[np.ndarray, "gh gw"]
    heads: Float[np.ndarray, "h gh gw"]
    predictions: tuple[Prediction, ...]

    def overlay(self, longest: int | None = None) -> Image.Image:
        """The picture with the rollout over it as a heat map, shrunk where a side is above `longest` pixels."""
        from vitrine.figures.heatmap import overlay, shrink

        picture, box = (self.picture, self.box) if longest is None else shrink(self.picture, self.box, longest)
        return Image.fromarray(overlay(picture, self.rollout, box))

    def save(self, path: str | Path) -> Path:
        """Write the whole figure as a PNG: picture, rollout, and every head of the last layer."""
        from vitrine.figures.heatmap import shrink
        from vitrine.figures.panel import attention_panel

        first = self.predictions[0]
        picture, box = shrink(self.picture, self.box, LARGEST_DRAWN)
        attention_panel(
            picture,
            self.rollout,
            self.heads,
            box,
            title=f"{first.label}, {first.probability:.1%}".replace("%", " %"),
            caption="Attention rollout (Abnar & Zuidema, 2020) and the heads of the last layer",
            path=Path(path),
        )
        return Path(path)


@dataclass(frozen=True, kw_only=True, eq=False)
class Classifier:
    """A network with its class names and its way of reading pictures. `model` is a plain `nn.Module`.

    `limits` are the sizes above which a picture is refused before it is decoded; one that Pillow or numpy
    holds already is not.
    """

    model: VisionTransformer
    class_names: tuple[str, ...]
    preprocess: PreprocessConfig
    metrics: Mapping[str, Mapping[str, Figure]]
    provenance: Provenance
    run: Mapping[str, Any]
    path: str = ""
    limits: DataConfig = field(default_factory=DataConfig)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    def read(self, picture: Picture) -> Image.Image:
        """`picture` upright and decoded: a path, encoded bytes, a Pillow image, or an array (H, W[, 3]) of uint8.

        Raises `BadData`, also above the `limits`, or `NotFound`, naming it.
        """
        sizes = {"max_pixels": self.limits.max_pixels, "max_bytes": self.limits.max_bytes}
        if isinstance(picture, str | Path):
            return decode(Path(picture), name=str(picture), **sizes)
        if isinstance(picture, bytes):
            return decode(picture, name="picture", **sizes)
        if isinstance(picture, np.ndarray):
            return _from_array(picture)
        return upright(picture)

    def tensor(self, picture: Picture) -> Float[Tensor, "1 C H W"]:
        """What the model is given for `picture`."""
        return torch.from_numpy(preprocess(self.read(picture), self.preprocess))[None].to(self.device)

    def logits(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        """Class scores of preprocessed pictures, without gradients."""
        with torch.inference_mode():
            return cast(Tensor, self.model(images.to(self.device)))

    def predict(self, picture: Picture, top: int = 5) -> list[Prediction]:
        """The `top` most probable classes of one picture, the first first. Raises what `read` raises."""
        return self.rank(self.logits(self.tensor(picture))[0], top)

    def predict_all(self, pictures: Iterable[Picture], top: int = 5) -> Iterator[list[Prediction]]:
        """`predict` for one picture after another."""
        return (self.predict(picture, top) for picture in pictures)

    def rank(self, logits: Float[Tensor, K], top: int) -> list[Prediction]:
        """The `top` classes of one row of logits."""
        if not self.class_names:
            raise UsageError("the model has no head and so no classes to name; it gives features.")
        if top < 1:
            raise UsageError(f"top = {top}: must be at least 1.")
        chances = logits.float().softmax(dim=0)
        best = chances.topk(min(top, len(self.class_names)))
        return [
            Prediction(label=self.class_names[index], index=index, probability=probability)
            for probability, index in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]

    def explain(self, picture: Picture, top: int = 5) -> Explanation:
        """What the prediction for `picture` looked at."""
        opened = self.read(picture)
        images = torch.from_numpy(preprocess(opened, self.preprocess))[None].to(self.device)
        looked: Looked = look(self.model, images)
        return Explanation(
            picture=np.asarray(convert(opened, 3)),
            box=view(opened.size, self.preprocess),
            rollout=looked.rollout[0],
            heads=looked.heads[0],
            predictions=tuple(self.rank(self.logits(images)[0], top)),
        )

    def evaluate(self, data: str | Path, part: str = "auto") -> Metrics:
        """The figures of this model on `data`; see `vitrine.predict.judge.judge` for `part`."""
        from vitrine.predict.judge import judge

        return judge(self, str(data), part).metrics


def _from_array(pixels: np.ndarray) -> Image.Image:
    grey = pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 1)
    if pixels.dtype != np.uint8 or not (grey or (pixels.ndim == 3 and pixels.shape[2] == 3)):
        raise BadData(
            f"an array of shape {pixels.shape} and type {pixels.dtype}: "
            "give uint8 of shape (H, W), grey, or (H, W, 3), RGB."
        )
    return Image.fromarray(np.ascontiguousarray(pixels.reshape(pixels.shape[:2]) if grey else pixels))
