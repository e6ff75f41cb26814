from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

import pytest

from vitrine.results import SCHEMA_VERSION, ClassFigures, Figure, Metrics, Prediction, Provenance

HALF = Figure(value=0.5, low=0.25, high=0.75, n=12)


def test_a_figure_reads_as_people_read_it() -> None:
    assert Figure(value=0.983, low=0.9641, high=0.992, n=360).percent() == "98.3 % (96.4 to 99.2, n = 360)"
    assert Figure(value=1.0, low=0.9, high=1.0, n=5).percent() == "100.0 % (90.0 to 100.0, n = 5)"


def test_results_are_ready_for_json() -> None:
    row = ClassFigures(name="cat", n=12, recall=HALF, precision=None)
    found = Metrics(figures={"top1": HALF, "loss": HALF}, classes=(row,), confusion=((3, 1), (0, 8)), majority=0.6)
    back = json.loads(json.dumps(found.as_json(), allow_nan=False))
    assert back["top1"] == {"value": 0.5, "low": 0.25, "high": 0.75, "n": 12} == HALF.as_json()
    assert back["classes"] == [{"name": "cat", "n": 12, "recall": HALF.as_json(), "precision": None}]
    assert back["confusion"] == [[3, 1], [0, 8]]
    assert back["majority"] == 0.6
    assert found.top1 is HALF
    answer = Prediction(label="cat", index=3, probability=0.5)
    assert json.loads(json.dumps(answer.as_json())) == {"label": "cat", "index": 3, "probability": 0.5}


@pytest.mark.parametrize("made", [HALF, Prediction(label="a", index=0, probability=1.0), Provenance()])
def test_results_are_frozen(made: object) -> None:
    name = dataclasses.fields(made)[0].name  # type: ignore[arg-type]
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(made, name, 0)


def test_the_number_of_the_schema_is_frozen() -> None:
    """Raising it is for a change that breaks a reader of our JSON."""
    assert SCHEMA_VERSION == 1


def test_results_need_no_torch() -> None:
    asked = "import sys, vitrine.results; print('torch' in sys.modules or 'numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
