"""Runs of seconds: how fast a step is here is asked for a moment only, not for a second."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import pytest

from vitrine.train import fit, pace


@pytest.fixture(autouse=True)
def quick_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "LONGEST_S", 0.05)


@pytest.fixture
def signal_at(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Sends this process a signal in the middle of the given steps of a run, from 0."""
    plain = fit.train_step

    def ask(*steps: int, number: int = signal.SIGINT, times: int = 1) -> None:
        def stepped(*args: Any, step: int, **how: Any) -> Any:
            for _ in range(times if step in steps else 0):
                os.kill(os.getpid(), number)
            return plain(*args, step=step, **how)

        monkeypatch.setattr(fit, "train_step", stepped)

    return ask
