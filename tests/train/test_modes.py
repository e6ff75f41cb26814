"""What of a model learns: whole runs in each mode, and what stays as it was."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.made import MICRO, MODEL, bundle, photos, told_to_nobody, trained
from vitrine.config.architecture import ModelConfig, ResNetConfig
from vitrine.config.options import AugmentConfig, Config
from vitrine.errors import Stopped, UsageError
from vitrine.machine import device as machine
from vitrine.models.networks import network
from vitrine.train import course, features, modes
from vitrine.train.features import Features, Sparing
from vitrine.train.optim import Average, optimizer
from vitrine.train.state import Progress
from vitrine.weights.bundle import Bundle, facts_of, open_bundle

TUNED = {name: value for name, value in MICRO.items() if name != "model"}
HEAD = r"head\.(weight|bias)"
LEARNT = {
    "full": ".*",
    "head": HEAD,
    "attention": rf"blocks\.\d\.attn\..*|pos_embed|{HEAD}",
    "lora": rf"blocks\.\d\.attn\.qkv\.weight|{HEAD}",
}


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run to start from, with dropout and stochastic depth in it."""
    out = tmp_path_factory.mktemp("modes") / "start"
    model = {**MODEL, "depth": 2, "embed_dim": 32, "drop_rate": 0.1, "drop_path_rate": 0.1}
    trained(out, epochs=2, model=model)
    return out


def tuned(start: Path, out: Path, mode: str, data: str = "digits", **options: Any) -> course.Outcome:
    given = {**TUNED, "init": str(start), "mode": mode, "epochs": 2, **options}
    return told_to_nobody(data, out, **given)


def test_without_a_model_to_start_from_only_all_of_it_can_learn(tmp_path: Path) -> None:
    for mode in ("head", "attention", "lora"):
        with pytest.raises(UsageError, match=rf"--mode {mode}: .* give one to start from by --init\."):
            trained(tmp_path / "r", mode=mode)
    assert not (tmp_path / "r").exists()


def test_what_a_model_does_not_have_cannot_learn() -> None:
    resnet = ModelConfig(family="resnet", resnet=ResNetConfig(layers=(1, 1)), num_classes=3, img_size=64)
    for mode in ("attention", "lora"):
        with pytest.raises(UsageError, match=f"--mode {mode}: a ResNet has no attention"):
            modes.require_fitting(mode, resnet, "adamw")
    modes.require_fitting("head", resnet, "adamw")
    with pytest.raises(UsageError, match=r"--optim\.name muon: takes the matrices of blocks"):
        modes.require_fitting("head", ModelConfig(), "muon")


@pytest.mark.parametrize("mode", LEARNT)
@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_what_is_frozen_stays_to_the_bit_and_all_else_learns(start: Path, tmp_path: Path, mode: str, name: str) -> None:
    """With strong decay, which would show on a frozen matrix, and other classes than before."""
    outcome = tuned(start, tmp_path / "r", mode, optim={"name": name, "lr": 0.01, "weight_decay": 0.5})
    before, after = open_bundle(start).tensors, outcome.bundle.tensors
    assert before.keys() == after.keys()
    moved = {key for key, tensor in before.items() if not torch.equal(tensor, after[key])}
    assert moved == {key for key in before if re.fullmatch(LEARNT[mode], key)}
    if mode == "lora":
        for block in "01":  # q and v learn, and k, which lies between, does not
            change = (after[f"blocks.{block}.attn.qkv.weight"] - before[f"blocks.{block}.attn.qkv.weight"]).chunk(3)
            assert [bool(part.any()) for part in change] == [True, False, True]


@pytest.mark.parametrize("mode", LEARNT)
def test_what_is_frozen_has_no_state(mode: str) -> None:
    config = Config(model=bundle(depth=2).model, mode=mode)  # type: ignore[arg-type]
    model = network(config.model)
    told = modes.prepare(model, config)
    optimiser = optimizer(model, config.optim)
    model(torch.randn(2, 3, 16, 16)).sum().backward()
    optimiser.step()
    names = {parameter: name for name, parameter in model.named_parameters()}
    held = {names[p] for group in optimiser.param_groups for p in group["params"]}
    assert held == {names[p] for p in optimiser.state} == {n for n, p in model.named_parameters() if p.requires_grad}
    assert held == {n for n in names.values() if modes.learns(n, mode)}
    some, every = (sum(p.numel() for p in which) for which in (optimiser.state, model.parameters()))
    assert told == [] if mode == "full" else f"{some:,} of {every:,} numbers" in told[0]


def test_the_average_of_what_is_frozen_is_itself() -> None:
    config = Config(model=bundle(depth=2).model, mode="head")
    model = network(config.model)
    modes.prepare(model, config)
    average = Average(model, 0.5)
    model.head.weight.data += 1
    average.update(100)
    judged = average.model.state_dict()
    assert not torch.equal(judged["head.weight"], model.head.weight)
    for name, tensor in model.state_dict().items():
        assert torch.equal(judged[name], tensor) or name.startswith("head."), name


