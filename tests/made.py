"""Models, runs and pictures that the tests make for themselves, as small as they can be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from tests.models.toys import randomise
from vitrine.config.architecture import ModelConfig
from vitrine.config.options import PreprocessConfig
from vitrine.models.networks import network
from vitrine.train.course import Outcome
from vitrine.train.run import train
from vitrine.train.watch import Watch
from vitrine.weights.bundle import Bundle

MODEL: dict[str, Any] = {"depth": 1, "embed_dim": 16, "num_heads": 2, "mlp_ratio": 2.0}
MICRO: dict[str, Any] = {
    "model": MODEL,
    "device": "cpu",
    "precision": "fp32",
    "threads": 1,
    "batch_size": 128,
    "optim": {"lr": 3e-3},
}
WORDS = [
    "--model.depth", "1", "--model.embed-dim", "16", "--model.num-heads", "2", "--model.mlp-ratio", "2.0",
    "--device", "cpu", "--precision", "fp32", "--threads", "1", "--batch-size", "128",
]  # fmt: skip
"""`MICRO` as it is typed."""


def trained(out: Path, data: str | None = "digits", **options: Any) -> Outcome:
    """A run of the micro model on one thread, in float32, told to nobody."""
    return told_to_nobody(data, out, **{**MICRO, **options})


def told_to_nobody(data: str | None, out: Path, **options: Any) -> Outcome:
    """A run with these options alone. torch has its threads back after."""
    threads = torch.get_num_threads()
    try:
        return train(data, out, watch=Watch(quiet=True), **options)
    finally:
        torch.set_num_threads(threads)


def small(**overrides: Any) -> ModelConfig:
    """A model of 16 dimensions and one block over 16 x 16 pixels, for three classes."""
    return ModelConfig(**{**MODEL, "img_size": 16, "patch_size": 4, "num_classes": 3, **overrides})


def bundle(seed: int = 0, *, class_names: tuple[str, ...] | None = None, **overrides: Any) -> Bundle:
    """A bundle of random weights for RGB pictures, cropped as photographs are."""
    config = small(**overrides)
    torch.manual_seed(seed)
    half = (0.5,) * config.in_chans
    return Bundle(
        model=config,
        preprocess=PreprocessConfig(size=config.size, mean=half, std=half),
        class_names=class_names or tuple("abcdefghij"[: config.num_classes]),
        tensors=dict(randomise(network(config), seed).state_dict()),
    )


def photo(path: Path, seed: int = 0, size: tuple[int, int] = (40, 30), mode: str = "RGB") -> Path:
    """A picture of smooth random blots in a file, of (width, height) `size`."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 6, len(mode)), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(coarse.squeeze()).convert(mode).resize(size, Image.Resampling.BICUBIC).save(path)
    return path


def photos(folder: Path, counts: dict[str, int], size: tuple[int, int] = (40, 30), mode: str = "RGB") -> Path:
    """A class folder of pictures, as many of each class as `counts` says, no two alike."""
    seed = 0
    for name, count in counts.items():
        for i in range(count):
            photo(folder / name / f"{i}.png", seed, size, mode)
            seed += 1
    return folder


def marks(folder: Path, count: int = 240, *, seed: int = 0) -> Path:
    """A CSV of pictures of 16 x 16 noise, with a red square on the left in two of five, a blue disc on the right in
    three of ten, each by itself: column labels, so that many have both or none."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["path,labels"]
    down, across = np.mgrid[:16, :16]
    for i in range(count):
        pixels = rng.integers(0, 90, (16, 16, 3), dtype=np.uint8)
        square, disc = (rng.random(2) < (0.4, 0.3)).tolist()
        top, middle = rng.integers(1, 11), rng.integers(4, 12)
        if square:
            pixels[top : top + 4, 2:6] = (220, 30, 30)
        if disc:
            pixels[(down - middle) ** 2 + (across - 11) ** 2 <= 6] = (30, 30, 220)
        Image.fromarray(pixels).save(folder / f"{i}.png")
        lines.append(f"{i}.png,{'|'.join(['square'] * square + ['disc'] * disc)}")
    (folder / "marks.csv").write_text("\n".join(lines) + "\n")
    return folder / "marks.csv"


MARKS: dict[str, Any] = {
    "model": {"depth": 2, "embed_dim": 32, "num_heads": 2, "mlp_ratio": 2.0, "img_size": 16, "patch_size": 4},
    "device": "cpu",
    "precision": "fp32",
    "threads": 1,
    "batch_size": 16,
    "epochs": 12,
    "optim": {"lr": 5e-3},
}
"""Options with which the marks are learnt in seconds."""
