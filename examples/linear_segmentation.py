"""A linear segmentation head on a Vision Transformer: which pixel belongs to which digit?

Canvases are composed of scikit-learn's handwritten digits, 8 x 8 pixels each, at random places. Every pixel with
ink has the class of its digit, all else is background. The training canvases use the first 1,400 digits, the test
canvases the other 397.

`VisionTransformer.features` gives the maps of two layers; one linear map turns each of their cells into the class
scores of the 8 x 8 pixels below it. Backbone and head are trained together, from nothing, on canvases of 32 x 32
pixels, and then asked for larger ones of another shape too.

    python examples/linear_segmentation.py      # under a minute on one core; draws runs/linear_segmentation.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from vitrine import ModelConfig, VisionTransformer

BACKGROUND, NUM_CLASSES, BATCH = 10, 11, 32
SIDE, INK = 8, 4  # pixels of a digit; how dark of 16 a pixel is that counts as drawn
COLOURS = [
    "#4e79a7", "#f28e2b", "#e15759", "#76b7b2", "#59a14f", "#edc948", "#b07aa1", "#ff9da7", "#9c755f", "#86bc25",
    "#20242a",
]  # fmt: skip


class Segmenter(nn.Module):
    """Pictures (B, C, H, W) to the class scores of every pixel (B, K, H, W)."""

    def __init__(self, backbone: VisionTransformer, layers: list[int], num_classes: int) -> None:
        super().__init__()
        self.backbone, self.layers, self.patch = backbone, layers, backbone.config.patch_size
        self.head = nn.Conv2d(len(layers) * backbone.config.embed_dim, num_classes * self.patch**2, kernel_size=1)

    def forward(self, images: Tensor) -> Tensor:
        """The scores."""
        maps = torch.cat(self.backbone.features(images, self.layers), dim=1)
        return F.pixel_shuffle(self.head(maps), self.patch)


def canvases(test: bool, count: int, size: tuple[int, int], generator: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Pictures (B, 1, H, W) in [-1, 1], and the class of every pixel (B, H, W)."""
    data = load_digits()
    part = slice(1400, None) if test else slice(None, 1400)
    pictures, labels = data.images[part].astype(np.float32), data.target[part]
    images, targets = np.zeros((count, *size), np.float32), np.full((count, *size), BACKGROUND, np.uint8)
    cell = SIDE + 2  # a digit moves by up to 2 pixels inside its cell, so that none overlap
    for image, target in zip(images, targets, strict=True):
        for top in range(0, size[0] - cell + 1, cell):
            for left in range(0, size[1] - cell + 1, cell):
                (down, across), which = generator.integers(0, 3, 2), generator.integers(len(labels))
                if generator.random() < 0.2:
                    continue
                here = slice(top + down, top + down + SIDE), slice(left + across, left + across + SIDE)
                image[here] = pictures[which]
                target[here][pictures[which] >= INK] = labels[which]
    return torch.from_numpy(images[:, None] / 8 - 1), torch.from_numpy(targets).long()


def mean_iou(predicted: Tensor, target: Tensor) -> float:
    """Intersection over union of each class, in the mean over the classes."""
    pairs = torch.bincount(target.flatten() * NUM_CLASSES + predicted.flatten(), minlength=NUM_CLASSES**2)
    table = pairs.reshape(NUM_CLASSES, NUM_CLASSES).double()
    hit = table.diagonal()
    return float((hit / (table.sum(0) + table.sum(1) - hit).clamp_min(1)).mean())


def train(steps: int, seed: int) -> Segmenter:
    """A segmenter after `steps` batches of canvases that it has not seen before."""
    torch.manual_seed(seed)
    config = ModelConfig(
        img_size=32, patch_size=8, in_chans=1, num_classes=0, embed_dim=128, depth=3, num_heads=4, mlp_ratio=2.0,
        class_token=False, global_pool="norm_then_avg",
    )  # fmt: skip
    model = Segmenter(VisionTransformer(config), layers=[1, 2], num_classes=NUM_CLASSES)
    images, targets = canvases(False, BATCH * steps, (32, 32), np.random.default_rng(seed))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps + 1)
    for step in range(steps):
        chosen = slice(BATCH * step, BATCH * step + BATCH)
        loss = F.cross_entropy(model(images[chosen]), targets[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 100 == 99:
            print(f"step {step + 1} of {steps}: loss {loss.item():.3f}", flush=True)
    return model.eval()


def draw(images: np.ndarray, targets: np.ndarray, predicted: np.ndarray, path: Path) -> None:
    """A PNG of pictures, targets and predictions side by side, one canvas a row."""
    figure = Figure(figsize=(8.4, 2.1 * len(images) + 0.9), layout="constrained")
    axes = figure.subplots(len(images), 3, squeeze=False)
    colours = ListedColormap(COLOURS)
    for row, (image, target, guess) in enumerate(zip(images, targets, predicted, strict=True)):
        axes[row, 0].imshow(image[0], cmap="gray", vmin=-1, vmax=1)
        for column, classes in ((1, target), (2, guess)):
            axes[row, column].imshow(classes, cmap=colours, vmin=-0.5, vmax=NUM_CLASSES - 0.5, interpolation="none")
    for axis, title in zip(axes[0], ("picture", "target", "prediction"), strict=True):
        axis.set_title(title)
    for axis in axes.flat:
        axis.set_axis_off()
    names = [*map(str, range(10)), "none"]
    patches = [Patch(color=colour, label=name) for colour, name in zip(COLOURS, names, strict=True)]
    figure.legend(handles=patches, loc="outside lower center", ncols=NUM_CLASSES, frameon=False, handlelength=1.0)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def main(words: list[str] | None = None) -> float:
    """Train, print the figures, draw; the mean IoU on test canvases of the training size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs"))
    options = parser.parse_args(words)
    torch.set_num_threads(1)
    model = train(options.steps, options.seed)
    found = []
    for count, size in ((200, (32, 32)), (100, (40, 64))):
        images, targets = canvases(True, count, size, np.random.default_rng(options.seed + 1))
        with torch.no_grad():
            predicted = model(images).argmax(1)
        found.append(mean_iou(predicted, targets))
        baseline = mean_iou(torch.full_like(targets, BACKGROUND), targets)
        print(f"{count} test canvases of {size[0]}x{size[1]}: mean IoU {found[-1]:.3f}, all background {baseline:.3f}")
        if size == (32, 32):
            draw(
                images[:3].numpy(), targets[:3].numpy(), predicted[:3].numpy(), options.out / "linear_segmentation.png"
            )
    print(f"drawn: {options.out / 'linear_segmentation.png'}")
    return found[0]


if __name__ == "__main__":
    main()
