"""Runs of Vitrine that a bench needs: trained once, and gone on with where they were stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vitrine.train.run import train
from vitrine.train.watch import Watch
from vitrine.weights.bundle import MODEL_FILE, Bundle, facts_of, open_bundle


def learnt(data: Path, out: Path, *, quiet: bool, **options: Any) -> Bundle:
    """The model of the run in `out`, trained now where it is not there or did not go to its end."""
    file = out / MODEL_FILE
    if not (file.exists() and facts_of(file).finished):
        train(data, out, watch=Watch(quiet=quiet), **options)
    return open_bundle(file)
