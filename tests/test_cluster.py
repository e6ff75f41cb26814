"""The simulation of failures in bench/cluster.py against the closed form it approximates."""

from __future__ import annotations

import importlib.util
import math
import sys
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="module")
def cluster() -> ModuleType:
    """The bench as a module."""
    spec = importlib.util.spec_from_file_location("cluster", Path(__file__).parents[1] / "bench" / "cluster.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["cluster"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("between_h", "best_min"), [(24.0, 117.0), (6.0, 57.0), (0.25, 9.1)])
def test_the_simulation_agrees_with_dalys_closed_form(cluster: ModuleType, between_h: float, best_min: float) -> None:
    """The runs of figures 3 to 5 of doi 10.1016/j.future.2004.11.016, with the intervals found best there: T of work,
    saves of d = 5 min after every t, and R = 10 min to go back take M e^(R/M) (e^((t + d)/M) - 1) T / t."""
    work_h, back_h, save_h = (500.0 if between_h > 1 else 20.0), 10 / 60, 5 / 60
    hours = {}
    for minutes in (best_min / 2, best_min, best_min * 2):
        saves = cluster.Saves(every_s=60 * minutes, blocked_s=3600 * save_h, write_s=0.0)
        ran = cluster.simulate(3600 * work_h, saves, between_s=3600 * between_h, back_s=3600 * back_h, trials=300)
        hours[minutes] = ran["seconds"].mean() / 3600
        grown = math.exp(back_h / between_h) * (math.exp((minutes / 60 + save_h) / between_h) - 1)
        closed = between_h * grown * work_h / (minutes / 60)
        assert hours[minutes] == pytest.approx(closed, rel=0.02)
    assert min(hours, key=hours.__getitem__) == best_min


def test_without_failures_saving_costs_its_copies_alone(cluster: ModuleType) -> None:
    saves = cluster.Saves(every_s=10.0, blocked_s=1.0, write_s=5.0)
    ran = cluster.simulate(100.0, saves, between_s=1e12, back_s=60.0, trials=3)
    assert ran["seconds"].tolist() == [109.0] * 3  # nothing is saved at the end
    assert not ran["failures"].any() and not ran["lost_s"].any()


def test_work_is_lost_back_to_the_newest_save_that_was_complete(cluster: ModuleType) -> None:
    """With failures every 25 s or so and saves that take longer than that to write, nothing is ever kept for long."""
    slow, quick = (cluster.Saves(every_s=5.0, blocked_s=0.1, write_s=write) for write in (40.0, 0.0))
    lost = [
        cluster.simulate(60.0, saves, between_s=25.0, back_s=1.0, trials=200)["lost_s"].mean()
        for saves in (slow, quick)
    ]
    assert lost[0] > 5 * lost[1] > 0
