"""CIFAR-10 from scratch: the whole recipe, or a reduced proof against timm's ViT under DeiT's recipe.

    python bench/cifar10.py DATA --out OUT                       # --recipe small-data as it stands, 3 seeds
    python bench/cifar10.py DATA --out OUT --minutes 5 --arms ours,peer,twin    # as long for each, interleaved
    python bench/cifar10.py DATA --out OUT --minutes 5 --arms ours,hand         # as many steps for each

DATA has train/CLASS/*.png and test/CLASS/*.png. All training pictures of it are trained on and the last weights are
judged on all test pictures; nothing is chosen here. Arms: `ours` is `vitrine train DATA --recipe small-data`, with
`--minutes` it is `vitrine train DATA --max-time MINUTES` with what is chosen for so long on this machine; `peer` is
timm's ViT of DeiT-Ti's width and depth at patch 4, `twin` timm's ViT of the very shape that `ours` chose, both trained
by DeiT's recipe (arXiv:2012.12877, table 9) with timm's own transforms, mixing, optimiser and loss in float32, its
warm-up and cosine laid over the budget. `hand` is what a person who knows the field would write: the twin again, AdamW,
mirror images and crops of the padded picture, smoothed labels, a cosine, as many steps as `ours` made, and the rate
that does best on the test pictures with the first seed, a choice in its favour. A run of ours that is in OUT is read,
not done again. One JSON line a run on stdout, then a summary: mean and deviation over the seeds, and the difference of
the arms with its 95 % interval (Welch's t).
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from scipy import stats
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from bench.runs import learnt  # noqa: E402

from vitrine.config.options import DataConfig  # noqa: E402
from vitrine.data.sources import Source, open_source  # noqa: E402
from vitrine.evaluate.metrics import share  # noqa: E402
from vitrine.machine.device import versions  # noqa: E402
from vitrine.weights.bundle import MODEL_FILE, open_bundle  # noqa: E402

BATCH = 128
DEIT = {"lr": 5e-4 * BATCH / 512, "weight_decay": 0.05, "warmup_share": 5 / 300, "warmup_lr": 1e-6, "min_lr": 1e-5}
"""DeiT's rate is 5e-4 at batch 512, in proportion; five of its 300 epochs are warm-up."""


HAND: dict[str, Any] = {"rates": (5e-4, 1e-3, 2e-3, 4e-3), "weight_decay": 0.05, "warmup_share": 0.1}


def ours(data: Path, out: Path, seed: int, asked: argparse.Namespace) -> dict[str, Any]:
    """A run of Vitrine; with a budget its length is what the clock allows, else that of the recipe."""
    options: dict[str, Any] = {"seed": seed, "data": {"val_share": 0.0}}
    options |= {"max_time_s": 60.0 * asked.minutes} if asked.minutes else {"recipe": "small-data"}
    if asked.epochs:
        options["epochs"] = asked.epochs
    found = learnt(data, out / f"ours-{seed}", quiet=asked.quiet, **options)
    top1, facts = found.metrics["test"]["top1"], found.provenance
    return {"right": round(top1.value * top1.n), "n": top1.n, "seconds": facts.seconds, "steps": facts.steps}


def timms(kind: str, data: Path, out: Path, seed: int, asked: argparse.Namespace) -> dict[str, Any]:
    """A run of timm's ViT under DeiT's recipe for the budget."""
    from tests.parity.peers import timm

    source = open_source(DataConfig(source=str(data)))
    learn, test = (np.flatnonzero(source.given == part) for part in ("train", "test"))
    torch.manual_seed(seed)
    model = timm.models.VisionTransformer(**shape(kind, out, seed), num_classes=10, drop_path_rate=0.1)
    steps, seconds = deit(model, source, learn, 60.0 * asked.minutes, seed)
    return {"right": right(model, source, test), "n": len(test), "seconds": seconds, "steps": steps}


def right(model: nn.Module, source: Source, test: np.ndarray) -> int:
    """How many of the test pictures a model of timm names."""
    model.eval()
    with torch.inference_mode():
        answers = [model(tensors(source, some)).argmax(1).numpy() for some in np.array_split(test, 40)]
    return int((np.concatenate(answers) == source.labels[test]).sum())


def by_hand(data: Path, out: Path, seed: int, rates: tuple[float, ...]) -> dict[str, Any]:
    """The twin as trained by hand, at the best of these rates; as many steps as ours made with the seed."""
    from tests.parity.peers import timm

    source = open_source(DataConfig(source=str(data)))
    learn, test = (np.flatnonzero(source.given == part) for part in ("train", "test"))
    pictures, labels = tensors(source, learn), torch.from_numpy(source.labels[learn])
    steps, found = open_bundle(out / f"ours-{seed}" / MODEL_FILE).provenance.steps, list[dict[str, Any]]()
    for lr in rates:
        torch.manual_seed(seed)
        model = timm.models.VisionTransformer(**shape("twin", out, seed), num_classes=10)
        began = time.monotonic()
        plainly(model, pictures, labels, steps, lr)
        seconds = time.monotonic() - began
        found.append(
            {"right": right(model, source, test), "n": len(test), "seconds": seconds, "steps": steps, "lr": lr}
        )
    return max(found, key=lambda row: row["right"])


def plainly(model: nn.Module, pictures: Tensor, labels: Tensor, steps: int, lr: float) -> None:
    """Trains the model in place: a warm-up and a cosine, mirror images, crops of the picture padded by 4 pixels."""
    from tests.parity.peers import timm

    optimiser = timm.optim.create_optimizer_v2(model, opt="adamw", lr=lr, weight_decay=HAND["weight_decay"])
    warm, order = max(1, round(HAND["warmup_share"] * steps)), torch.empty(0, dtype=torch.long)
    model.train()
    for step in range(steps):
        if len(order) < BATCH:
            order = torch.randperm(len(pictures))
        some, order = order[:BATCH], order[BATCH:]
        share = (step + 1) / warm if step < warm else (1 + math.cos(math.pi * (step - warm) / (steps - warm))) / 2
        for group in optimiser.param_groups:
            group["lr"] = lr * share
        padded = nn.functional.pad(pictures[some], (4, 4, 4, 4))
        corners = torch.randint(0, 9, (BATCH, 2)).tolist()
        images = torch.stack([one[:, y : y + 32, x : x + 32] for one, (y, x) in zip(padded, corners, strict=True)])
        images = torch.where(torch.rand(BATCH, 1, 1, 1) < 0.5, images.flip(-1), images)
        loss = nn.functional.cross_entropy(model(images), labels[some], label_smoothing=0.1)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()


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
    rows, rates = [], HAND["rates"]
    for seed in range(asked.seeds):
        for arm in sorted(arms, key=lambda name: name != "ours"):  # ours before those that follow it
            if arm == "ours":
                found = ours(asked.data, asked.out, seed, asked)
            elif arm == "hand":
                found = by_hand(asked.data, asked.out, seed, rates)
                rates = (found["lr"],)
            else:
                found = timms(arm, asked.data, asked.out, seed, asked)
            rows.append({"arm": arm, "seed": seed, **found, "top1": share(found["right"], found["n"]).as_json()})
            print(json.dumps(rows[-1]), flush=True)
    print(json.dumps({"summary": summary(rows), "versions": versions()}, indent=1))


if __name__ == "__main__":
    main()
