"""Two ranks learn what one process learns, however they share the model; and go on from each other's states."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.train import two_ranks
from tests.train.started import ended, started
from tests.train.two_ranks import EVERYWHERE, KEPT, STEPS, cases, config, go_on, made, steps
from vitrine.errors import BadData
from vitrine.train import sharded, shards
from vitrine.weights import container

WAYS = ("ddp", "fsdp", "tensor")


def run(folder: Path, *ways: str, world: int = 2) -> Path:
    (folder / "alone").mkdir()
    steps(config(EVERYWHERE[KEPT]), "alone", until=STEPS // 2, keep=folder / "alone")
    found = ended(started(world, ["-m", two_ranks.__name__, str(folder), *ways]), timeout=280)
    assert [code for code, _ in found] == [0] * world, found
    return folder


@pytest.fixture(scope="module")
def states(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder where one process and two ranks left what they saw, states, and what came of going on from them."""
    return run(tmp_path_factory.mktemp("ranks"), *WAYS)


def alone(name: str, known: dict[str, dict[str, Tensor]] = {}) -> dict[str, Tensor]:  # noqa: B006
    """What one process sees of a case, asked once."""
    if name not in known:
        known[name] = steps(config(cases("alone")[name]), "alone")
    return known[name]


def same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    """Losses and gradients to 1e-6 of a picture's, weights to 1e-5."""
    assert found.keys() == wanted.keys()
    pictures = wanted["curve.weight"].clamp(min=1)
    losses = [of["curve.loss"] / pictures[: len(of["curve.loss"])] for of in (found, wanted)]
    torch.testing.assert_close(*losses, atol=1e-6, rtol=0)
    torch.testing.assert_close(found["curve.norm"], wanted["curve.norm"], atol=1e-6, rtol=2e-6)
    for name in ("curve.correct", "curve.weight"):
        torch.testing.assert_close(found[name], wanted[name], atol=1e-5, rtol=0)
    for name, tensor in wanted.items():
        if not name.startswith("curve."):
            torch.testing.assert_close(found[name], tensor, atol=1e-5, rtol=0, msg=name)


@pytest.mark.parametrize(("way", "name"), [(way, name) for way in WAYS for name in cases(way)])
def test_two_ranks_see_what_one_process_sees(states: Path, way: str, name: str) -> None:
    same(container.read(states / f"{way} {name}.safetensors")[0], alone(name))


def test_the_cases_differ_from_each_other() -> None:
    """So that none of them passes for another, and pictures that are bad, mixing and clipping have an effect."""
    ends = [alone(name)["curve.loss"] for name in cases("ddp")]
    assert all(not torch.allclose(a, b) for i, a in enumerate(ends) for b in ends[:i])
    weights = alone("plain")["curve.weight"].tolist()
    assert weights == [16, 15, 14, 13, 16, 8, 14, 13, 16, 15]


def test_in_bfloat16_shares_travel_in_it_and_the_loss_is_close(states: Path) -> None:
    found = container.read(states / "fsdp in bfloat16.safetensors")[0]
    wanted = steps(config(EVERYWHERE["plain"]), "alone", torch.bfloat16)
    torch.testing.assert_close(found["curve.loss"], wanted["curve.loss"], rtol=5e-3, atol=0)
    assert not torch.equal(found["curve.loss"], alone("plain")["curve.loss"])


def test_a_part_judged_together_has_each_picture_once_in_its_order(states: Path) -> None:
    found = container.read(states / "fsdp judged.safetensors")[0]
    wanted = two_ranks.judged(config(EVERYWHERE["plain"]), "alone")
    assert len(wanted["some.label"]) == 26 and len(wanted["none.label"]) == 5
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("way", "before"), [(way, before) for way in WAYS for before in ("alone", *WAYS)])
def test_any_way_goes_on_from_the_state_of_any_other(states: Path, way: str, before: str) -> None:
    found = container.read(states / f"{way} after {before}.safetensors")[0]
    wanted = alone(KEPT)
    half = {name: t[STEPS // 2 :] if name.startswith("curve.") else t for name, t in wanted.items()}
    same(found, half)


@pytest.mark.parametrize("before", WAYS)
def test_one_process_goes_on_from_the_state_of_two_ranks(states: Path, before: str) -> None:
    found = steps(config(EVERYWHERE[KEPT]), "alone", begin=states / before)
    same(found, {name: t[STEPS // 2 :] if name.startswith("curve.") else t for name, t in alone(KEPT).items()})


@pytest.mark.parametrize("before", ["fsdp", "tensor"])
def test_a_state_in_shares_is_one_folder_with_a_manifest(states: Path, before: str) -> None:
    (folder,) = (states / before / "state").iterdir()
    assert folder.name == f"step-{STEPS // 2:08}"
    names = {"manifest.json", "part-00001-of-00002.safetensors", "part-00002-of-00002.safetensors"}
    assert {file.name for file in folder.iterdir()} == names
    sizes = [(folder / name).stat().st_size for name in sorted(names - {"manifest.json"})]
    assert sizes[1] > 0.4 * sizes[0]  # what is not parted, and rank 0's random numbers, stand in the first


@pytest.mark.parametrize(
    "damage", ["a flipped bit", "a cut", "a missing file", "another format", "another step", "no JSON"]
)
def test_a_damaged_state_in_shares_is_refused(states: Path, tmp_path: Path, damage: str) -> None:
    shutil.copytree(states / "fsdp", tmp_path / "r")
    (folder,) = (tmp_path / "r" / "state").iterdir()
    file, manifest = folder / "part-00002-of-00002.safetensors", folder / "manifest.json"
    data = bytearray(file.read_bytes())
    if damage == "a flipped bit":
        data[-5] ^= 1
        file.write_bytes(data)
    elif damage == "a cut":
        file.write_bytes(data[:-8])
    elif damage == "a missing file":
        file.unlink()
    else:
        text = manifest.read_text()
        other = {"another format": ('"format": 1', '"format": 2'), "another step": ('"step": 5', '"step": 7')}
        changed = text.replace(*other[damage]) if damage in other else text[:-9]
        assert changed != text
        manifest.write_text(changed)
    with pytest.raises(BadData, match=r"part-00002-of-00002|manifest"):
        sharded.opened(folder)


def test_the_state_of_another_model_is_refused(states: Path) -> None:
    model, optimiser, average, _ = made(config(EVERYWHERE["sgd, a gated mlp"] | {"ema_decay": 0.9}), "alone")
    with pytest.raises(BadData, match="the state of another model"):
        go_on(states / "fsdp", model, optimiser, average)


def test_rows_regrouped_are_whole_heads_of_q_k_and_v() -> None:
    layer = torch.nn.Linear(1, 12)
    with torch.no_grad():
        layer.weight.copy_(torch.arange(12.0)[:, None])
    shards.regroup(layer, 3, 2)
    assert layer.weight.flatten().tolist() == [0, 1, 4, 5, 8, 9, 2, 3, 6, 7, 10, 11]


@pytest.mark.slow
def test_four_ranks_in_groups_that_share_layers(tmp_path: Path) -> None:
    folder = run(tmp_path, "both", world=4)
    for name in cases("both"):
        same(container.read(folder / f"both {name}.safetensors")[0], alone(name))
