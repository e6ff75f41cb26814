"""A trained model, open and ready to answer: predict, evaluate, explain."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from vitrine.config.models import named
from vitrine.config.options import DataConfig, Device, PreprocessConfig
from vitrine.config.text import from_dict, nested, to_dict
from vitrine.errors import BadData, NotFound, UsageError, nearest
from vitrine.explain.look import CAPTIONS, LABELS, Method, look
from vitrine.images.decode import decode, upright
from vitrine.images.preprocess import convert, preprocess, view
from vitrine.machine import device as machine
from vitrine.models.networks import Network, network
from vitrine.results import Figure, Metrics, Prediction, Provenance
from vitrine.weights import bundle as bundles
from vitrine.weights.opening import Opened, open_model

Picture = str | Path | bytes | Image.Image | np.ndarray

LARGEST_DRAWN = 2000
"""Pixels of a side above which a picture is shrunk before it is drawn on a page 1600 wide."""


def create(name: str, *, seed: int | None = None, **overrides: Any) -> Network:
    """A fresh network of a named architecture, under timm's parameter names, for a loop of your own.

    `overrides` are options of `ModelConfig`, such as `num_classes=10`. With `seed` the weights are the same
    every time, and torch's own random state is left as it was. Raises `NotFound` or `BadConfig`.
    """
    config = named(name, **overrides)
    if seed is None:
        return network(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return network(config)


def load(
    path: str | Path,
    device: Device = "auto",
    *,
    max_pixels: int | None = None,
    max_bytes: int | None = None,
    **said: Any,
) -> Classifier:
    """The model at `path`, ready on `device`: a run folder, a bundle, a public weight file or folder, a hub id.

    A picture of more than `max_pixels`, or whose file has more than `max_bytes`, is refused; by default the
    limits are those of the model's training. `said` is what a weight file may not tell: `labels`, a file of
    class names; `format`, where it fits several; `entry`, the part of a training file; options of the model and of
    the preprocessing with two underscores, such as `model__num_heads=4` or `preprocess__mean=(0.5,)`. Raises
    `NotFound`, `BadData` for a file that is damaged or none that is known, `UsageError` for a fact that is missing,
    `BadConfig` for a value that cannot hold, `Unavailable` for the device.
    """
    return classifier(opened(path, nested(said)), device, max_pixels=max_pixels, max_bytes=max_bytes)


def opened(path: str | Path, said: Mapping[str, Any] | None = None) -> Opened:
    """The model at `path` as a bundle, with the account of how it was read; `said` as in `load`, nested.

    Raises what `load` raises, but for the device.
    """
    said = said or {}
    known = ("model", "preprocess", "labels", "format", "entry")
    for name in said:
        if name not in known:
            raise UsageError(f"{name!r}: there is no such option.{nearest(name, known)}")
    model = said.get("model", {})
    found = open_model(
        path, given=model, labels=said.get("labels"), format=said.get("format"), entry=said.get("entry", "")
    )
    changes = {"size": found.bundle.model.size} if {"img_size", "patch_size"} & set(model) else {}
    changes |= said.get("preprocess", {})
    if not changes:
        return found
    settings = from_dict(PreprocessConfig, {**to_dict(found.bundle.preprocess), **changes}, "preprocess.")
    return replace(found, bundle=replace(found.bundle, preprocess=settings))


def classifier(
    found: Opened, device: Device = "auto", *, max_pixels: int | None = None, max_bytes: int | None = None
) -> Classifier:
    """A model that was opened, ready on `device`; the rest as in `load`."""
    where = machine.pick(device)
    bundle = found.bundle
    limits = _limits(bundle.run, {"max_pixels": max_pixels, "max_bytes": max_bytes})
    try:
        model = bundles.build(bundle, where)
    except BadData as error:
        raise BadData(f"{found.path}: {error}") from error
    return Classifier(
        model=model,
        class_names=bundle.class_names,
        preprocess=bundle.preprocess,
        metrics=bundle.metrics,
        provenance=bundle.provenance,
        run=bundle.run,
        path=found.path,
        limits=limits,
        multi_label=bundle.multi_label,
        threshold=bundle.threshold,
    )


def _limits(run: Mapping[str, Any], asked: Mapping[str, int | None]) -> DataConfig:
    """The limits of a run's training, but for those that are asked for."""
    trained: Mapping[str, Any] = run.get("data", {})
    limits = {name: trained.get(name) if value is None else value for name, value in asked.items()}
    return from_dict(DataConfig, {name: value for name, value in limits.items() if value is not None})


