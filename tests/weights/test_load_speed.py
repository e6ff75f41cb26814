"""Opening is fast because nothing is made twice: no random weights, no copies, pages read when they are used."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from vitrine.config.architecture import ModelConfig
from vitrine.config.options import PreprocessConfig
from vitrine.models.networks import network
from vitrine.weights import bundle as bundles
from vitrine.weights.bundle import Bundle
from vitrine.weights.opening import open_model

STATUS = Path("/proc/self/status")


def files(folder: Path, config: ModelConfig) -> tuple[Path, Path]:
    """A state dict under timm's names in safetensors, and our bundle of the same weights."""
    tensors = dict(network(config).state_dict())
    names = tuple(map(str, range(config.num_classes)))
    made = Bundle(model=config, preprocess=PreprocessConfig(size=config.size), class_names=names, tensors=tensors)
    save_file(tensors, folder / "foreign", metadata={"format": "pt"})
    bundles.save(made, folder / "ours")
    return folder / "foreign", folder / "ours"


def own_memory() -> int:
    """Bytes of this process that no file stands behind."""
    rows = dict(line.split(":", 1) for line in STATUS.read_text().splitlines() if ":" in line)
    return int(rows["RssAnon"].split()[0]) * 1024


@pytest.mark.skipif(not STATUS.exists(), reason="Linux tells memory with and without a file behind it apart")
def test_weights_are_mapped_and_nothing_random_is_made(tmp_path: Path) -> None:
    config = ModelConfig(img_size=64, patch_size=16, embed_dim=512, depth=12, num_heads=8)
    foreign, ours = files(tmp_path, config)
    assert foreign.stat().st_size > 150e6
    for path in (foreign, ours):
        state, before = torch.get_rng_state(), own_memory()
        opened = open_model(path, given={"num_heads": 8}).bundle
        model = bundles.build(opened)
        assert own_memory() - before < 40e6
        assert torch.equal(torch.get_rng_state(), state)
        for name, parameter in model.named_parameters():
            assert parameter.data_ptr() == opened.tensors[name].data_ptr(), name


def seconds(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


@pytest.mark.slow
def test_a_base_model_opens_within_twice_and_thrice_the_time_of_reading_it(tmp_path: Path) -> None:
    """The best of many turns, as neighbours only ever make one slower; `bench/load.py` gives the medians."""
    foreign, ours = files(tmp_path, ModelConfig())
    ways: dict[str, Callable[[], object]] = {
        "read": foreign.read_bytes,
        "foreign": lambda: bundles.build(open_model(foreign).bundle),
        "ours": lambda: bundles.build(open_model(ours).bundle),
    }
    best = dict.fromkeys(ways, float("inf"))
    for _ in range(12):
        best = {name: min(best[name], seconds(run)) for name, run in ways.items()}
    assert best["foreign"] < 2 * best["read"], best
    assert best["ours"] < 3 * best["read"], best
