"""What the ranks of a run see together is what one process sees, each picture once, whatever their number."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from tests.made import photos, small
from vitrine.config.options import AugmentConfig, Config, DataConfig, PreprocessConfig
from vitrine.data import loader, scan, sources, store
from vitrine.images.mixing import mix, rows_of
from vitrine.train.step import inputs

MIXED = AugmentConfig(
    flip=True, crop_min_area=0.3, jitter=0.3, mixup=0.4, cutmix=1.0, mix_per="picture", erase=0.5, policy="trivial"
)


@pytest.mark.parametrize("size", range(1, 24))
@pytest.mark.parametrize("parts", range(1, 6))
def test_the_parts_of_a_batch_are_all_of_it_once_in_pairs(size: int, parts: int) -> None:
    found = [rows_of(size, number, parts) for number in range(parts)]
    assert sorted(np.concatenate(found)) == list(range(size))
    for rows in found:
        assert list(rows) == sorted(rows)
        assert np.array_equal(rows + rows[::-1], np.full(len(rows), size - 1))
    lengths = [len(rows) for rows in found]
    assert max(lengths) - min(lengths) <= 2


@pytest.mark.parametrize("per", ["batch", "picture"])
@pytest.mark.parametrize("size", [8, 9])
def test_a_part_mixed_is_that_part_of_the_mixed_batch(per: Any, size: int) -> None:
    images, targets = torch.rand(size, 3, 16, 16), torch.rand(size, 4)
    settings = AugmentConfig(mixup=0.5, cutmix=0.7, mix_per=per)
    for step in range(5):
        whole = mix(images, targets, settings, 1, step)
        for number in range(3):
            rows = rows_of(size, number, 3)
            part = mix(images[rows], targets[rows], settings, 1, step, rows, size)
            assert torch.equal(part[0], whole[0][rows]) and torch.equal(part[1], whole[1][rows])


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> store.Store:
    folder = photos(tmp_path_factory.mktemp("data"), {"a": 13, "b": 12}, size=(40, 30))
    (folder / "a" / "3.png").write_bytes(b"\x89PNG\r\n\x1a\nno picture")
    source = sources.open_source(DataConfig(source=str(folder)))
    found = scan.scan(source, DataConfig())
    return store.store(source, found, channels=3, keep_side=24, budget_bytes=1 << 30)


def seen(kept: store.Store, worlds: list[int], size: int, repeats: int = 1) -> list[dict[int, list[str]]]:
    """For each epoch, trained by so many ranks: hashes of what was made of each picture, by its number."""
    config = Config(
        model=small(num_classes=2), preprocess=PreprocessConfig(size=(16, 16)), augment=replace(MIXED, repeats=repeats),
        batch_size=size,
    )  # fmt: skip
    indices = np.arange(len(kept.source))
    steps = loader.steps_per_epoch(len(indices), size)
    found = []
    for epoch, world in enumerate(worlds):
        hashes: dict[int, list[str]] = {}
        for rank in range(world):
            batches = loader.training(
                kept, kept.source, indices, size=(16, 16), batch_size=size, seed=0, augment=config.augment,
                first_step=epoch * steps, last_step=(epoch + 1) * steps, num_workers=0,
                on_bad=lambda *_: None, share=(rank, world),
            )  # fmt: skip
            for number, batch in enumerate(batches):
                pixels, targets, weights = inputs(batch, config, epoch * steps + number, torch.device("cpu"), 100)
                for row, i in enumerate(batch.index.tolist()):
                    data = b"".join(t[row].numpy().tobytes() for t in (pixels, targets, weights))
                    hashes.setdefault(i, []).append(hashlib.sha256(data).hexdigest())
        found.append({i: sorted(of) for i, of in hashes.items()})
    return found


def test_with_a_changed_number_of_ranks_each_picture_comes_once_an_epoch_and_as_it_would(kept: store.Store) -> None:
    alone = seen(kept, [1, 1, 1, 1], size=5)
    together = seen(kept, [1, 2, 3, 2], size=5)
    assert together == alone
    assert all(len(epoch) == 25 and all(len(of) == 1 for of in epoch.values()) for epoch in together)
    assert len({of[0] for epoch in together for of in epoch.values()}) == 100  # no two alike, in no epoch


def test_pictures_taken_several_times_have_draws_of_their_own_on_every_rank(kept: store.Store) -> None:
    assert seen(kept, [2, 4], size=8, repeats=3) == seen(kept, [1, 1], size=8, repeats=3)
