from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.made import small
from vitrine.config.options import Config, OptimConfig
from vitrine.config.parallel import ParallelConfig
from vitrine.errors import BadConfig, UsageError
from vitrine.machine import ranks
from vitrine.machine.ranks import Place
from vitrine.train import parallel


def config(model: dict[str, Any] | None = None, **options: Any) -> Config:
    made = {name: options.pop(name) for name in ("mode", "optim", "compile", "batch_size") if name in options}
    return Config(model=small(**(model or {})), parallel=ParallelConfig(**options), **made)


class Told:
    """Stands in for a guard."""

    def meet(self) -> None: ...
    def beat(self) -> None: ...


@pytest.fixture
def eight(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process as rank 3 of 8."""
    monkeypatch.setattr(ranks, "_here", [(Place(rank=3, world=8, locals_=4), Told())])
    monkeypatch.setattr(ranks, "each", lambda value: [value] * 8)


@pytest.mark.parametrize(
    ("options", "parameters", "mode", "said"),
    [
        ({}, 600_000_000, "ddp", "8 ranks, 128 pictures a step in all; each holds the whole model (ddp): training it"),
        ({}, 3_000_000_000, "fsdp", "each holds a share of the model (fsdp): training it takes 55.9 of 80.0 GiB"),
        ({"mode_": "fsdp"}, 10, "fsdp", "each holds a share of the model (fsdp)"),
        ({"mode_": "ddp"}, 10**10, "ddp", "each holds the whole model (ddp)"),
        ({"mode": "lora"}, 10**10, "ddp", "each holds the whole model (ddp)"),
        ({"tensor": 2}, 10, "fsdp", "8 ranks: 2 share every layer, and 4 such groups shard what each holds (fsdp)"),
        ({"tensor": 8}, 10, "tensor", "8 ranks: 8 share every layer"),
    ],
)
def test_how_ranks_share_is_chosen_by_what_fits(
    eight: None, options: dict[str, Any], parameters: int, mode: str, said: str
) -> None:
    options = dict(options)
    settings = config(**options) if "mode_" not in options else Config(parallel=ParallelConfig(mode=options["mode_"]))
    found, why = parallel.chosen(settings, parameters, 80 << 30)
    assert found == mode and said in why


def test_one_process_is_alone_whatever_a_run_began_with() -> None:
    settings = config(tensor=4, mode="lora")
    parallel.check(settings, 1, 1)
    assert parallel.chosen(settings, 10**12, 1) == ("alone", "")
    assert parallel.of_one(settings, 100) is settings


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"tensor": 3}, "--parallel.tensor 3: 8 ranks cannot be grouped so"),
        ({"tensor": 8}, "--parallel.tensor 8: num_heads = 2 cannot be shared so"),
        ({"tensor": 2, "model": {"qk_norm": True}}, "--parallel.tensor 2: is for a ViT without relative positions"),
        ({"tensor": 2, "model": {"pos_embed": "rel_bias2d", "pos_at": "layers"}}, "without relative positions"),
        ({"tensor": 2, "mode": "lora"}, "--parallel.tensor 2: not where a part of the model learns (--mode lora)"),
        ({"tensor": 2, "optim": OptimConfig(name="muon")}, "--parallel.tensor 2: muon works on whole matrices"),
        ({"tensor": 2, "compile": "on"}, "--parallel.tensor 2: not together with --compile on"),
        ({"batch_size": 14}, "--batch-size 14: a step's pictures go in pairs to 8 ranks. Give 16 or more."),
    ],
)
def test_what_cannot_be_spread_is_refused(options: dict[str, Any], said: str) -> None:
    settings = config(**options)
    with pytest.raises(UsageError) as caught:
        parallel.check(settings, 8, settings.batch_size)
    assert str(caught.value).startswith(said) or said in str(caught.value)


def test_groups_that_share_layers_are_no_ddp() -> None:
    settings = Config(model=small(), parallel=ParallelConfig(mode="ddp", tensor=2))
    with pytest.raises(UsageError, match="groups that share layers shard what each holds"):
        parallel.check(settings, 8, 128)
    parallel.check(settings, 2, 128)


def test_a_rank_is_measured_with_its_part_of_a_batch(eight: None) -> None:
    settings = Config(batch_size=100, accumulate=20)
    assert parallel.of_one(settings, 1000).batch_size == 13
    assert parallel.of_one(settings, 1000).accumulate == 13
    assert parallel.of_one(settings, 40).batch_size == 5
    assert parallel.memory_of_all(100, torch.device("cpu"), 1) == 25 * 8
    assert parallel.memory_of_all(100, torch.device("cuda"), 2) == 100 * 4


@pytest.mark.parametrize(("options", "said"), [({"tensor": 0}, "parallel.tensor = 0"), ({"timeout_s": 0.0}, "above 0")])
def test_options_that_cannot_be(options: dict[str, Any], said: str) -> None:
    with pytest.raises(BadConfig, match=said):
        ParallelConfig(**options)
