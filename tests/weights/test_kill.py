from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kill -9 during a save: needs fork")
def test_after_each_of_fifty_kills_the_newest_whole_bundle_loads(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.weights.saver", str(tmp_path)],
        capture_output=True, text=True, cwd=Path(__file__).parents[2], timeout=60,
        env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    found = report["found"]
    assert len(found) == 51
    assert all(later >= earlier for earlier, later in itertools.pairwise(found))
    assert found[-1] > 20, "the children saved too little for the kills to mean anything"
    assert report["leftovers"] > 0, "no kill fell into a save"
    assert report["names"] == ["model.safetensors"]
