from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.made import bundle, small
from vitrine.config.options import OptimConfig
from vitrine.errors import BadData
from vitrine.models.vit import VisionTransformer
from vitrine.train import state
from vitrine.train.optim import Average, optimizer
from vitrine.train.state import Progress
from vitrine.weights.bundle import save as save_bundle


def run(seed: int, name: str, steps: int) -> tuple[VisionTransformer, torch.optim.Optimizer, Average]:
    """A model that has made some steps on noise, its optimiser and its average."""
    torch.manual_seed(seed)
    model = VisionTransformer(small(drop_rate=0.1)).train()
    made = optimizer(model, OptimConfig(name=name))  # type: ignore[arg-type]
    average = Average(model, 0.9)
    for step in range(steps):
        go_on(model, made, average, step)
    return model, made, average


def go_on(model: Any, made: Any, average: Any, step: int) -> None:
    """One step on pictures from torch's own random state."""
    made.zero_grad()
    (model(torch.randn(2, 3, 16, 16)) - 1).square().mean().backward()
    made.step()
    average.update(step)


@pytest.mark.parametrize("name", ["adamw", "sgd", "muon", "lamb"])
def test_a_continued_run_is_bit_for_bit_the_same(tmp_path: Path, name: str) -> None:
    model, made, average = run(0, name, 3)
    progress = Progress(step=3, epochs=9, fingerprint="f", best=0.1, best_epoch=1, loss=1 / 3, seconds=2.5)
    state.save(tmp_path / "s", model, made, average, progress)
    for step in (3, 4, 5):
        go_on(model, made, average, step)

    other, its_optimizer, its_average = run(1, name, 0)
    found, notes = state.load(tmp_path / "s", other, its_optimizer, its_average)
    assert found == progress and notes == []
    for step in (3, 4, 5):
        go_on(other, its_optimizer, its_average, step)
    for a, b in ((model, other), (average.model, its_average.model)):
        assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))
    assert any(parameter.grad is not None and parameter.grad.any() for parameter in other.parameters())


def test_another_number_of_threads_is_told(tmp_path: Path) -> None:
    model, made, average = run(0, "adamw", 1)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        state.save(tmp_path / "s", model, made, average, Progress(epochs=1))
        torch.set_num_threads(1)
        _, notes = state.load(tmp_path / "s", model, made, average)
    finally:
        torch.set_num_threads(threads)
    assert len(notes) == 1 and "began with 2 threads and goes on with 1" in notes[0]


def test_a_model_is_no_state(tmp_path: Path) -> None:
    save_bundle(bundle(), tmp_path / "m")
    model, made, average = run(0, "adamw", 0)
    with pytest.raises(BadData, match="m: not the state of a run"):
        state.load(tmp_path / "m", model, made, average)


def test_a_damaged_state_is_refused(tmp_path: Path) -> None:
    model, made, average = run(0, "adamw", 1)
    state.save(tmp_path / "s", model, made, average, Progress(epochs=1))
    data = bytearray((tmp_path / "s").read_bytes())
    data[len(data) // 2] ^= 4
    (tmp_path / "s").write_bytes(data)
    with pytest.raises(BadData, match="s: the file is damaged"):
        state.load(tmp_path / "s", model, made, average)
