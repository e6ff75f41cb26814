from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch

from tests.data.held import Held, held, numbers
from tests.data.pictures import class_folder, settings
from vitrine.config.options import AugmentConfig
from vitrine.data import loader, scan, splits, store
from vitrine.data.blocks import Blocked, block_order, sample_of_blocks, span_of
from vitrine.data.sources import Source, open_source
from vitrine.images.augment import order


@dataclass
class InBlocks:
    """`tests.data.held.Held`, read in blocks, which counts what it is asked for."""

    held: Held
    blocks: np.ndarray
    span: int
    far: bool = False
    told: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.held)

    def total_bytes(self) -> int:
        return self.held.total_bytes()

    def size(self, i: int) -> int:
        return self.held.size(i)

    def read(self, i: int, start: int = 0, count: int | None = None) -> bytes:
        return self.held.read(i, start, count)

    def soon(self, numbers: Iterable[int]) -> None:
        self.told += numbers


def in_blocks(source: Source, size: int, span: int, *, far: bool = False) -> Source:
    packed = held(source).packed
    assert isinstance(packed, Held)
    ends = np.append(np.arange(size, len(source), size), len(source))
    return Source(
        name=source.name, class_names=source.class_names, labels=source.labels, ids=source.ids, given=source.given,
        packed=InBlocks(packed, ends, span, far),
    )  # fmt: skip


def ends(count: int, size: int) -> np.ndarray:
    return np.append(np.arange(size, count, size), count)


@pytest.mark.parametrize(("count", "size", "span"), [(1000, 10, 8), (997, 10, 4), (50, 1, 4), (20, 30, 4), (60, 7, 99)])
def test_each_picture_comes_once_in_an_order_that_is_a_matter_of_seed_and_epoch(
    count: int, size: int, span: int
) -> None:
    some = np.flatnonzero(np.random.default_rng(1).random(count) < 0.7)
    one = block_order(3, 5, some, ends(count, size), span)
    assert sorted(one.tolist()) == some.tolist()
    assert one.tolist() == block_order(3, 5, some, ends(count, size), span).tolist()
    others = [block_order(seed, epoch, some, ends(count, size), span).tolist() for seed, epoch in ((4, 5), (3, 6))]
    assert one.tolist() not in others and others[0] != others[1]


def test_a_set_that_is_mixed_as_a_whole_has_the_order_of_any_other() -> None:
    assert block_order(1, 2, numbers(40), ends(40, 10), 4).tolist() == order(1, 2, numbers(40)).tolist()
    assert block_order(1, 2, numbers(41), ends(41, 10), 4).tolist() != order(1, 2, numbers(41)).tolist()


def in_use(ranked: np.ndarray, size: int) -> np.ndarray:
    """How many blocks have begun and are not done, at each picture."""
    block = ranked // size
    change = np.zeros(len(ranked) + 1, np.int64)
    for b in range(block.max() + 1):
        places = np.flatnonzero(block == b)
        change[places[0]] += 1
        change[places[-1] + 1] -= 1
    return np.cumsum(change)[:-1]


def test_no_more_blocks_are_in_use_than_the_span() -> None:
    used = in_use(block_order(0, 0, numbers(20_000), ends(20_000, 100), 20), 100)
    assert used.max() <= 21  # the one that begins while another ends
    assert np.median(used) >= 18
    assert used[0] == 1 and in_use(order(0, 0, numbers(20_000)), 100)[10_000] == 200


