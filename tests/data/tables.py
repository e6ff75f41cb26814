"""Parquet files that the tests of this room are made of, as `datasets` writes them or plainer."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from tests.data.pictures import pixels

STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def png(seed: int, size: tuple[int, int] = (12, 10)) -> bytes:
    """A picture file of random pixels."""
    file = io.BytesIO()
    Image.fromarray(pixels(seed, size)).save(file, "PNG")
    return file.getvalue()


def features(**kinds: Any) -> dict[bytes, bytes]:
    """The metadata that `datasets` writes; a list of names is a ClassLabel, one inside a list a list of these."""

    def told(kind: Any) -> Any:
        if isinstance(kind, str):
            return {"_type": kind}
        if kind and isinstance(kind[0], list):
            return {"_type": "List", "feature": told(kind[0])}
        return {"_type": "ClassLabel", "names": kind}

    return {b"huggingface": json.dumps({"info": {"features": {k: told(v) for k, v in kinds.items()}}}).encode()}


def table(count: int, *, first: int = 0, names: Sequence[str] = ("b", "a"), **columns: Any) -> pa.Table:
    """`count` pictures as Hugging Face's struct, picture k of class k % len(names); `columns` replace or add."""
    seeds = range(first, first + count)
    made = {
        "image": pa.array([{"bytes": png(seed), "path": f"{seed}.png"} for seed in seeds], STRUCT),
        "label": pa.array([seed % len(names) for seed in seeds], pa.int64()),
    }
    made |= {name: column if isinstance(column, pa.Array) else pa.array(column) for name, column in columns.items()}
    return pa.table(made).replace_schema_metadata(features(image="Image", label=list(names)))


def write(path: Path, made: pa.Table, rows: int = 4, **options: Any) -> Path:
    """A file of row groups of so many rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(made, path, row_group_size=rows, **options)
    return path


def bytes_of(made: pa.Table, rows: int = 4) -> bytes:
    """A file's bytes."""
    file = io.BytesIO()
    pq.write_table(made, file, row_group_size=rows)
    return file.getvalue()
