from __future__ import annotations

import hashlib
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.data.pictures import class_folder, in_memory, save, settings
from vitrine.config.options import AugmentConfig, PreprocessConfig
from vitrine.data import loader
from vitrine.data.loader import Batch, Steps, evaluation, steps_per_epoch, training
from vitrine.data.scan import scan
from vitrine.data.sources import Source, open_source
from vitrine.data.store import Store, store
from vitrine.errors import BadData, Unavailable
from vitrine.images.augment import draw_table, order, random_crop
from vitrine.images.preprocess import preprocess

CROPPED = AugmentConfig(crop_min_area=0.3)


def keep(source: Source, **options: Any) -> Store:
    wanted = {"channels": 3, "keep_side": None, "budget_bytes": 10**8} | options
    return store(source, scan(source, settings(max_bad_share=0.5)), **wanted)


def load(source: Source, indices: np.ndarray | None = None, **options: Any) -> Iterator[Batch]:
    kept = options.pop("store", None) or keep(source)
    wanted: dict[str, Any] = {
        "size": (8, 8),
        "batch_size": 4,
        "seed": 3,
        "augment": CROPPED,
        "first_step": 0,
        "last_step": 9,
        "num_workers": 0,
        "on_bad": lambda name, why: None,
    }
    chosen = np.arange(len(source)) if indices is None else indices
    return training(kept, source, chosen, **wanted | options)


def digest(batch: Batch) -> str:
    assert batch.draws is not None
    parts = (batch.images, batch.labels, batch.weights, batch.index, batch.draws)
    return hashlib.sha256(b"".join(part.numpy().tobytes() for part in parts)).hexdigest()


@pytest.fixture
def photos(tmp_path: Path) -> Source:
    for k, name in enumerate(["a", "b"]):
        for i in range(7):
            save(tmp_path / name / f"{i}.png", 7 * k + i, (14 + i, 12 + k))
    return open_source(settings(tmp_path))


@pytest.mark.parametrize(("num", "batch_size", "steps"), [(10, 4, 2), (8, 4, 2), (3, 4, 1), (4, 4, 1), (1, 128, 1)])
def test_steps_per_epoch(num: int, batch_size: int, steps: int) -> None:
    assert steps_per_epoch(num, batch_size) == steps


@pytest.mark.parametrize("budget_bytes", [0, 10**8])
def test_a_batch_is_a_function_of_seed_and_step(photos: Source, budget_bytes: int) -> None:
    kept = keep(photos, budget_bytes=budget_bytes)
    whole = [digest(batch) for batch in load(photos, store=kept)]
    assert len(set(whole)) == 9
    for first in (0, 1, 3, 4, 8, 9):
        assert [digest(batch) for batch in load(photos, store=kept, first_step=first)] == whole[first:]
    for num_workers in (1, 2):
        made = load(photos, store=kept, first_step=2, num_workers=num_workers)
        assert [digest(batch) for batch in made] == whole[2:]
    assert [digest(batch) for batch in load(photos, store=kept, seed=4)] != whole


def test_against_the_written_out_version(photos: Source) -> None:
    kept = keep(photos)
    indices = np.array([0, 2, 3, 5, 7, 8, 9, 11, 12, 13])
    for step, batch in enumerate(load(photos, indices, store=kept)):
        epoch, place = divmod(step, 2)
        chosen = order(3, epoch, indices)[4 * place : 4 * place + 4]
        table = draw_table(3, epoch, len(photos))
        assert batch.index.tolist() == chosen.tolist()
        assert batch.labels.tolist() == photos.labels[chosen].tolist()
        assert batch.weights.tolist() == [1, 1, 1, 1]
        assert batch.draws is not None and np.array_equal(batch.draws.numpy(), table[chosen])
        for image, i in zip(batch.images, chosen, strict=True):
            assert torch.equal(image, random_crop(kept.pixels(int(i)), (8, 8), table[i], CROPPED))


def test_an_epoch_shows_each_picture_once(photos: Source) -> None:
    seen = [i for batch in load(photos, batch_size=7, last_step=2) for i in batch.index.tolist()]
    assert sorted(seen) == list(range(14))
    later = [i for b in load(photos, batch_size=7, first_step=2, last_step=4) for i in b.index.tolist()]
    assert sorted(later) == list(range(14)) and later != seen


@pytest.mark.parametrize("crop_min_area", [0.3, 1.0])
def test_repeats_come_in_a_row_each_with_its_own_draws(photos: Source, crop_min_area: float) -> None:
    """DeiT's repeated augmentation: a third of the pictures, three times each, and the steps of any other epoch."""
    augment = AugmentConfig(crop_min_area=crop_min_area, repeats=3)
    source = photos if crop_min_area < 1 else in_memory([7, 7], side=8, channels=3)
    whole = list(load(source, augment=augment, batch_size=4, last_step=6))
    for epoch in (0, 1):
        batches = whole[3 * epoch : 3 * epoch + 3]
        index = np.concatenate([batch.index.numpy() for batch in batches])
        assert index.tolist() == order(3, epoch, np.arange(14)).repeat(3)[:12].tolist()
        drawn = np.concatenate([batch.draws.numpy() for batch in batches if batch.draws is not None])
        table = draw_table(3, epoch, 3 * 14)
        assert np.array_equal(drawn, table[index + 14 * (np.arange(12) % 3)])
        assert len(np.unique(drawn, axis=0)) == 12
    again = load(source, augment=augment, batch_size=4, first_step=2, last_step=6, num_workers=2)
    assert [digest(batch) for batch in again] == [digest(batch) for batch in whole[2:]]


