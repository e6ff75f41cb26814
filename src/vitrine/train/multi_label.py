"""Training where a picture may have several classes, or none: what is chosen for it, its targets, its weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from vitrine.config.architecture import ModelConfig
from vitrine.config.options import Config
from vitrine.config.text import Nested
from vitrine.errors import UsageError

MAX_WEIGHT = 20.0
"""Largest weight of a positive: a class of one picture in a thousand would else drown all others."""


def multi_label_targets(labels: UInt8[Tensor, "B K"], smoothing: float) -> Float[Tensor, "B K"]:
    """Rows of 0 and 1 with `smoothing` spread over yes and no: y (1 - s) + s / 2 for every class by itself."""
    return labels.float() * (1 - smoothing) + smoothing / 2


def positive_weights(labels: UInt8[np.ndarray, "n K"], num_classes: int) -> Float[Tensor, K]:
    """For each class, pictures without it over pictures with it, at most `MAX_WEIGHT`; 1 where none has it.

    As the weight of the positive part of a sigmoid's loss it gives yes and no the same weight in all.
    """
    assert labels.shape[1] == num_classes
    counts = labels.sum(axis=0, dtype=np.int64)
    ratio = np.where(counts > 0, (len(labels) - counts) / np.maximum(counts, 1), 1.0)
    return torch.from_numpy(np.clip(ratio, 1 / MAX_WEIGHT, MAX_WEIGHT).astype(np.float32))


def first_bias(mean_share: float) -> float:
    """Where the biases of a fresh head begin, to one digit: the log odds of a class that `mean_share` of the pictures
    have, so that the first steps are not spent on learning that most classes are not there (arXiv:1708.02002, 3.3)."""
    share = min(max(mean_share, 1e-4), 1 - 1e-4)
    return round(math.log(share / (1 - share)), 1)


def biased(model: ModelConfig, mean_share: float | None) -> ModelConfig:
    """`model` with its head's biases at `first_bias` of the share; as it is where there is none."""
    return replace(model, head_bias=first_bias(mean_share)) if mean_share else model


def for_several(mean_share: float | None, given: Mapping[str, Any]) -> Nested:
    """The options that follow from whether a picture of the data may have several classes (`mean_share` is not None).

    Raises `UsageError` where `multi_label` is given and the data is of the other kind.
    """
    several = mean_share is not None
    if given.get("multi_label", several) is not several:
        has, wanted = ("labels", "label") if several else ("one class a picture", "labels (in a CSV or .jsonl)")
        raise UsageError(
            f"--multi-label {given['multi_label']}: the data has {has}; it follows from a column {wanted}."
        )
    return {"multi_label": True, "loss": "bce", "label_smoothing": 0.0} if several else {}


def said_of_several(config: Config, given: Mapping[str, Any]) -> list[str]:
    """What is chosen for several classes a picture, in a sentence; what the user asked for is marked as such."""
    words = {"bce": "the mean over the classes", "sigmoid": "the sum over the classes"}[config.loss]
    asked = " as asked" if "loss" in given else ""
    smoothing = f"label smoothing {config.label_smoothing:g}{' as asked' if 'label_smoothing' in given else ''}"
    bias = f"biases of a fresh head begin at {config.model.head_bias:g}"
    return [f"several classes a picture: loss {config.loss}{asked}, {words} of yes or no, {smoothing}; {bias}"]
