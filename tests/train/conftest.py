"""Runs of seconds: how fast a step is here is asked for a moment only, not for a second."""

from __future__ import annotations

import pytest

from vitrine.train import pace


@pytest.fixture(autouse=True)
def quick_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "LONGEST_S", 0.05)
