"""P9: what is not finite never enters the weights."""

from __future__ import annotations

import json
import math
import os
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.made import small, told_to_nobody, trained
from tests.train.test_step import batch, config
from vitrine.config.options import OptimConfig
from vitrine.errors import Diverged, Stopped
from vitrine.models.vit import VisionTransformer
from vitrine.train import fit, state, states
from vitrine.train.finite import IN_A_ROW, Refused, refusal, told, update, update_on_device
from vitrine.train.objective import classify
from vitrine.train.optim import Average, optimizer
from vitrine.train.step import train_step
from vitrine.train.watch import Watch
from vitrine.weights.bundle import LAST_FILE, open_bundle

NAMES = ["adamw", "sgd", "muon", "lamb"]


def parts(name: str, steps: int) -> tuple[VisionTransformer, torch.optim.Optimizer, Average]:
    """A model that has made some steps, its optimiser, its average."""
    torch.manual_seed(0)
    model = VisionTransformer(small(weight_init="timm", drop_rate=0.0)).train()
    made, average = optimizer(model, OptimConfig(name=name, lr=1e-2)), Average(model, 0.9)  # type: ignore[arg-type]
    for k in range(steps):
        backward(model, k)
        made.step()
        average.update(k)
    return model, made, average


def backward(model: nn.Module, seed: int) -> None:
    model.zero_grad()
    generator = torch.Generator().manual_seed(seed)
    (model(torch.randn(2, 3, 16, 16, generator=generator)) - 1).square().mean().backward()


def tensors(model: nn.Module, made: torch.optim.Optimizer, average: Average) -> dict[str, Tensor]:
    found = state.tensors_of(model, made, average)
    return {name: tensor.detach().clone() for name, tensor in found.items() if not name.startswith("random")}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("what", ["loss", "gradient"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_step_that_is_not_finite_changes_no_bit(name: str, what: str, bad: float) -> None:
    settings = config(optim=OptimConfig(name=name, lr=1e-2))  # type: ignore[arg-type]
    model, made, average = parts(name, 3)
    before, plain = tensors(model, made, average), classify(settings)

    def poisoned(model: nn.Module, part: Any) -> Any:
        each, right = plain(model, part)
        return (each * bad if what == "loss" else each), right

    handle = model.head.bias.register_hook(lambda gradient: gradient + bad) if what == "gradient" else None
    how: dict[str, Any] = {"step": 3, "num_steps": 9, "dtype": None}
    result = train_step(model, made, batch(), settings, objective=poisoned, **how)
    average.update(3, result.refused)
    after = tensors(model, made, average)
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[key]) for key, tensor in before.items())
    assert int(result.refused) == {"loss": 3, "gradient": 2}[what]

    if handle is not None:
        handle.remove()
    result = train_step(model, made, batch(), settings, objective=plain, **how)
    assert not result.refused and not torch.equal(before["model.head.weight"], model.head.weight)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("steps", [0, 3])
def test_a_device_that_decides_by_itself_changes_no_bit_either(name: str, steps: int) -> None:
    """The way of a CUDA device, on this one: also in the very first step, where there is no state yet."""
    model, made, average = parts(name, steps)
    backward(model, 9)
    before = tensors(model, made, average)
    for parameter in model.parameters():
        parameter.grad[...] = math.nan  # type: ignore[index]
    update_on_device(made, torch.tensor(2.0))
    after = tensors(model, made, average)
    assert all(torch.equal(tensor, after[key]) for key, tensor in before.items())
    news = {key: tensor for key, tensor in after.items() if key not in before}
    assert all(not tensor.any() for tensor in news.values())
    assert bool(news) is (steps == 0)


@pytest.mark.parametrize("name", NAMES)
def test_a_device_that_decides_by_itself_steps_as_this_one_does(name: str) -> None:
    """After a refused first step, too."""
    model, made, _ = parts(name, 0)
    other, its, _ = parts(name, 0)
    backward(model, 9)
    for parameter in model.parameters():
        parameter.grad[...] = math.inf  # type: ignore[index]
    update_on_device(made, torch.tensor(1.0))
    for k in range(4):
        backward(model, k)
        backward(other, k)
        update_on_device(made, torch.tensor(0.0))
        its.step()
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_what_is_refused_and_why() -> None:
    one, nan, inf = torch.tensor(1.0), torch.tensor(math.nan), torch.tensor(math.inf)
    assert [int(refusal(*pair)) for pair in ((one, one), (nan, one), (one, inf), (inf, nan))] == [0, 1, 2, 3]


def test_refused_steps_are_counted_across_looks() -> None:
    seen = Refused(0)
    for kind in (0.0, 2.0, 1.0):
        seen.add(torch.tensor(kind))
    assert seen.look(43) == ({42: "gradient", 43: "loss"}, False)
    assert seen.look(43) == ({}, False) and seen.in_a_row == 2
    for k in range(8):
        assert not seen.urgent
        seen.add(torch.tensor(3.0))
        assert seen.urgent is (k == 7)
    found, lost = seen.look(51)
    assert list(found) == list(range(44, 52)) and set(found.values()) == {"loss and gradient"} and lost
    again = Refused(9)
    again.add(torch.tensor(0.0))
    assert again.look(1) == ({}, False) and again.in_a_row == 0


def test_many_refused_steps_are_one_sentence() -> None:
    assert told([(1200, "loss")]) == "not finite, so left out: step 1,200 (loss)"
    assert told([(k, "loss") for k in range(8)]).endswith("step 4 (loss) and 3 more")


