"""Tables where the verbs take data: trained on, judged and answered as the same pictures in a folder are."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest

from tests.data.tables import STRUCT, features, png, table, write
from tests.made import trained
from vitrine.__main__ import main

MODEL = {"depth": 1, "embed_dim": 16, "num_heads": 2, "img_size": 8, "patch_size": 4}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on a table of 60 pictures, which lies beside it."""
    folder = tmp_path_factory.mktemp("tables")
    trained(folder / "run", str(write(folder / "set.parquet", table(60))), epochs=1, batch_size=16, model=MODEL)
    return folder / "run"


def told(capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    return dict(json.loads(capsys.readouterr().out))


def test_a_model_is_judged_on_a_table(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(run), str(run.parent / "set.parquet"), "--json"]) == 0
    own = told(capsys)
    assert own["part"] == "test" and own["top1"]["n"] == 12  # type: ignore[index]
    other = table(8, names=("a", "b")).rename_columns(["image", "kind"])  # other numbers for the same names
    other = other.replace_schema_metadata(features(image="Image", kind=["a", "b"]))
    path = write(run.parent / "other.parquet", other)
    assert main(["evaluate", str(run), str(path), "--label-column", "kind", "--json"]) == 0
    assert told(capsys)["part"] == "all"
    assert main(["evaluate", str(run), str(write(run.parent / "x.parquet", table(4, names=("a", "cow"))))]) == 65
    assert "the model does not know 1 of 2 classes: cow" in capsys.readouterr().err


def test_classes_are_matched_by_name(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figures = []
    for k, names in enumerate((("b", "a"), ("a", "b"))):
        numbers = [seed % 2 if names[0] == "b" else 1 - seed % 2 for seed in range(100, 120)]
        path = write(run.parent / f"named{k}.parquet", table(20, first=100, names=names, label=numbers))
        assert main(["evaluate", str(run), str(path), "--json"]) == 0
        figures.append({key: value for key, value in told(capsys).items() if key != "data"})
    assert figures[0] == figures[1]


def test_every_row_is_answered_whatever_its_class(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cells = [{"bytes": png(0)}, {"bytes": b"?"}, {"bytes": png(2)}]
    path = write(run.parent / "new.parquet", table(3, image=pa.array(cells, STRUCT), label=pa.array([-1, -1, None])))
    assert main(["predict", str(run), str(path), "--json"]) == 65
    results = told(capsys)["results"]
    assert [one["picture"] for one in results] == [f"new.parquet:{k}" for k in range(3)]  # type: ignore[attr-defined]
    assert ["predictions" in one for one in results] == [True, False, True]  # type: ignore[attr-defined]
