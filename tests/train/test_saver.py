"""Saving beside the training: what is written is the moment that was asked for, and the training does not wait."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.train import killed
from vitrine.config.saving import SaveConfig
from vitrine.errors import BadConfig, DiskError
from vitrine.train import saver, state, states
from vitrine.train.saver import Saver
from vitrine.train.state import Progress
from vitrine.weights import container
from vitrine.weights.bundle import LAST_FILE, MODEL_FILE, open_bundle


@pytest.fixture
def of() -> killed.Parts:
    return killed.parts()


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Writing waits until it is set."""
    opened, plain = threading.Event(), container.write

    def write(*args: Any) -> None:
        assert opened.wait(30)
        plain(*args)

    monkeypatch.setattr(container, "write", write)
    yield opened
    opened.set()


def at(step: int) -> Progress:
    return Progress(epochs=9, step=step)


def test_the_training_goes_on_while_it_is_written(tmp_path: Path, of: killed.Parts, gate: threading.Event) -> None:
    killed.fill(of, 5)
    progress = at(5)
    with killed.saver(tmp_path, of) as writing:
        writing.state(progress)
        killed.fill(of, 6)  # what a step does meanwhile
        progress.step = 6
        assert not writing.due(6) and not states.found(tmp_path)
        gate.set()
        writing.wait()
        assert killed.looked(tmp_path, of) == 5
        assert all(bool((tensor == 5).all()) for tensor in open_bundle(tmp_path / LAST_FILE).tensors.values())
        assert not (tmp_path / MODEL_FILE).exists()


def test_models_are_written_one_after_another_in_their_order(tmp_path: Path, of: killed.Parts) -> None:
    with killed.saver(tmp_path, of) as writing:
        for value in (1, 2, 3):
            killed.fill(of, value)
            writing.best(at(value))
        writing.state(at(3), follow=True)
    for name in (MODEL_FILE, LAST_FILE):
        assert all(bool((tensor == 3).all()) for tensor in open_bundle(tmp_path / name).tensors.values())


def test_the_memory_of_a_copy_is_kept_for_the_next_one(tmp_path: Path, of: killed.Parts) -> None:
    with killed.saver(tmp_path, of) as writing:
        assert not writing.due(1)
        writing.wait()
        before = {name: tensor.data_ptr() for name, tensor in writing._buffers.items()}
        for step in (1, 2):
            writing.state(at(step))
            writing.wait()
            after = {name: tensor.data_ptr() for name, tensor in writing._buffers.items()}
            assert before.items() <= after.items()
        assert len(writing.blocked) == 2
        assert len(before) > 20


def test_what_never_changes_is_copied_once(tmp_path: Path, of: killed.Parts) -> None:
    model, made, _ = of
    model.get_parameter("head.weight").requires_grad_(False)
    with Saver(tmp_path, SaveConfig(), model, made, None, lambda path, model, progress: None) as writing:
        kept = model.get_parameter("head.weight").detach().clone()
        killed.fill((model, made, of[2]), 3)
        writing.state(at(1))
        writing.wait()
        tensors, _ = state.read(states.path_of(tmp_path, 1))
        assert torch.equal(tensors["model.head.weight"], kept)
        assert bool((tensors["model.head.bias"] == 3).all())


def test_an_error_of_the_thread_is_raised_at_the_next_look(
    tmp_path: Path, of: killed.Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    writing = killed.saver(tmp_path, of)
    killed.fill(of, 1)
    writing.state(at(1))
    writing.wait()

    def refuse(*args: Any) -> None:
        raise DiskError("full")

    monkeypatch.setattr(container, "write", refuse)
    writing.state(at(2))
    assert writing._thread is not None
    writing._thread.join()
    with pytest.raises(DiskError, match="full"):
        writing.due(3)
    assert killed.looked(tmp_path, of) == 1
    with pytest.raises(DiskError, match="full"), writing:
        writing.state(at(4))


def test_an_interrupt_hardly_waits_for_what_is_written(
    tmp_path: Path, of: killed.Parts, gate: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saver, "PATIENCE_S", 0.01)
    with pytest.raises(KeyboardInterrupt), killed.saver(tmp_path, of) as writing:
        writing.state(at(1))
        raise KeyboardInterrupt
    gate.set()
    writing.wait()
    assert states.found(tmp_path) and not (tmp_path / LAST_FILE).exists()  # what had not begun is left


def test_when_a_save_is_due(tmp_path: Path, of: killed.Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    def steps(until: int, **settings: Any) -> list[int]:
        found = []
        with Saver(tmp_path, SaveConfig(**settings), *of, lambda path, model, progress: None) as writing:
            for step in range(11, until):
                writing.wait()
                if writing.due(step):
                    writing.state(at(step))
                    found.append(step)
        return found

    assert steps(40, every_steps=10) == [20, 30]
    assert steps(40, every_s=1e9, keep_every_steps=7) == [14, 21, 28, 35]
    assert steps(40, every_s=1e9) == []
    now = [1000.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    with Saver(tmp_path, SaveConfig(), *of, lambda path, model, progress: None) as writing:
        for seconds, wanted in ((0, False), (14, False), (2, True), (14, False), (2, True)):
            now[0] += seconds
            writing.due(1)
            writing.wait()
            assert writing.due(1) is wanted
            if wanted:
                writing.state(at(1))
                writing.wait()  # before the clock goes on


@pytest.mark.parametrize("wrong", [{"every_s": -1.0}, {"keep_last": 0}, {"every_steps": -1}, {"keep_every_steps": -2}])
def test_options_that_cannot_be(wrong: dict[str, Any]) -> None:
    with pytest.raises(BadConfig, match=rf"save\.{next(iter(wrong))} = "):
        SaveConfig(**wrong)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
def test_copies_are_shared_out_among_threads(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = [(300, 400), (), (7,), (1000, 200), (40_000,), (0, 5)]
    every = [torch.randint(-100, 100, shape, generator=generator).to(dtype) for shape in shapes]
    every.append(torch.randint(-100, 100, (300, 400), generator=generator).to(dtype).T)
    pairs = [(torch.zeros(tensor.shape, dtype=dtype), tensor) for tensor in every]
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        saver.copy_all(pairs)
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(own, tensor) for own, tensor in pairs)
