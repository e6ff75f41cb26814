"""CIFAR-10 from scratch: the whole recipe, or a reduced proof against timm's ViT under DeiT's recipe.

    python bench/cifar10.py DATA --out OUT                       # --recipe small-data as it stands, 3 seeds
    python bench/cifar10.py DATA --out OUT --minutes 5 --arms ours,peer,twin    # as long for each, interleaved

DATA has train/CLASS/*.png and test/CLASS/*.png. All training pictures of it are trained on and the last weights are
judged on all test pictures; nothing is chosen here. Arms: `ours` is `vitrine train DATA --recipe small-data`, with
`--minutes` it is `vitrine train DATA --max-time MINUTES` with what is chosen for so long on this machine; `peer` is
timm's ViT of DeiT-Ti's width and depth at patch 4, `twin` timm's ViT of the very shape that `ours` chose, both trained
by DeiT's recipe (arXiv:2012.12877, table 9) with timm's own transforms, mixing, optimiser and loss in float32, its
warm-up and cosine laid over the budget. One JSON line a run on stdout, then a summary: mean and deviation over the
seeds, and the difference of the arms with its 95 % interval (Welch's t).
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from scipy import stats
from torch import Tensor, nn

from vitrine.config.options import DataConfig
from vitrine.data.sources import Source, open_source
from vitrine.evaluate.metrics import share
from vitrine.machine.device import versions
from vitrine.train.run import train
from vitrine.train.watch import Watch
from vitrine.weights.bundle import open_bundle

BATCH = 128
DEIT = {"lr": 5e-4 * BATCH / 512, "weight_decay": 0.05, "warmup_share": 5 / 300, "warmup_lr": 1e-6, "min_lr": 1e-5}
"""DeiT's rate is 5e-4 at batch 512, in proportion; five of its 300 epochs are warm-up."""


def ours(data: Path, out: Path, seed: int, asked: argparse.Namespace) -> dict[str, Any]:
    """A run of Vitrine; with a budget its length is what the clock allows, else that of the recipe."""
    options: dict[str, Any] = {"seed": seed, "data": {"val_share": 0.0}}
    options |= {"max_time_s": 60.0 * asked.minutes} if asked.minutes else {"recipe": "small-data"}
    if asked.epochs:
        options["epochs"] = asked.epochs
    outcome = train(data, out / f"ours-{seed}", watch=Watch(quiet=asked.quiet), **options)
    assert outcome.test is not None
    top1, facts = outcome.test.figures["top1"], outcome.bundle.provenance
    return {"right": round(top1.value * top1.n), "n": top1.n, "seconds": facts.seconds, "steps": facts.steps}


def timms(kind: str, data: Path, out: Path, seed: int, asked: argparse.Namespace) -> dict[str, Any]:
    """A run of timm's ViT under DeiT's recipe for the budget."""
    from tests.parity.peers import timm

    source = open_source(DataConfig(source=str(data)))
    learn, test = (np.flatnonzero(source.given == part) for part in ("train", "test"))
    torch.manual_seed(seed)
    model = timm.models.VisionTransformer(**shape(kind, out, seed), num_classes=10, drop_path_rate=0.1)
    steps, seconds = deit(model, source, learn, 60.0 * asked.minutes, seed)
    model.eval()
    right = 0
    with torch.inference_mode():
        for some in np.array_split(test, 40):
            right += int((model(tensors(source, some)).argmax(1).numpy() == source.labels[some]).sum())
    return {"right": right, "n": len(test), "seconds": seconds, "steps": steps}


def shape(kind: str, out: Path, seed: int) -> dict[str, Any]:
    """timm's words for the model of an arm."""
    if kind == "peer":
        return {"img_size": 32, "patch_size": 4, "embed_dim": 192, "depth": 12, "num_heads": 3}
    of = open_bundle(out / f"ours-{seed}" / "model.safetensors").model
    pooled = {"class_token": of.class_token, "global_pool": "token" if of.class_token else "avg"}
    names = ("img_size", "patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio")
    return {name: getattr(of, name) for name in names} | pooled


def deit(model: nn.Module, source: Source, learn: np.ndarray, budget_s: float, seed: int) -> tuple[int, float]:
    """Trains the model in place until the budget is spent; steps and seconds."""
    from tests.parity.peers import timm
    from timm.data import Mixup
    from timm.loss import SoftTargetCrossEntropy

    optimiser = timm.optim.create_optimizer_v2(model, opt="adamw", lr=DEIT["lr"], weight_decay=DEIT["weight_decay"])
    mixup = Mixup(mixup_alpha=0.8, cutmix_alpha=1.0, prob=1.0, switch_prob=0.5, label_smoothing=0.1, num_classes=10)
    criterion, began, step = SoftTargetCrossEntropy(), time.monotonic(), 0
    np.random.seed(seed)
    random.seed(seed)
    model.train()
    for images, labels in batches(source, learn, seed):
        spent = (time.monotonic() - began) / budget_s
        if spent >= 1:
            break
        for group in optimiser.param_groups:
            group["lr"] = rate(spent)
        images, targets = mixup(images, labels)
        loss = criterion(model(images), targets)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        step += 1
    return step, time.monotonic() - began


