from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given as drawn
from hypothesis import settings as effort
from hypothesis import strategies as st

from tests.data.pictures import in_memory, settings
from vitrine.data.scan import scan
from vitrine.data.sources import open_source
from vitrine.data.splits import Parts, split, without
from vitrine.data.stratify import shuffled
from vitrine.errors import BadData


def all_of(parts: Parts) -> np.ndarray:
    return np.concatenate([parts.train, parts.validation, parts.test])


def check_invariants(parts: Parts, readable: set[int], labels: np.ndarray) -> None:
    everything = all_of(parts).tolist()
    assert len(everything) == len(set(everything)), "a picture stands in two parts"
    assert set(everything) == readable, "a picture is missing, or a bad one is there"
    assert set(labels[parts.train]) == {labels[i] for i in readable}, "a class cannot be learnt"
    for part in (parts.train, parts.validation, parts.test):
        assert (np.diff(part) > 0).all() and part.dtype == np.int64


@effort(max_examples=80, deadline=None)
@drawn(
    counts=st.lists(st.integers(1, 60), min_size=2, max_size=8),
    val=st.floats(0, 0.49),
    test=st.floats(0, 0.49),
    seed=st.integers(-5, 2**40),
    data=st.data(),
)
def test_invariants(counts: list[int], val: float, test: float, seed: int, data: st.DataObject) -> None:
    source = in_memory(counts, side=1)
    choices = [i for i in range(1, len(source)) if source.labels[i] == source.labels[i - 1]]
    bad = data.draw(st.sets(st.sampled_from(choices))) if choices else set()
    wanted = settings(val_share=val, test_share=test, split_seed=seed)
    parts = split(source, bad, wanted)
    check_invariants(parts, set(range(len(source))) - bad, source.labels)
    again = split(source, sorted(bad, reverse=True), wanted)
    assert np.array_equal(all_of(parts), all_of(again)) and parts.notes == again.notes
    assert len(parts.validation) == 0 or len(parts.validation) >= 20
    assert len(parts.test) == 0 or len(parts.test) >= 10
    assert (len(parts.validation) == 0) == any("validation" in note for note in parts.notes)
    assert (len(parts.test) == 0) == any("no test part" in note for note in parts.notes)


def test_shares_class_by_class() -> None:
    source = in_memory([100, 200, 50], side=1)
    parts = split(source, (), settings())
    assert np.bincount(source.labels[parts.test]).tolist() == [20, 40, 10]
    assert np.bincount(source.labels[parts.validation]).tolist() == [20, 40, 10]
    assert np.bincount(source.labels[parts.train]).tolist() == [60, 120, 30]
    assert parts.notes == ()


def test_seed_matters() -> None:
    source = in_memory([50, 50], side=1)
    one, other = (split(source, (), settings(split_seed=seed)) for seed in (0, 1))
    assert not np.array_equal(one.test, other.test)
    assert not np.array_equal(one.validation, other.validation)


def test_rare_classes_stay_in_training() -> None:
    source = in_memory([200, 1, 2, 2], side=1)
    parts = split(source, (), settings(val_share=0.45, test_share=0.45))
    check_invariants(parts, set(range(205)), source.labels)
    assert len(parts.test) and len(parts.validation)


@pytest.mark.parametrize(
    ("counts", "validation", "test"),
    [([25, 25], False, True), ([24, 20], False, False), ([50, 50], True, True), ([3] * 40, False, False)],
)
def test_too_few(counts: list[int], validation: bool, test: bool) -> None:
    # With 40 classes, 24 pictures are fewer than one a class.
    parts = split(in_memory(counts, side=1), (), settings())
    assert (bool(len(parts.validation)), bool(len(parts.test))) == (validation, test)
    assert sum("last average" in note for note in parts.notes) == (not validation)


def test_no_share_no_part() -> None:
    parts = split(in_memory([50, 50], side=1), (), settings(val_share=0.0, test_share=0.0))
    assert len(parts.train) == 100
    assert all("_share is 0" in note for note in parts.notes) and len(parts.notes) == 2


@pytest.mark.parametrize(
    ("counts", "sizes"),
    [
        ({"train": 50, "val": 10, "test": 15}, (100, 20, 30)),
        ({"train": 50, "test": 15}, (80, 20, 30)),
        ({"train": 50, "val": 10}, (80, 20, 20)),
        ({"train": 50}, (60, 20, 20)),
    ],
)
def test_given_parts(counts: dict[str, int], sizes: tuple[int, int, int]) -> None:
    n = 2 * sum(counts.values())
    given = [part for part, count in counts.items() for _ in range(2 * count)]
    source = in_memory([n // 2, n // 2], side=1, given=given)
    # Both classes in every part: even numbers are one, odd the other.
    source.labels[:] = np.arange(n) % 2
    parts = split(source, {0}, settings())
    check_invariants(parts, set(range(1, n)), source.labels)
    assert abs(len(parts.train) - sizes[0]) <= 1
    assert (len(parts.validation), len(parts.test)) == sizes[1:]
    if "test" in counts:
        assert set(source.given[parts.test]) == {"test"}
    elif "val" in counts:
        assert set(source.given[parts.test]) == {"val"}
        assert any("serves as test" in note for note in parts.notes)
    if len(counts) == 3:
        assert set(source.given[parts.validation]) == {"val"}


def test_nothing_to_train_on() -> None:
    source = in_memory([20, 20], side=1, given=["test"] * 40)
    with pytest.raises(BadData, match="no pictures to train on"):
        split(source, (), settings())


def test_class_only_in_test() -> None:
    source = in_memory([20, 20], side=1, given=["train"] * 20 + ["test"] * 20)
    with pytest.raises(BadData, match=r"1 of its classes: class1\."):
        split(source, (), settings())
    with pytest.raises(BadData, match="class0"):
        split(in_memory([5, 100], side=1), range(5), settings())


def test_digits() -> None:
    source = open_source(settings("digits"))
    parts = split(source, scan(source, settings()).bad, settings())
    assert (len(parts.train), len(parts.validation), len(parts.test)) == (1077, 360, 360)


def test_real_photographs() -> None:
    folder = Path(__file__).parents[3] / "shared/data/photos_grocery10"
    if not folder.is_dir():
        pytest.skip("photos_grocery10 is not on this machine")
    source = open_source(settings(folder))
    parts = split(source, (), settings())
    assert len(source) == 512 and len(source.class_names) == 10
    assert set(source.given[parts.test]) == {"val"} and set(source.given[parts.validation]) == {"train"}


def test_the_draw_is_that_of_scikit_learn() -> None:
    """Parts of older runs stay what they were, when they were drawn by `train_test_split`."""
    from sklearn.model_selection import train_test_split

    rng = np.random.default_rng(0)
    for _ in range(60):
        sizes = rng.integers(2, 40, int(rng.integers(1, 9)))
        labels = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
        n, classes = len(labels), len(sizes)
        if n - classes < classes:
            continue
        count, seed = int(rng.integers(classes, n - classes + 1)), int(rng.integers(0, 2**32))
        _, theirs = train_test_split(np.arange(n), test_size=count, random_state=seed, stratify=labels)
        assert shuffled(labels, count, seed).tolist() == sorted(theirs.tolist())


def test_without_keeps_the_order() -> None:
    assert without(np.array([5, 1, 4]), np.array([1, 9])).tolist() == [5, 4]
    assert without(np.array([2, 0]), np.zeros(0, np.int64)).tolist() == [2, 0]
    assert without(np.zeros(0, np.int64), np.array([3])).tolist() == []