OPTIONS: dict[str, Any] = {
    "epochs": 3, "seed": 5, "ema_decay": 0.9, "accumulate": 2,
    "augment": {"mixup": 0.3, "shift": 0.1, "flip": True}, "lora": {"dropout": 0.2, "targets": ["q", "v", "mlp.fc1"]},
}  # fmt: skip
ONCE = {**OPTIONS, "augment": {}}


@pytest.mark.parametrize(
    ("mode", "options"),
    [("lora", OPTIONS), ("attention", OPTIONS), ("head", OPTIONS), ("head", ONCE)],
    ids=["lora", "attention", "head", "head on features"],
)
def test_a_stopped_run_ends_bit_for_bit_like_one_that_was_not(
    start: Path, tmp_path: Path, signal_at: Callable[..., None], mode: str, options: dict[str, Any]
) -> None:
    straight = tuned(start, tmp_path / "a", mode, **options)
    signal_at(3, 12)
    for _ in range(2):
        with pytest.raises(Stopped):
            tuned(start, tmp_path / "b", mode, **options)
    broken = tuned(start, tmp_path / "b", mode, **options)
    for file in ("model.safetensors", "last.safetensors"):
        first, second = (open_bundle(tmp_path / folder / file) for folder in "ab")
        assert all(torch.equal(tensor, second.tensors[name]) for name, tensor in first.tensors.items()), file
        assert first.provenance.steps == second.provenance.steps
    assert straight.bundle.metrics == broken.bundle.metrics
    if mode == "lora":
        files = [(tmp_path / folder / "adapter/adapter_model.safetensors").read_bytes() for folder in "ab"]
        assert files[0] == files[1]


@pytest.mark.slow
@pytest.mark.skipif(not machine.has_compiler(), reason="torch.compile needs a compiler")
def test_adapters_learn_in_a_compiled_model_too(start: Path, tmp_path: Path) -> None:
    """The same result, to rounding; in a process of its own, for the compiler cannot read the checks of shapes that
    the tests put around every function. Without dropout, for which compiled code has random numbers of its own."""
    still = {"model": {"drop_rate": 0.0, "drop_path_rate": 0.0}, "lora": {"dropout": 0.0}}
    given = {**TUNED, **still, "init": str(start), "mode": "lora", "epochs": 1, "batch_size": 256}
    for way in ("on", "off"):
        call = f"from vitrine.train.run import train; train('digits', {way!r}, compile={way!r}, **{given!r})"
        subprocess.run([sys.executable, "-c", call], cwd=tmp_path, check=True, capture_output=True, text=True)
    compiled, plain = (open_bundle(tmp_path / way).tensors for way in ("on", "off"))
    for name, tensor in plain.items():
        torch.testing.assert_close(compiled[name], tensor, atol=1e-4, rtol=0)


# A head on what frozen layers made


@pytest.mark.parametrize("decay", [0.0, 0.9])
def test_features_looked_at_once_give_the_weights_of_the_ordinary_way(
    start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decay: float
) -> None:
    data = str(photos(tmp_path / "data", {"a": 30, "b": 30, "c": 30}, size=(12, 10), mode="L"))
    options: dict[str, Any] = {"data": data, "batch_size": 8, "ema_decay": decay, "epochs": 3}
    calls: list[int] = []
    plain = features.of_training
    monkeypatch.setattr(features, "of_training", lambda *args: calls.append(1) or plain(*args))
    once = tuned(start, tmp_path / "once", "head", **options)
    assert calls == [1]
    monkeypatch.setattr(modes, "looks_once", lambda config: False)
    every = tuned(start, tmp_path / "every", "head", **options)
    assert calls == [1]
    for file in ("model.safetensors", "last.safetensors"):
        first, second = (open_bundle(tmp_path / folder / file).tensors for folder in ("once", "every"))
        for name, tensor in first.items():
            torch.testing.assert_close(tensor, second[name], atol=1e-5, rtol=0)
    assert once.bundle.tensors["head.weight"].abs().max() > 1e-3
    assert once.bundle.class_names == every.bundle.class_names == ("a", "b", "c")
    found = [[line.split('"seconds"')[0] for line in (tmp_path / f / "metrics.jsonl").read_text().splitlines()]
             for f in ("once", "every")]  # fmt: skip
    assert len(found[0]) == len(found[1]) == 3
    assert once.test is not None and every.test is not None and once.test.top1.n == every.test.top1.n
    shares = {
        f: [json.loads(line)["peak_share"] for line in (tmp_path / f / "metrics.jsonl").read_text().splitlines()]
        for f in ("once", "every")
    }
    assert set(shares["once"]) == {None} and all(share > 0 for share in shares["every"])