def rate(spent: float) -> float:
    """DeiT's learning rate at a share of the run: linear warm-up, then timm's cosine, which counts from the start."""
    if spent < DEIT["warmup_share"]:
        return DEIT["warmup_lr"] + (DEIT["lr"] - DEIT["warmup_lr"]) * spent / DEIT["warmup_share"]
    return DEIT["min_lr"] + (DEIT["lr"] - DEIT["min_lr"]) * (1 + math.cos(math.pi * spent)) / 2


def batches(source: Source, learn: np.ndarray, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """DeiT's training pictures for ever, three augmentations of each in a row, by one worker process."""
    from timm.data import create_transform
    from torchvision import transforms

    change = create_transform(
        input_size=32, is_training=True, color_jitter=0.3, auto_augment="rand-m9-mstd0.5-inc1",
        interpolation="bicubic", re_prob=0.25, re_mode="pixel", re_count=1,
    )  # fmt: skip
    change.transforms[0] = transforms.RandomCrop(32, padding=4)  # as DeiT's datasets.py for pictures of 32 pixels
    ImageOps.posterize = black_at_none
    pictures = [source.picture(int(i)).convert("RGB") for i in learn]
    labels = source.labels[learn]
    generator, epoch = torch.Generator().manual_seed(seed), 0
    while True:
        order = torch.randperm(len(learn), generator=generator).repeat_interleave(3)[: len(learn)].tolist()
        torch.manual_seed(seed + 1000 * epoch)
        loader = torch.utils.data.DataLoader(
            [(change, pictures[i], int(labels[i])) for i in order],
            batch_size=BATCH, drop_last=True, num_workers=1, collate_fn=changed,
        )  # fmt: skip
        yield from loader
        epoch += 1


def black_at_none(picture: Image.Image, bits: int, posterize: Any = ImageOps.posterize) -> Image.Image:
    """Pillow's posterize, and black for no bits at all, which timm may ask for and Pillow since refuses."""
    return posterize(picture, bits) if bits else picture.point(lambda _: 0)


def changed(rows: list[tuple[Any, Image.Image, int]]) -> tuple[Tensor, Tensor]:
    """A batch of augmented pictures and labels; called in the worker."""
    return torch.stack([change(picture) for change, picture, _ in rows]), torch.tensor([label for _, _, label in rows])


def tensors(source: Source, some: np.ndarray) -> Tensor:
    """Pictures as timm normalises them."""
    pixels = np.stack([np.asarray(source.picture(int(i)).convert("RGB")) for i in some]).astype(np.float32) / 255
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    return torch.from_numpy(((pixels - mean) / std).astype(np.float32).transpose(0, 3, 1, 2))


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean, deviation and range of each arm over its seeds, and what `ours` is ahead of the others by."""
    arms: dict[str, list[float]] = {}
    for row in rows:
        arms.setdefault(row["arm"], []).append(100 * row["right"] / row["n"])
    told: dict[str, Any] = {
        arm: {"mean": np.mean(of), "sd": np.std(of, ddof=1) if len(of) > 1 else None, "seeds": of}
        for arm, of in arms.items()
    }
    for arm, of in arms.items():
        if arm != "ours" and "ours" in arms and min(len(of), len(arms["ours"])) > 1:
            found = stats.ttest_ind(arms["ours"], of, equal_var=False).confidence_interval()
            told[f"ours - {arm}"] = {"mean": np.mean(arms["ours"]) - np.mean(of), "low": found.low, "high": found.high}
    return told


def main() -> None:
    """Run the arms seed by seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=0.0)
    parser.add_argument("--arms", default="ours")
    parser.add_argument("--quiet", action="store_true")
    asked = parser.parse_args()
    arms = asked.arms.split(",")
    if not asked.minutes and arms != ["ours"]:
        parser.error("the arms of timm need --minutes")
    rows = []
    for seed in range(asked.seeds):
        for arm in sorted(arms):  # ours before its twin
            found = ours(asked.data, asked.out, seed, asked) if arm == "ours" else timms(
                arm, asked.data, asked.out, seed, asked)  # fmt: skip
            rows.append({"arm": arm, "seed": seed, **found, "top1": share(found["right"], found["n"]).as_json()})
            print(json.dumps(rows[-1]), flush=True)
    print(json.dumps({"summary": summary(rows), "versions": versions()}, indent=1))


if __name__ == "__main__":
    main()