def records(out: Path) -> list[dict[str, Any]]:
    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no number of JSON")

    return [json.loads(line, parse_constant=refuse) for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes loss or gradient of the given steps of a run not finite; `stop` sends a signal in these steps."""
    plain = fit.train_step

    def put(steps: dict[int, str], *, times: int = 1000, stop: int = 0) -> None:
        left = [times]

        def stepped(model: Any, made: Any, batch: Any, settings: Any, *, step: int, objective: Any, **how: Any) -> Any:
            what, hook = steps.get(step, ""), None
            if what:
                if step == min(steps):
                    left[0] -= 1
                if left[0] < 0:
                    what = ""
            if what == "gradient":
                hook = model.head.bias.register_hook(lambda gradient: gradient * math.inf)

            def aim(model: nn.Module, part: Any) -> Any:
                each, right = objective(model, part)
                return (each * math.nan if what == "loss" else each), right

            result = plain(model, made, batch, settings, step=step, objective=aim, **how)
            if hook is not None:
                hook.remove()
            if what and stop:
                os.kill(os.getpid(), stop)
            return result

        monkeypatch.setattr(fit, "train_step", stepped)

    return put


def test_twenty_of_twenty_are_refused_and_told(
    tmp_path: Path, poison: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(0)
    bad = {step: rng.choice(["loss", "gradient"]) for step in sorted(rng.sample(range(64), 20))}
    said: list[str] = []
    monkeypatch.setattr(Watch, "say", lambda self, sentence: said.append(sentence))
    poison(bad)
    out = trained(tmp_path / "r", epochs=8, ema_decay=0.9).out
    noted = {int(step): what for record in records(out) for step, what in record.get("refused", {}).items()}
    assert noted == {step + 1: {"loss": "loss and gradient"}.get(what, what) for step, what in bad.items()}
    told = [sentence for sentence in said if "not finite, so left out" in sentence]
    assert all(any(f"step {step + 1} (" in sentence for sentence in told) for step in list(bad)[:3])
    for name in ("model.safetensors", "last.safetensors"):
        assert all(bool(tensor.isfinite().all()) for tensor in open_bundle(out / name).tensors.values())
    assert records(out)[-1]["train_loss"] < records(out)[0]["train_loss"]


def test_a_stop_right_after_a_refused_step_keeps_all(tmp_path: Path, poison: Callable[..., None]) -> None:
    poison({3: "gradient"})
    straight = trained(tmp_path / "a", epochs=2)
    poison({3: "gradient"}, stop=signal.SIGINT)
    with pytest.raises(Stopped):
        trained(tmp_path / "b", epochs=2)
    broken = told_to_nobody(None, tmp_path / "b")
    assert broken.bundle.metrics == straight.bundle.metrics
    assert [record.get("refused") for record in records(tmp_path / "b")] == [{"4": "gradient"}, None]
    a, b = (open_bundle(tmp_path / name / LAST_FILE).tensors for name in "ab")
    assert all(torch.equal(tensor, b[key]) for key, tensor in a.items())


def test_after_ten_in_a_row_the_run_goes_back_and_ends_as_if_nothing_had_been(
    tmp_path: Path, poison: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What spoils the steps is gone the second time, as a fault of a machine may be."""
    straight = trained(tmp_path / "a", epochs=4, save__every_steps=6)
    said: list[str] = []
    monkeypatch.setattr(Watch, "say", lambda self, sentence: said.append(sentence))
    poison(dict.fromkeys(range(14, 14 + IN_A_ROW), "loss"), times=1)
    done = trained(tmp_path / "b", epochs=4, save__every_steps=6)
    back = [sentence for sentence in said if "goes back by itself: going on from step 12" in sentence]
    assert len(back) == 1 and f"as in {IN_A_ROW - 1} or more before it" in back[0]
    assert done.bundle.metrics == straight.bundle.metrics and done.bundle.notes == straight.bundle.notes
    assert [record["epoch"] for record in records(tmp_path / "b")] == [1, 2, 3, 4]
    a, b = (open_bundle(tmp_path / name / LAST_FILE).tensors for name in "ab")
    assert all(torch.equal(tensor, b[key]) for key, tensor in a.items())


def test_where_it_recurs_the_run_stops_with_advice(tmp_path: Path, poison: Callable[..., None]) -> None:
    poison(dict.fromkeys(range(14, 40), "gradient"))
    with pytest.raises(Diverged, match=r"not finite at step 24 as in 9 or more before it .*lower rate: --optim\.lr"):
        trained(tmp_path / "r", epochs=5, save__every_steps=6)
    assert states.found(tmp_path / "r")
    found = states.newest(tmp_path / "r")
    assert found is not None and all(bool(t.isfinite().all()) for t in found[1].values() if t.is_floating_point())


def test_without_a_state_to_go_back_to_the_run_stops_at_once(tmp_path: Path, poison: Callable[..., None]) -> None:
    poison(dict.fromkeys(range(40), "loss"))
    with pytest.raises(Diverged, match="not finite at step 10 as in 9 or more before it"):
        trained(tmp_path / "r", epochs=5, data="digits")
    assert not states.found(tmp_path / "r")


def test_no_step_waits_for_the_device() -> None:
    """On tensors that have no values, so that whatever asked for one would fail: from the loss to the average."""
    with torch.device("meta"):
        model = VisionTransformer(small(weight_init="timm"))
        made, average = optimizer(model, OptimConfig(name="lamb")), Average(model, 0.9)
        loss, norm = torch.zeros(()), torch.zeros(())
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    refused, seen = refusal(loss, norm), Refused(0)
    update(made, refused)
    average.update(0, refused)
    seen.add(refused)
    assert refused.device.type == "meta" and not seen.urgent
    with pytest.raises((NotImplementedError, RuntimeError)):
        seen.look(1)
