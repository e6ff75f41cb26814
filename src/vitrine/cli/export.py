"""`vitrine export`: a model in another format, with the numerical proof."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from vitrine.cli import foreign, show
from vitrine.cli.foreign import File

DESCRIPTION = """Write a model in another format: google, transformers (hf), timm, torchvision, bit, or vitrine's own.
What was written is read again and its logits compared with the source's: the difference is printed, and where it is
more than rounding nothing is left."""


@dataclass(frozen=True, kw_only=True)
class Export:
    """What may be asked for."""

    file: File
    to: Annotated[str, tyro.conf.arg(metavar="FORMAT", help="google, hf, timm, torchvision, bit or vitrine")]
    out: Annotated[Path, tyro.conf.arg(metavar="PATH", help="where the file or folder goes")]
    accept_difference: Annotated[
        float, tyro.conf.arg(metavar="FLOAT", help="write although logits differ by up to this much")
    ] = 0.0
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff, tyro.conf.arg(help="one JSON object on stdout")] = False


def main(words: Sequence[str]) -> int:
    """Run the verb."""
    asked, said = foreign.parse(Export, words, "export", DESCRIPTION)

    from vitrine.predict.classifier import opened
    from vitrine.weights.exporting import export

    source = opened(asked.file, said)
    foreign.tell(source)
    written = export(source.bundle, asked.to, asked.out, accept=asked.accept_difference)
    if asked.json:
        show.as_json(
            {
                "source": {"file": asked.file, **foreign.account(source)},
                "out": str(written.out),
                "format": written.format,
                "tensors": written.tensors,
                "max_difference": written.max_difference,
                "spread": written.spread,
                "agreement": written.agreement,
                "num_pictures": written.num_pictures,
                "said": list(written.said),
            }
        )
        return 0
    print(f"{asked.file}: {source.title}; {len(source.used)} tensors used, {len(source.dropped)} dropped")
    for name, why in source.dropped.items():
        print(f"dropped: {name}: {why}")
    print(f"{written.out}: {written.format}; {written.tensors} tensors written")
    for sentence in written.said:
        print(sentence)
    what = "logits" if source.bundle.model.num_classes else "features"
    print(
        f"max |difference| of {what}: {written.max_difference:.2e} over {written.num_pictures} random pictures, "
        f"whose {what} have a deviation of {written.spread:.3g}; same first class in {written.agreement:.0%}".replace(
            "%", " %"
        )
    )
    return 0
