"""What is added up over an epoch, against the literal sums, and whose time is whose."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.made import trained
from vitrine.train.meter import Meter
from vitrine.train.state import Progress
from vitrine.train.step import StepResult

CPU = torch.device("cpu")
NORMS = [0.5, 3.0, 1.5, 0.1]


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, which stands still unless it is moved."""
    time = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: time[0])
    return time


def result(norm: float, loss: float = 8.0, correct: float = 3.0) -> StepResult:
    return StepResult(
        loss=torch.tensor(loss), correct=torch.tensor(correct), weight=torch.tensor(4.0), grad_norm=torch.tensor(norm)
    )


def test_the_sums_are_the_literal_ones() -> None:
    meter = Meter(Progress(epochs=1), CPU, clip_norm=1.0)
    for norm in NORMS:
        meter.add(result(norm))
    found = meter.record(batch_size=4)
    assert (found["train_loss"], found["train_top1"]) == (2.0, 0.75)
    assert found["grad_norm_mean"] == pytest.approx(sum(NORMS) / 4) and found["grad_norm_max"] == 3.0
    assert found["clipped"] == 0.5
    meter.reset()
    assert meter.record(4)["grad_norm_max"] == 0 == meter.sums.sum()


def test_without_a_limit_nothing_is_clipped() -> None:
    meter = Meter(Progress(epochs=1), CPU, clip_norm=0.0)
    meter.add(result(1e9))
    assert meter.record(4)["clipped"] == 0


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_norm_that_is_not_finite_stays_seen(bad: float) -> None:
    meter = Meter(Progress(epochs=1), CPU, clip_norm=1.0)
    for norm in (1.0, bad, 1.0):
        meter.add(result(norm))
    assert not bool(torch.isfinite(meter.sums).all())


def test_a_stop_between_two_steps_changes_no_figure() -> None:
    whole, progress = Meter(Progress(epochs=1), CPU, 1.0), Progress(epochs=1)
    part = Meter(progress, CPU, 1.0)
    for norm in NORMS:
        whole.add(result(norm, loss=norm / 3))
        part.add(result(norm, loss=norm / 3))
        part.keep(progress)
        progress = Progress(**json.loads(json.dumps(vars(progress))))
        part = Meter(progress, CPU, 1.0)
    timed = {"epoch_seconds", "epoch_pictures_per_s", "wait_share"}
    a, b = (meter.record(4) for meter in (whole, part))
    assert {name: a[name] for name in a.keys() - timed} == {name: b[name] for name in b.keys() - timed}


def test_time_is_the_loops_and_waiting_the_loaders(now: list[float]) -> None:
    def batches() -> Iterator[Any]:
        for _ in range(3):
            now[0] += 2.0  # the loader
            yield None

    meter = Meter(Progress(epochs=1), CPU, 1.0)
    for _ in meter.through(batches()):
        now[0] += 3.0  # the step
        meter.add(result(1.0))
        now[0] += 5.0  # the device is asked
        meter.settle()
        now[0] += 100.0  # validation and saving
    found = meter.record(batch_size=10)
    assert (found["epoch_seconds"], found["wait_share"], found["epoch_pictures_per_s"]) == (30.0, 0.2, 1.0)


def test_a_cuda_device_waits_only_where_it_has_nothing_to_do(now: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    """The events are played: `busy` is when the device will be done with what it was given."""
    busy = [100.0]

    class Event:
        def __init__(self, *, enable_timing: bool) -> None:
            assert enable_timing
            self.at = 0.0

        def record(self) -> None:
            self.at = max(busy[0], now[0])

        def elapsed_time(self, later: Event) -> float:
            return 1000 * (later.at - self.at)

    monkeypatch.setattr(torch.cuda, "Event", Event)

    def batches() -> Iterator[Any]:
        for seconds in (0.0, 2.0, 7.0):
            now[0] += seconds
            yield None

    meter = Meter(Progress(epochs=1), CPU, 1.0)
    meter._cuda = True
    for _ in meter.through(batches()):
        meter.add(result(1.0))
        busy[0] = max(busy[0], now[0]) + 5.0  # each step keeps the device for five seconds
    # The second batch came while the device worked. The third came at 109, where the device was done at 110.
    meter.settle()
    assert meter.waited == 0.0
    now[0] = 130.0
    meter._idle = []
    for _ in meter.through(iter([None])):  # type: ignore[list-item]
        busy[0] = now[0] + 5.0
    busy[0], now[0] = 140.0, 140.0
    slow = (now.__setitem__(0, 149.0) for _ in range(1))
    for _ in meter.through(slow):  # type: ignore[arg-type]
        pass
    meter.settle()
    assert meter.waited == 9.0


def test_the_records_of_a_run(tmp_path: Path) -> None:
    trained(tmp_path / "r", epochs=2)
    lines = [json.loads(line) for line in (tmp_path / "r" / "metrics.jsonl").read_text().splitlines()]
    old = {"epoch", "step", "train_loss", "train_top1", "lr", "grad_norm", "pictures_per_s", "seconds", "val_top1"}
    new = {"epochs", "grad_norm_mean", "grad_norm_max", "clipped", "epoch_seconds", "epoch_pictures_per_s",
           "wait_share", "memory_bytes", "peak_share", "val_loss", "val_n", "val_never"}  # fmt: skip
    for line in lines:
        assert set(line) == old | new
        assert 0 < line["grad_norm_mean"] <= line["grad_norm_max"] and line["grad_norm"] <= line["grad_norm_max"]
        assert 0 <= line["wait_share"] < 1 and 0 < line["peak_share"] < 1
        assert 50 << 20 < line["memory_bytes"] < 64 << 30
        assert 0 < line["epoch_seconds"] <= line["seconds"]
        assert line["epoch_pictures_per_s"] == pytest.approx(1024 / line["epoch_seconds"], rel=0.05)
        assert line["val_n"] == 360
    page = (Path(__file__).parents[2] / "docs/watching.md").read_text(encoding="utf-8")
    assert [name for name in lines[0] if f"`{name}`" not in page] == []