@pytest.mark.parametrize("convention", ["torch", "google"])
def test_crops_by_another_convention_do_not_depend_on_workers(photos: Source, convention: Any) -> None:
    augment = AugmentConfig(crop_min_area=0.3, convention=convention)
    whole = [digest(batch) for batch in load(photos, augment=augment)]
    assert [digest(batch) for batch in load(photos, augment=augment, first_step=1, num_workers=2)] == whole[1:]
    assert whole != [digest(batch) for batch in load(photos)]


def test_fewer_pictures_than_a_batch(photos: Source) -> None:
    batches = list(load(photos, batch_size=100, last_step=3))
    assert [len(batch.index) for batch in batches] == [14, 14, 14]
    with pytest.raises(BadData, match="no pictures to train on"):
        list(load(photos, np.arange(0)))


def test_pictures_of_one_size_at_once() -> None:
    source = in_memory([20, 20], side=8)
    plain = AugmentConfig()
    kept = keep(source, channels=1)
    fast = list(load(source, store=kept, augment=plain))
    # A crop of the whole picture says the same the long way round.
    slow = list(load(source, store=kept, augment=AugmentConfig(crop_min_area=1 - 1e-12, crop_max_ratio=1.0)))
    assert source.arrays is not None
    for a, b in zip(fast, slow, strict=True):
        assert digest(a) == digest(b)
        assert np.array_equal(a.images[:, 0].numpy(), source.arrays[a.index.numpy(), :, :, 0])
    again = load(source, store=kept, augment=plain, first_step=5, num_workers=1)
    assert [digest(batch) for batch in again] == [digest(batch) for batch in fast[5:]]
    assert fast[0].images.is_contiguous()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_unreadable_pictures_weigh_nothing(photos: Source, tmp_path: Path, num_workers: int) -> None:
    kept = keep(photos, budget_bytes=0)
    (tmp_path / "a" / "3.png").write_bytes(b"")
    told: list[tuple[str, str]] = []
    batches = list(load(photos, store=kept, num_workers=num_workers, on_bad=lambda name, why: told.append((name, why))))
    assert [name for name, _ in told] == ["a/3.png"] and "empty" in told[0][1]
    assert sum(3 in batch.index for batch in batches) > 1
    for batch in batches:
        assert torch.equal(batch.weights, (batch.index != 3).float())
        assert not batch.images[batch.index == 3].any()


def test_workers_leave_the_random_state_alone(photos: Source) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    assert len(list(load(photos, num_workers=1))) == 9
    assert torch.equal(torch.get_rng_state(), before)


def children() -> list[int]:
    return [int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]


needs_proc = pytest.mark.skipif(
    not Path(f"/proc/self/task/{os.getpid()}/children").exists(), reason="needs /proc to find the workers"
)


@needs_proc
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2])
def test_signals_to_stop_are_for_the_main_process(photos: Source, number: int) -> None:
    before = set(children())
    made = load(photos, num_workers=1, last_step=40)
    first = [digest(next(made))]
    (worker,) = set(children()) - before
    os.kill(worker, number)
    rest = [digest(batch) for batch in made]
    assert first + rest == [digest(batch) for batch in load(photos, last_step=40)]


@needs_proc
@pytest.mark.timeout(30)
@pytest.mark.parametrize("num_workers", [1, 3])
def test_killed_worker(photos: Source, num_workers: int) -> None:
    before = set(children())
    made = load(photos, num_workers=num_workers, last_step=4000)
    next(made)
    workers = set(children()) - before
    assert len(workers) == num_workers
    os.kill(min(workers), signal.SIGKILL)
    with pytest.raises(Unavailable, match="Lower num_workers"):
        list(made)
    assert set(children()) <= before


@needs_proc
@pytest.mark.timeout(30)
def test_the_iterator_closes_though_a_worker_was_killed(photos: Source) -> None:
    before = set(children())
    made = load(photos, num_workers=2, last_step=4000)
    next(made)
    os.kill(min(set(children()) - before), signal.SIGKILL)
    made.close()  # type: ignore[attr-defined]
    assert set(children()) <= before


@needs_proc
def test_workers_end_with_the_iterator(photos: Source) -> None:
    before = set(children())
    made = load(photos, num_workers=2, last_step=4000)
    next(made)
    assert len(set(children()) - before) == 2
    made.close()  # type: ignore[attr-defined]
    assert set(children()) <= before


