"""Memory in bytes whatever the system counts in, and a rate that is one."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from vitrine.machine import device as machine
from vitrine.machine import peaks


@pytest.mark.parametrize(("platform", "found"), [("darwin", 5000), ("linux", 5_120_000), ("freebsd14", 5_120_000)])
def test_every_system_counts_in_its_own_unit(platform: str, found: int) -> None:
    assert peaks.in_bytes(5000, platform) == found


@pytest.mark.skipif(sys.platform != "linux", reason="reads the proc of Linux")
def test_memory_that_is_held_is_counted() -> None:
    before = peaks.memory_peak(torch.device("cpu"))
    held = np.ones(400_000_000, np.uint8)
    after = peaks.memory_peak(torch.device("cpu"))
    assert held.nbytes < after < 64 << 30 and before <= after


def test_without_proc_the_system_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "SYSTEM", tmp_path)
    resource = pytest.importorskip("resource")
    monkeypatch.setattr(sys, "platform", "darwin")
    found = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert found <= peaks.memory_peak(torch.device("cpu")) <= 2 * found
    monkeypatch.setitem(sys.modules, "resource", None)
    assert peaks.memory_peak(torch.device("cpu")) == 0


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_the_rate_is_that_of_the_fastest_product(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype | None) -> None:
    monkeypatch.setitem(peaks.SIDES, "cpu", 64)
    monkeypatch.setattr(peaks, "LONGEST_S", 1.0)
    now, took = [0.0], iter([0.4, 0.25, 0.5])

    def clock() -> float:
        clock.calls += 1  # type: ignore[attr-defined]
        if clock.calls % 2 == 0:  # type: ignore[attr-defined]
            now[0] += next(took)
        return now[0]

    clock.calls = 0  # type: ignore[attr-defined]
    monkeypatch.setattr("time.perf_counter", clock)
    before = torch.get_rng_state()
    assert peaks.product_rate(torch.device("cpu"), dtype) == pytest.approx(2 * 64**3 / 0.25)
    assert torch.equal(torch.get_rng_state(), before)