@dataclass(frozen=True, kw_only=True, eq=False)
class Explanation:
    """What a prediction looked at: the upright `picture`, the `box` of it that the model saw (left, top,
    right, bottom in pixels), `rollout` over the patches of that box, and the `heads` of the last layer.

    With `method` class_map, for a ResNet, `rollout` is what each cell adds to the score of the first prediction,
    and there are no heads.
    """

    picture: UInt8[np.ndarray, "H W 3"]
    box: tuple[float, float, float, float]
    rollout: Float[np.ndarray, "gh gw"]
    heads: Float[np.ndarray, "h gh gw"]
    predictions: tuple[Prediction, ...]
    method: Method = "rollout"

    def overlay(self, longest: int | None = None) -> Image.Image:
        """The picture with the rollout over it as a heat map, shrunk where a side is above `longest` pixels."""
        from vitrine.figures.heatmap import overlay, shrink

        picture, box = (self.picture, self.box) if longest is None else shrink(self.picture, self.box, longest)
        return Image.fromarray(overlay(picture, self.rollout, box))

    def save(self, path: str | Path) -> Path:
        """Write the whole figure as a PNG: picture, rollout or class map, and every head of the last layer."""
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
            caption=CAPTIONS[self.method],
            label=LABELS[self.method],
            path=Path(path),
        )
        return Path(path)


@dataclass(frozen=True, kw_only=True, eq=False)
class Classifier:
    """A network with its class names and its way of reading pictures. `model` is a plain `nn.Module`.

    `limits` are the sizes above which a picture is refused before it is decoded; one that Pillow or numpy
    holds already is not. `multi_label`: a picture may have several classes, or none; they are those whose probability
    is `threshold` or more.
    """

    model: Network
    class_names: tuple[str, ...]
    preprocess: PreprocessConfig
    metrics: Mapping[str, Mapping[str, Figure]]
    provenance: Provenance
    run: Mapping[str, Any]
    path: str = ""
    limits: DataConfig = field(default_factory=DataConfig)
    multi_label: bool = False
    threshold: float = 0.5

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
        """The `top` most probable classes of one picture, the first first. Raises what `read` raises.

        A model of several classes a picture gives all that reach its `threshold`, however many; `called` picks them.
        """
        return self.rank(self.logits(self.tensor(picture))[0], top)

    def predict_all(self, pictures: Iterable[Picture], top: int = 5) -> Iterator[list[Prediction]]:
        """`predict` for one picture after another."""
        return (self.predict(picture, top) for picture in pictures)

    def called(self, predictions: Iterable[Prediction]) -> list[Prediction]:
        """Those that are said of the picture: of several classes all that reach the threshold, maybe none; else the
        first."""
        if not self.multi_label:
            return list(predictions)[:1]
        return [prediction for prediction in predictions if prediction.probability >= self.threshold]

    def rank(self, logits: Float[Tensor, K], top: int) -> list[Prediction]:
        """The `top` classes of one row of logits, and all that reach the threshold where there may be several."""
        self.require_classes()
        if top < 1:
            raise UsageError(f"top = {top}: must be at least 1.")
        # In 64 bits a probability compares with the threshold as it did when that was chosen.
        chances = logits.double().sigmoid() if self.multi_label else logits.float().softmax(dim=0)
        reached = int((chances >= self.threshold).sum()) if self.multi_label else 0
        best = chances.topk(min(max(top, reached), len(self.class_names)))
        return [
            Prediction(label=self.class_names[index], index=index, probability=probability)
            for probability, index in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]

    def require_classes(self) -> None:
        """Raise `UsageError` unless there is a head whose classes can be named."""
        if not self.class_names:
            remedy = f" `vitrine train DATA --init {self.path} --out FOLDER` gives it one." if self.path else ""
            where = f"{self.path}: " if self.path else ""
            raise UsageError(f"{where}the model has no head and so no classes to name; it gives features.{remedy}")

    def index_of(self, name: str) -> int:
        """The place of a class among the logits. Raises `NotFound`."""
        self.require_classes()
        if name not in self.class_names:
            raise NotFound(f"{name!r}: the model has no such class.{nearest(name, self.class_names)}")
        return self.class_names.index(name)

    def explain(self, picture: Picture, top: int = 5, target: str | None = None) -> Explanation:
        """What the prediction for `picture` looked at: for the class named `target`, which then stands first, or for
        the most probable one. Attention rollout is the same for all. Raises `NotFound` for a class that is none."""
        wanted = None if target is None else self.index_of(target)
        opened = self.read(picture)
        images = torch.from_numpy(preprocess(opened, self.preprocess))[None].to(self.device)
        ranked = self.rank(self.logits(images)[0], top if wanted is None else len(self.class_names))
        first = [one for one in ranked if one.index == wanted]
        others = [one for one in ranked if one.index != wanted]
        predictions = tuple([*first, *others][: None if wanted is None else top])
        looked = look(self.model, images, predictions[0].index)
        return Explanation(
            picture=np.asarray(convert(opened, 3)),
            box=view(opened.size, self.preprocess),
            rollout=looked.rollout[0],
            heads=looked.heads[0],
            predictions=predictions,
            method=looked.method,
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
