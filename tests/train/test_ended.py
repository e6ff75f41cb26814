"""P5: a run that was ended goes on bit for bit as if it had not been."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.train.test_killed import ran


@pytest.mark.skipif(not hasattr(os, "fork"), reason="children from a warm process: need fork")
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("stops", [4, pytest.param(120, marks=pytest.mark.slow)])
def test_the_weights_at_the_end_are_those_of_a_run_that_was_not_ended(tmp_path: Path, stops: int) -> None:
    """For 0, 1 and 2 processes that decode, in float32 and bfloat16, ended in mid-epoch and mid-accumulation."""
    report = ran("ended", tmp_path, stops, timeout=1700)
    print(report)
    assert report["equal"] == stops and report["different"] == 2
    assert min(report["ways"].values()) >= min(2, stops // 4)
