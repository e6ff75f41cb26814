"""One picture that shows where a model looked: fit for a slide."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.figure import Figure
from PIL import Image

from vitrine.figures import layout
from vitrine.figures import page as paper
from vitrine.figures.heatmap import Box, colours, inside, overlay
from vitrine.figures.layout import MARGIN, ROOM, Layout, Rect

TITLE, SMALLEST_TITLE, LABEL, SMALL = 46, 26, 25, 21
LABEL_GAP = 18
# The side below which a picture's own pixels are shown as squares.
CRISP_BELOW = 160


def attention_panel(
    picture: UInt8[np.ndarray, "H W 3"],
    rollout: Float[np.ndarray, "h w"],
    heads: Float[np.ndarray, "heads h w"],
    box: Box | None,
    *,
    title: str,
    caption: str,
    path: Path,
    label: str = "Where the model looked",
) -> None:
    """Write a PNG of 1600 pixels' width to `path`, whole or not at all.

    The picture, beside it the rollout laid over it, and what each head of the last layer looks at, cut to
    `box` (left, top, right, bottom: what the model was given; None for all). Every map is scaled from its
    own least to its own most. `title` says the answer, `caption` the method and the model, `label` what the
    rollout shows. Beside a picture so tall that it leaves half the page free the heads stand at the right,
    otherwise below.

    Raises `UsageError` and `BadData` as `overlay` does, `CannotCreate` or `DiskError` from writing.
    """
    left, top, right, bottom = inside(box, picture)
    H, W = picture.shape[:2]
    places = layout.arrange(W / H, (right - left) / (bottom - top), len(heads))
    shown, cut = fit(picture, places.picture), picture[top:bottom, left:right]
    scale_x, scale_y = places.picture.width / W, places.picture.height / H
    region = (left * scale_x, top * scale_y, right * scale_x, bottom * scale_y)
    page = paper.blank(layout.WIDTH, places.height)
    _words(page, places, title, caption, label)
    paper.place(page, shown, places.picture.left, places.picture.top)
    paper.place(page, overlay(shown, rollout, region), places.rollout.left, places.rollout.top)
    _scale(page, places.rollout)
    for tile, heat in zip(places.tiles, heads, strict=True):
        paper.place(page, overlay(fit(cut, tile), heat), tile.left, tile.top)
    paper.save(page, path)


def fit(picture: UInt8[np.ndarray, "H W 3"], place: Rect) -> UInt8[np.ndarray, "h w 3"]:
    """The picture in the size of `place`; the pixels of a tiny one stay squares."""
    crisp = max(picture.shape[:2]) < CRISP_BELOW and picture.shape[1] < place.width
    how = Image.Resampling.NEAREST if crisp else Image.Resampling.LANCZOS
    return np.asarray(Image.fromarray(picture).resize((place.width, place.height), how))


def _words(page: Figure, places: Layout, title: str, caption: str, label: str) -> None:
    """Title, caption, and a label over each part."""
    # the probability stands at the end of the title: smaller letters before any cut
    letters = max(SMALLEST_TITLE, min(TITLE, TITLE * ROOM / max(1.0, paper.width_of(page, title, TITLE))))
    head = paper.shorten(page, title, letters, ROOM)
    paper.write(page, MARGIN, 108, head, height=letters, stand="baseline")
    labels = {"The picture": places.picture, label: places.rollout}
    if places.tiles:
        count = len(places.tiles)
        labels[f"The {count} heads of the last layer" if count > 1 else "The head of the last layer"] = places.tiles[0]
    for text, place in labels.items():
        y = place.top - LABEL_GAP
        paper.write(page, place.left, y, text, height=LABEL, ink=paper.SOFT, stand="baseline")
    small = paper.shorten(page, caption, SMALL, ROOM)
    paper.write(page, MARGIN, places.height - 60, small, height=SMALL, ink=paper.SOFT, stand="baseline")


def _scale(page: Figure, beside: Rect) -> None:
    """The slim colour bar at the right of the rollout, from less at its foot to more at its head."""
    height, left = max(beside.height, 60), beside.right + 18
    levels = np.repeat(np.linspace(1, 0, height)[:, None], 10, axis=1)
    paper.place(page, np.rint(colours(levels)).astype(np.uint8), left, beside.top)
    paper.write(page, left + 20, beside.top - 3, "more", height=SMALL, ink=paper.SOFT)
    paper.write(page, left + 20, beside.top + height, "less", height=SMALL, ink=paper.SOFT, stand="baseline")
