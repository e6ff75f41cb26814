"""`vitrine shards`: any data as tar shards, for sets too large for a file a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from vitrine.cli import arguments, show
from vitrine.cli.limits import HELP
from vitrine.config.options import DataConfig
from vitrine.errors import UsageError

DESCRIPTION = """Write data as tar shards in WebDataset's layout, with an index of all that a look at the pictures
shows: training on them begins at once, however many they are. Pictures are copied byte for byte; with --side, larger
ones are made smaller (JPEG and WebP become JPEG, all else PNG). The folder appears whole, read back, or not at all."""


USUAL = DataConfig()


@dataclass(frozen=True, kw_only=True)
class Shards:
    """What may be asked for."""

    data: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATA", help="as for `vitrine train`")]
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT", help="the new folder")]
    side: Annotated[
        int | None,
        tyro.conf.arg(
            metavar="INT", help="largest shorter side [pixels]", help_behavior_hint="(default: pictures as they are)"
        ),
    ] = None
    quality: Annotated[int, tyro.conf.arg(metavar="INT", help="of JPEGs that are made smaller, 1 to 95")] = 90
    shard_mb: Annotated[int, tyro.conf.arg(metavar="INT", help="most of a shard [million bytes]")] = 256
    max_bad_share: Annotated[
        float, tyro.conf.arg(metavar="FLOAT", help="share of damaged pictures above which nothing is written")
    ] = USUAL.max_bad_share
    max_pixels: Annotated[int, tyro.conf.arg(metavar="INT", help=HELP["max_pixels"])] = USUAL.max_pixels
    max_bytes: Annotated[int, tyro.conf.arg(metavar="INT", help=HELP["max_bytes"])] = USUAL.max_bytes
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff, tyro.conf.arg(help="one JSON object on stdout")] = False
    quiet: Annotated[
        bool, tyro.conf.FlagCreatePairsOff, tyro.conf.arg(aliases=["-q"], help="nothing on stderr but errors")
    ] = False


def main(words: Sequence[str]) -> int:
    """Run the verb."""
    asked = arguments.parse(Shards, words, "shards", DESCRIPTION)
    for name, value, least, most in (
        ("--side", asked.side, 1, 1 << 16), ("--quality", asked.quality, 1, 95),
        ("--shard-mb", asked.shard_mb, 1, 1 << 20),
    ):  # fmt: skip
        if value is not None and not least <= value <= most:
            raise UsageError(f"{name} {value}: must be from {least:,} to {most:,}.")

    from vitrine.data.sharding import Shape, write_shards
    from vitrine.data.sources import open_source
    from vitrine.train.watch import Watch

    settings = DataConfig(
        source=asked.data, max_bad_share=asked.max_bad_share, max_pixels=asked.max_pixels, max_bytes=asked.max_bytes
    )
    with Watch(quiet=asked.quiet) as watch:
        source = open_source(settings, labelled=False)
        watch.begin("writing shards", len(source))
        written = write_shards(
            source,
            asked.out,
            Shape(side=asked.side, quality=asked.quality, shard_bytes=asked.shard_mb * 1_000_000),
            settings,
            progress=watch.at,
            on_bad=lambda name, why: watch.say(f"left out: {name}: {why}"),
        )
    if asked.json:
        show.as_json(vars(written) | {"out": str(asked.out)})
        return 0
    print(f"{asked.out}: {written.pictures:,} pictures in {written.shards:,} shards, {written.bytes:,} bytes")
    if written.shrunk:
        print(f"made smaller: {written.shrunk:,} pictures")
    if written.left_out:
        print(f"left out: {len(written.left_out):,} damaged pictures")
    print(f"next:  vitrine train {asked.out} --out FOLDER")
    return 0