ORPHANS = """
import os, signal
from tests.data.pictures import in_memory
from tests.data.test_loader import children, load

made = load(in_memory([9, 9], channels=3), num_workers=2, last_step=10**6)
next(made)
print(*children(), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def alive(pid: int) -> bool:
    """Whether the process runs: one that waits to be buried by its parent does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@needs_proc
def test_workers_end_when_the_main_process_is_killed() -> None:
    run = subprocess.run([sys.executable, "-c", ORPHANS], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    workers = [int(pid) for pid in run.stdout.split()]
    assert len(workers) == 2, run.stderr
    until = time.monotonic() + 10
    while any(map(alive, workers)) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(map(alive, workers))


def test_steps_travel_to_other_processes(photos: Source) -> None:
    steps = Steps(
        store=keep(photos),
        source=photos,
        indices=np.arange(14),
        size=(8, 8),
        batch_size=4,
        seed=3,
        augment=CROPPED,
    )
    here, there = steps.make(4), pickle.loads(pickle.dumps(steps)).make(4)
    assert np.array_equal(here.images, there.images) and np.array_equal(here.draws, there.draws)


def processes_forbidden(*_: Any) -> Any:
    raise AssertionError("a process was started")


def test_no_process_gets_a_copy_of_pictures_in_memory(photos: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = [digest(batch) for batch in load(photos)]
    monkeypatch.setattr(loader, "processes_share_memory", lambda: False)
    monkeypatch.setattr(loader, "by_processes", processes_forbidden)
    for kept in (keep(photos), keep(in_memory([7, 7]), budget_bytes=0)):
        assert len(list(load(kept.source, store=kept, num_workers=2))) == 9
    assert [digest(batch) for batch in load(photos, num_workers=2)] == whole
    with pytest.raises(AssertionError, match="a process was started"):
        list(load(photos, store=keep(photos, budget_bytes=0), num_workers=2))


def test_what_is_not_in_memory_is_decoded_ahead(photos: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = [digest(batch) for batch in load(photos, last_step=60)]
    threads: set[str] = set()
    plain = Store.pixels

    def seen(self: Store, i: int) -> np.ndarray:
        threads.add(threading.current_thread().name)
        return plain(self, i)

    monkeypatch.setattr(Store, "pixels", seen)
    made = load(photos, store=keep(photos, budget_bytes=0), last_step=60)
    assert [digest(batch) for batch in made] == whole
    assert threads and all(name.startswith("decode") for name in threads)
    assert not any(thread.name.startswith("decode") for thread in threading.enumerate())


PREPROCESS = PreprocessConfig(size=(8, 6))


def evaluate(source: Source, indices: np.ndarray, **options: Any) -> tuple[list[torch.Tensor], list[int]]:
    images, labels = [], []
    wanted: dict[str, Any] = {"batch_size": 4, "on_bad": lambda name, why: None} | options
    for batch, classes in evaluation(source, indices, PREPROCESS, settings(), **wanted):
        assert len(batch) == len(classes) <= 4
        images += list(batch)
        labels += classes.tolist()
    return images, labels


def test_evaluation_shows_each_picture_once_in_order(photos: Source) -> None:
    indices = np.array([13, 2, 7, 0, 1, 5, 12, 6, 3])
    images, labels = evaluate(photos, indices)
    assert labels == photos.labels[indices].tolist()
    for image, i in zip(images, indices, strict=True):
        assert np.array_equal(image.numpy(), preprocess(photos.picture(int(i)), PREPROCESS))
    assert evaluate(photos, indices[:0]) == ([], [])


def test_evaluation_leaves_out_what_it_cannot_read(photos: Source, tmp_path: Path) -> None:
    (tmp_path / "a" / "3.png").unlink()
    (tmp_path / "b" / "0.png").write_text("<html>")
    told: list[tuple[str, str]] = []
    _, labels = evaluate(photos, np.arange(14), on_bad=lambda name, why: told.append((name, why)))
    assert labels == [0] * 6 + [1] * 6
    assert [name for name, _ in told] == ["a/3.png", "b/0.png"]
    assert all("\n" not in why and str(tmp_path) not in why for _, why in told)


def test_evaluation_keeps_tensors(photos: Source, tmp_path: Path) -> None:
    kept: dict[int, torch.Tensor] = {}
    first, _ = evaluate(photos, np.arange(10), keep=kept)
    assert sorted(kept) == list(range(10))
    class_folder(tmp_path, {"a": 7, "b": 7}, first_seed=100)
    again, _ = evaluate(photos, np.arange(10), keep=kept)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    fresh, _ = evaluate(photos, np.arange(10))
    assert not any(torch.equal(a, b) for a, b in zip(first, fresh, strict=True))


def test_evaluation_holds_the_limits(photos: Source) -> None:
    told: list[str] = []
    limits = settings(max_pixels=12 * 16)
    shown = evaluation(
        photos, np.arange(14), PREPROCESS, limits, batch_size=4, on_bad=lambda name, why: told.append(name)
    )
    assert sum(len(labels) for _, labels in shown) == 14 - len(told)
    assert "a/2.png" not in told and "a/3.png" in told
