"""Writes some pictures that a model trained on `digits` has not seen, as PNG files to try it on.

    python examples/digit_pictures.py OUT

They come from the test part of the split that `vitrine train digits` makes by default.
"""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image

from vitrine.config.options import DataConfig
from vitrine.data.scan import scan
from vitrine.data.sources import open_source
from vitrine.data.splits import split


def main(out: Path) -> None:
    """One picture of each class."""
    settings = DataConfig(source="digits")
    source = open_source(settings)
    test = split(source, scan(source, settings).bad, settings).test
    out.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(source.class_names):
        first = next(int(i) for i in test if source.labels[i] == number)
        picture: Image.Image = source.picture(first)
        picture.save(out / f"digit_{name}.png")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/demo/pictures"))