def mixing(ranked: np.ndarray, size: int, batch: int) -> np.ndarray:
    """The largest share of each batch that is of one block."""
    batches = (ranked[: len(ranked) // batch * batch] // size).reshape(-1, batch)
    return np.array([np.bincount(row).max() / batch for row in batches])


def test_how_well_it_mixes_as_the_documentation_says() -> None:
    """ImageNet as the hub has it: row groups of 100 pictures and 11 MB, so that 48 of them are mixed."""
    count, size, span, batch = 128_000, 100, span_of(1_280 * 11_000_000, 1_280), 256
    assert span == 48
    shares = mixing(block_order(0, 0, numbers(count), ends(count, size), span), size, batch)
    assert np.median(shares) < 0.05  # 256 / 48 is 5.3 of a block in the mean, 2.1 %
    assert shares.max() < 0.3  # the first batch and the last, which come from few blocks
    assert (shares > 0.1).mean() < 0.02
    ranked = block_order(0, 0, numbers(count), ends(count, size), span)
    assert np.abs(np.diff(ranked)).mean() > 0.3 * count  # neighbours: a third of the set apart, as without blocks


def test_a_span_is_what_fits_the_bytes_that_are_mixed() -> None:
    assert span_of(1 << 20, 7) > 7
    assert span_of(10 << 30, 1000) == 50
    assert span_of(10 << 40, 1000) == 4 and span_of(0, 3) >= 3


def test_a_sample_is_of_whole_blocks_that_lie_spread() -> None:
    found = sample_of_blocks(ends(100_000, 100), 1_000)
    assert len(found) == 1_000 and len(np.unique(found // 100)) == 10
    assert found[-1] // 100 >= 900 and (np.diff(found) > 0).all()
    few = sample_of_blocks(ends(100_000, 50_000), 1_000)
    assert len(few) == 1_000 and len(np.unique(few // 50_000)) == 2
    assert sample_of_blocks(ends(9, 100), 1_000).tolist() == list(range(9))


def batches(source: Source, workers: int, first: int, budget: int = 0) -> list[loader.Batch]:
    found = scan.scan(source, settings())
    kept = store.store(source, found, channels=3, keep_side=9, budget_bytes=budget)
    return list(
        loader.training(
            kept, source, numbers(len(source)), size=(8, 8), batch_size=4, seed=3, num_workers=workers,
            augment=AugmentConfig(crop_min_area=0.5), first_step=first, last_step=24, on_bad=_never,
        )
    )  # fmt: skip


def _never(name: str, reason: str) -> None:
    raise AssertionError(f"{name}: {reason}")


def same(one: loader.Batch, other: loader.Batch) -> bool:
    pairs: list[tuple[Any, Any]] = [
        (getattr(one, name), getattr(other, name)) for name in ("images", "labels", "index", "draws")
    ]
    return all(torch.equal(a, b) for a, b in pairs)


def test_batches_are_the_same_for_any_workers_first_step_and_memory(tmp_path: Any) -> None:
    files = open_source(settings(class_folder(tmp_path, {"a": 25, "b": 25})))
    source = in_blocks(files, 3, 4)
    assert isinstance(source.packed, Blocked)
    whole = batches(source, 0, 0)
    epoch = np.concatenate([batch.index.numpy() for batch in whole[:12]])
    assert len(set(epoch.tolist())) == 48  # 12 whole batches of 50 pictures
    assert epoch.tolist() == block_order(3, 0, numbers(50), source.packed.blocks, 4)[:48].tolist()
    for workers in (0, 1, 2):
        for first in (0, 5, 13):
            assert all(map(same, batches(source, workers, first), whole[first:]))
    assert all(map(same, batches(source, 0, 7, budget=10**9), whole[7:]))
    far = in_blocks(files, 3, 4, far=True)
    assert all(map(same, batches(far, 2, 2), whole[2:]))
    assert isinstance(far.packed, InBlocks) and far.packed.told[:4] == whole[3].index.tolist()


def test_parts_of_a_set_that_is_far_are_drawn_from_few_blocks(tmp_path: Any) -> None:
    files = open_source(settings(class_folder(tmp_path, {"a": 200, "b": 200})))
    parts = splits.split(in_blocks(files, 5, 8, far=True), {}, settings(val_share=0.1, test_share=0.1))
    near = splits.split(in_blocks(files, 5, 8), {}, settings(val_share=0.1, test_share=0.1))
    assert len(parts.validation) == len(near.validation) == len(parts.test) == 40
    assert len(np.unique(parts.validation // 5)) <= 18 < len(np.unique(near.validation // 5))
    every = np.concatenate([parts.train, parts.validation, parts.test])
    assert sorted(every.tolist()) == list(range(400))
    assert set(files.labels[parts.validation].tolist()) == {0, 1}
