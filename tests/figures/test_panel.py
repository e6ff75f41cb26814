from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitrine.errors import BadData, CannotCreate
from vitrine.figures import layout
from vitrine.figures import page as paper
from vitrine.figures.layout import Rect, arrange
from vitrine.figures.panel import attention_panel, fit

RNG = np.random.default_rng(0)


def draw(path: Path, shape: tuple[int, int], heads: int, title: str = "cat  98 %", **more: object) -> np.ndarray:
    picture = RNG.integers(0, 256, (*shape, 3), dtype=np.uint8)
    maps = RNG.random((heads, 7, 7))
    given: dict[str, object] = {"rollout": RNG.random((7, 7)), "box": None, **more}
    attention_panel(picture, given["rollout"], maps, given["box"], title=title, caption="rollout, ViT-Ti/16", path=path)
    return np.asarray(Image.open(path).convert("RGB"))


@pytest.mark.parametrize(("shape", "heads"), [((60, 60), 1), ((90, 300), 12), ((700, 90), 16), ((8, 8), 4)])
def test_a_panel_for_every_kind_of_picture(tmp_path: Path, shape: tuple[int, int], heads: int) -> None:
    pixels = draw(tmp_path / "panel.png", shape, heads)
    assert pixels.shape[1] == 1600
    frame = np.concatenate([pixels[:40].ravel(), pixels[-30:].ravel(), pixels[:, :60].ravel(), pixels[:, -40:].ravel()])
    assert (frame == 255).all()


def test_the_picture_is_shown_as_it_is_and_the_heat_beside_it(tmp_path: Path) -> None:
    picture = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 0]]], np.uint8)
    path = tmp_path / "panel.png"
    heat = np.array([[0.0, 0.0], [0.0, 1.0]])
    attention_panel(picture, heat, heat[None], None, title="t", caption="c", path=path)
    pixels, places = np.asarray(Image.open(path).convert("RGB")), arrange(1, 1, 1)
    shown = cut(pixels, places.picture)
    assert len(np.unique(shown.reshape(-1, 3), axis=0)) == 4  # crisp: no mixed colours
    for i, j in np.ndindex(2, 2):
        assert (shown[i * 325 + 160, j * 325 + 160] == picture[i, j]).all()
    for place in (places.rollout, places.tiles[0]):
        seen = cut(pixels, place)
        assert seen[-5, -5].astype(int).sum() > seen[5, 5].astype(int).sum()
        assert np.ptp(seen[-5, -5].astype(int)) > 60


def cut(pixels: np.ndarray, place: Rect) -> np.ndarray:
    return pixels[place.top : place.bottom, place.left : place.right]


def test_heads_are_cut_to_the_box(tmp_path: Path) -> None:
    picture = np.zeros((100, 200, 3), np.uint8)
    picture[:, :100] = 255
    path = tmp_path / "panel.png"
    flat = np.zeros((2, 3, 3))
    attention_panel(picture, flat[0], flat, (100, 0, 200, 100), title="t", caption="c", path=path)
    places = arrange(2, 1, 2)
    pixels = np.asarray(Image.open(path).convert("RGB"))
    assert all(cut(pixels, tile).max() < 20 for tile in places.tiles)
    assert cut(pixels, places.rollout)[:, 20].max() > 60


@pytest.mark.parametrize("aspect", [0.001, 0.2, 0.5, 1.0, 1.5, 6.0, 500.0])
@pytest.mark.parametrize("heads", [0, 1, 2, 3, 6, 7, 12, 16, 24, 48])
def test_nothing_overlaps_or_leaves_the_page(aspect: float, heads: int) -> None:
    for tile_aspect in (1.0, aspect):
        places = arrange(aspect, tile_aspect, heads)
        parts = [places.picture, places.rollout, *places.tiles]
        assert len(places.tiles) == heads
        for part in parts:
            assert part.width >= 1
            assert part.height >= 1
            assert part.left >= layout.MARGIN
            assert part.right <= layout.WIDTH - layout.MARGIN
            assert part.bottom <= places.height - layout.FOOT
        assert not any(overlap(a, b) for i, a in enumerate(parts) for b in parts[:i])


def overlap(a: Rect, b: Rect) -> bool:
    return a.left < b.right and b.left < a.right and a.top < b.bottom and b.top < a.bottom


def test_usual_numbers_of_heads_fill_their_rows() -> None:
    rows = {n: len({tile.top for tile in arrange(1, 1, n).tiles}) for n in (1, 3, 6, 12, 16)}
    assert rows == {1: 1, 3: 1, 6: 1, 12: 2, 16: 2}


@pytest.mark.parametrize("aspect", [0.3, 0.5, 1.0, 3.0])
@pytest.mark.parametrize("heads", [1, 4, 12, 16, 48])
def test_heads_are_large_enough_to_be_seen(aspect: float, heads: int) -> None:
    assert all(tile.width >= 50 for tile in arrange(aspect, 1.0, heads).tiles)


def test_any_title_is_drawn_as_it_is(tmp_path: Path) -> None:
    for title in ("$x^2$ and $", "犬 97 %", "", "a very long name, " * 30 + "98 %", "two\nlines"):
        assert draw(tmp_path / "panel.png", (20, 20), 1, title).shape[1] == 1600


def test_shortened_text_fits_and_short_text_is_kept() -> None:
    page = paper.blank(400, 100)
    long = paper.shorten(page, "word " * 40, 20, 300)
    assert long.endswith("…")
    assert 250 < paper.width_of(page, long, 20) <= 300
    assert paper.shorten(page, "word", 20, 300) == "word"
    assert not page.texts


def test_a_large_picture_is_shrunk_smoothly() -> None:
    stripes = np.zeros((400, 400, 3), np.uint8)
    stripes[:, ::2] = 254
    small = fit(stripes, Rect(left=0, top=0, width=100, height=100))
    assert abs(small[10:-10, 10:-10].astype(int) - 127).max() < 12


def test_a_failure_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(BadData):
        draw(tmp_path / "panel.png", (20, 20), 1, rollout=np.full((7, 7), np.nan))
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "folder").mkdir()
    with pytest.raises(CannotCreate, match="folder"):
        draw(tmp_path / "folder", (20, 20), 1)
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    zeros = np.zeros((2, 3, 3))
    for name in "ab":
        picture = np.arange(300, dtype=np.uint8).reshape(10, 10, 3)
        attention_panel(picture, zeros[0], zeros, None, title="t", caption="c", path=tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