def test_augmentation_that_is_asked_for_takes_the_ordinary_way(
    start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "of_training", lambda *_: pytest.fail("features were kept"))
    outcome = tuned(start, tmp_path / "r", "head", augment={"flip": True}, epochs=1)
    assert outcome.bundle.run["augment"]["flip"] is True


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("flip", True), ("crop_min_area", 0.5), ("shift", 0.1), ("rotate_deg", 1.0), ("zoom", 0.1), ("jitter", 0.1),
        ("mixup", 0.1), ("cutmix", 0.1), ("policy", "trivial"), ("erase", 0.1), ("repeats", 2),
    ],
)  # fmt: skip
def test_whatever_is_random_about_a_picture_needs_it_in_every_epoch(option: str, value: Any) -> None:
    assert modes.looks_once(Config(mode="head"))
    assert not modes.looks_once(Config())
    assert not modes.looks_once(Config(mode="head", augment=AugmentConfig(**{option: value})))


def test_features_come_in_the_order_of_the_epoch_and_keep_their_weights() -> None:
    rows = Features(
        rows=torch.arange(6.0)[:, None], labels=torch.arange(6), weights=torch.tensor([1.0, 1, 0, 1, 1, 1]),
        index=np.arange(10, 16),
    )  # fmt: skip
    batches = list(rows.batches(0, 6, batch_size=2, seed=3))
    assert [len(batch.index) for batch in batches] == [2] * 6
    for epoch in (batches[:3], batches[3:]):
        assert sorted(torch.cat([batch.index for batch in epoch]).tolist()) == list(range(10, 16))
    assert [b.index.tolist() for b in batches[:3]] != [b.index.tolist() for b in batches[3:]]
    for batch in batches:
        assert torch.equal(batch.weights == 0, batch.labels == 2)
        assert torch.equal(batch.images[:, 0, 0, 0].long(), batch.labels)
    (again,) = rows.batches(4, 5, batch_size=2, seed=3)
    assert torch.equal(again.index, batches[4].index)


@pytest.mark.parametrize(
    "options",
    [
        {}, {"distilled": True}, {"global_pool": "map", "class_token": False}, {"representation_size": 8},
        {"family": "resnet", "resnet": ResNetConfig(layers=(1, 1)), "img_size": 64},
    ],
    ids=["plain", "distilled", "map", "hidden layer", "resnet"],
)  # fmt: skip
def test_the_head_answers_from_features_as_the_model_does(options: dict[str, Any]) -> None:
    config = bundle(**options).model
    model = network(config).eval()
    torch.nn.init.normal_(model.head.weight)
    images = torch.randn(2, 3, *config.size)
    summary = model.summary(model.forward_features(images))
    assert torch.equal(features.answer(model, summary[:, :, None, None]), model(images))
    made = features.example(Config(model=config, batch_size=4))
    assert made.images.shape == (4, summary.shape[1], 1, 1)


def test_the_best_head_waits_and_is_written_with_the_next_file(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    written: list[tuple[str, float, int]] = []

    def write(path: Path, model: nn.Module, progress: Progress) -> None:
        written.append((path.name, model.head.bias[0].item(), progress.step))  # type: ignore[union-attr,index]

    model, saver = network(bundle().model), Sparing(write=write)

    def best(value: float, step: int) -> None:
        model.head.bias.data.fill_(value)
        saver.save(Path("model.safetensors"), model, Progress(epochs=9, step=step))

    best(1.0, 1)
    best(2.0, 2)
    best(3.0, 3)
    assert written == [("model.safetensors", 1.0, 1)]
    model.head.bias.data.fill_(4.0)
    saver.save(Path("last.safetensors"), model, Progress(epochs=9, step=4))
    assert written[1:] == [("model.safetensors", 3.0, 3), ("last.safetensors", 4.0, 4)]
    assert model.head.bias[0].item() == 4.0
    now[0] += features.SPARING_S + 1
    best(5.0, 5)
    assert written[3:] == [("model.safetensors", 5.0, 5)]
    saver.flush(model)
    assert len(written) == 4


def test_with_few_pictures_the_last_weights_and_their_adapter_are_left(start: Path, tmp_path: Path) -> None:
    data = str(photos(tmp_path / "data", {"a": 4, "b": 4}, size=(8, 8), mode="L"))
    for mode in ("lora", "head"):
        outcome = tuned(start, tmp_path / mode, mode, data, batch_size=4)
        files: list[Bundle] = [
            open_bundle(tmp_path / mode / name) for name in ("model.safetensors", "last.safetensors")
        ]
        assert all(torch.equal(t, files[1].tensors[name]) for name, t in files[0].tensors.items())
        assert outcome.test is None and facts_of(tmp_path / mode).finished
    assert (tmp_path / "lora/adapter/adapter_model.safetensors").is_file()
