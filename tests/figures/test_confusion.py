from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitrine.errors import BadData
from vitrine.figures import confusion
from vitrine.figures.confusion import confusion_matrix, every, shares_of_row

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("K", [1, 2, 10, 20, 21, 100, 1200])
def test_any_number_of_classes_gives_a_picture_of_bounded_size(tmp_path: Path, K: int) -> None:
    names = [f"class with a name that is far too long for its place, number {i}" for i in range(K)]
    confusion_matrix(RNG.integers(0, 90, (K, K)), names, tmp_path / "c.png", title="test, 90 %")
    with Image.open(tmp_path / "c.png") as picture:
        assert max(picture.size) < 2100
        frame = np.asarray(picture.convert("RGB"))
    assert (frame[:30] == 255).all()
    assert (frame[:, :30] == 255).all()
    assert (frame[-30:] == 255).all()


def test_rows_are_shares_and_an_empty_row_is_zero() -> None:
    shares = shares_of_row(np.array([[3, 1], [0, 0]]))
    assert shares.tolist() == [[0.75, 0.25], [0.0, 0.0]]


def test_the_diagonal_of_a_perfect_matrix_is_dark_and_the_rest_light(tmp_path: Path) -> None:
    confusion_matrix(np.diag([5] * 30), [str(i) for i in range(30)], tmp_path / "c.png", title="t")
    pixels = np.asarray(Image.open(tmp_path / "c.png").convert("L"))
    cell = confusion.SIDE // 30
    # the scale's right edge is known from the page's width; the matrix ends 150 pixels before it
    left, middle = pixels.shape[1] - 150 - 30 * cell, cell // 2
    centres = pixels[confusion.TOP + middle :: cell][:30][:, left + middle :: cell][:, :30]
    assert (np.diag(centres) < 80).all()
    assert (centres[~np.eye(30, dtype=bool)] > 240).all()


def test_names_are_thinned_out_so_that_they_do_not_touch() -> None:
    assert [every(confusion.SIDE // K) for K in (2, 20, 40, 100, 500)] == [1, 1, 1, 3, 12]


def test_names_that_do_not_fit_and_negative_counts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadData, match="1 class names for a confusion matrix of 2"):
        confusion_matrix(np.eye(2, dtype=int), ["a"], tmp_path / "c.png", title="t")
    with pytest.raises(BadData, match="-1"):
        confusion_matrix(-np.eye(2, dtype=int), ["a", "b"], tmp_path / "c.png", title="t")
    assert list(tmp_path.iterdir()) == []
