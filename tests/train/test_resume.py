"""A run that was stopped, and goes on as if it had not been."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.made import MODEL, photos, told_to_nobody, trained
from vitrine.errors import BadData, CannotCreate, Stopped, UsageError
from vitrine.weights.bundle import facts_of, open_bundle

# Three epochs of eight steps with all that is random, or remembered, in a run.
RANDOM: dict[str, Any] = {
    "epochs": 3,
    "seed": 5,
    "model": {**MODEL, "drop_rate": 0.1, "drop_path_rate": 0.1, "depth": 2},
    "augment": {
        "mixup": 0.3,
        "cutmix": 0.5,
        "rotate_deg": 10.0,
        "shift": 0.1,
        "policy": "rand-m9-mstd0.5-inc1",
        "erase": 0.25,
        "repeats": 2,
        "mix_off_share": 0.3,
    },
    "ema_decay": 0.9,
}
SGD: dict[str, Any] = {**RANDOM, "optim": {"name": "sgd", "lr": 0.1}, "ema_decay": 0.0}
PARTS: dict[str, Any] = {
    **RANDOM, "optim": {"name": "lamb", "layer_decay": 0.7}, "accumulate": 3, "loss": "bce", "class_weights": "balanced"
}  # fmt: skip


def records(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def contents(out: Path) -> dict[str, bytes]:
    """Every file below a run's folder."""
    return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}


def same(first: Path, second: Path) -> bool:
    """Whether two model files hold identical tensors."""
    a, b = open_bundle(first).tensors, open_bundle(second).tensors
    return a.keys() == b.keys() and all(torch.equal(tensor, b[name]) for name, tensor in a.items())


@pytest.mark.parametrize("options", [RANDOM, SGD, PARTS], ids=["adamw", "sgd", "lamb in parts"])
def test_a_stopped_run_ends_bit_for_bit_like_one_that_was_not(
    tmp_path: Path, signal_at: Callable[..., None], options: dict[str, Any]
) -> None:
    straight = trained(tmp_path / "a", **options)
    signal_at(3, 7, 12, 23)  # in mid-epoch, at the end of an epoch, in mid-epoch, and in the last step of all
    for epoch in (1, 1, 2, 3):
        with pytest.raises(Stopped, match=f"b: stopped in epoch {epoch}, all is kept; the same command goes on"):
            trained(tmp_path / "b", **options)
    broken = trained(tmp_path / "b", **options)

    assert same(tmp_path / "a" / "last.safetensors", tmp_path / "b" / "last.safetensors")
    assert same(tmp_path / "a" / "model.safetensors", tmp_path / "b" / "model.safetensors")
    assert broken.bundle.metrics == straight.bundle.metrics
    a, b = records(tmp_path / "a"), records(tmp_path / "b")
    assert [record["epoch"] for record in b] == [1, 2, 3]
    for name in ("step", "train_loss", "train_top1", "lr", "val_top1", "val_loss", "grad_norm"):
        assert [record[name] for record in a] == [record[name] for record in b], name
    assert broken.bundle.provenance.steps == straight.bundle.provenance.steps


def test_a_stopped_run_leaves_what_can_be_used_and_gone_on_with(tmp_path: Path, signal_at: Callable[..., None]) -> None:
    signal_at(2, number=signal.SIGTERM)
    with pytest.raises(Stopped):
        trained(tmp_path / "r", **RANDOM)
    names = {"config.toml", "model.safetensors", "last.safetensors", "state", "report.html"}
    assert {entry.name for entry in (tmp_path / "r").iterdir()} == names
    for name in ("model.safetensors", "last.safetensors"):
        assert not facts_of(tmp_path / "r" / name).finished
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    done = told_to_nobody(None, tmp_path / "r")
    assert done.bundle.finished and done.test is not None
    assert facts_of(tmp_path / "r" / "last.safetensors").finished
    assert not (tmp_path / "r" / "state").exists()


def test_a_second_interrupt_is_an_ordinary_one(tmp_path: Path, signal_at: Callable[..., None]) -> None:
    signal_at(2, times=2)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "r", **RANDOM)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_other_options_are_refused_by_name(tmp_path: Path, signal_at: Callable[..., None]) -> None:
    signal_at(2)
    with pytest.raises(Stopped):
        trained(tmp_path / "r", **RANDOM)
    before = contents(tmp_path / "r")
    changed = {**RANDOM, "seed": 6, "augment": {**RANDOM["augment"], "mixup": 0.4}}
    with pytest.raises(UsageError) as caught:
        trained(tmp_path / "r", **changed)
    said = str(caught.value)
    assert "seed = 6 (it began with 5)" in said and "augment.mixup = 0.4 (it began with 0.3)" in said
    assert "cutmix" not in said
    with pytest.raises(UsageError, match=r"data\.source = 'other' \(it began with 'digits'\)"):
        trained(tmp_path / "r", data="other")
    assert contents(tmp_path / "r") == before


def test_a_finished_run_is_not_overwritten(run: Path) -> None:
    before = (run / "model.safetensors").read_bytes()
    for data in ("digits", None):
        with pytest.raises(CannotCreate, match="a finished run stands here and is not overwritten"):
            trained(run, data=data, epochs=2)
    assert (run / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize("lost", ["last.safetensors", "model.safetensors"])
def test_a_finished_run_is_known_by_either_of_its_models(run: Path, tmp_path: Path, lost: str) -> None:
    shutil.copytree(run, tmp_path / "r")
    (tmp_path / "r" / lost).unlink()
    before = {entry.name: entry.read_bytes() for entry in (tmp_path / "r").iterdir()}
    with pytest.raises(CannotCreate, match="a finished run stands here and is not overwritten") as caught:
        trained(tmp_path / "r", epochs=2)
    assert caught.value.exit_code == 73
    assert {entry.name: entry.read_bytes() for entry in (tmp_path / "r").iterdir()} == before


def test_what_a_killed_beginning_left_does_not_count(tmp_path: Path) -> None:
    out = tmp_path / "r"
    out.mkdir()
    (out / ".config.toml.999999.part").write_text("epo")
    trained(out, epochs=1)
    names = {"config.toml", "metrics.jsonl", "model.safetensors", "last.safetensors", "report.html"}
    assert {entry.name for entry in out.iterdir()} == names


def test_without_a_validation_part_the_model_follows_the_last_weights(
    tmp_path: Path, signal_at: Callable[..., None]
) -> None:
    data = photos(tmp_path / "data", {"a": 4, "b": 4}, size=(16, 16))
    signal_at(1, 4)
    seen = []
    for step in (2, 5):
        with pytest.raises(Stopped):
            trained(tmp_path / "r", str(data), epochs=5, batch_size=4)
        assert same(tmp_path / "r" / "model.safetensors", tmp_path / "r" / "last.safetensors")
        found = open_bundle(tmp_path / "r")
        assert found.provenance.steps == step and not found.finished
        seen.append(found.tensors["head.weight"].clone())
    assert not torch.equal(*seen)


def test_a_run_taken_up_again_needs_the_model_it_started_from_no_more(
    run: Path, tmp_path: Path, signal_at: Callable[..., None]
) -> None:
    shutil.copytree(run, tmp_path / "base")
    straight = trained(tmp_path / "a", init=str(tmp_path / "base"), epochs=2)
    signal_at(3)
    with pytest.raises(Stopped):
        trained(tmp_path / "b", init=str(tmp_path / "base"), epochs=2)
    shutil.rmtree(tmp_path / "base")
    done = told_to_nobody(None, tmp_path / "b")
    assert done.bundle.finished and done.bundle.provenance.init == str(tmp_path / "base")
    assert same(tmp_path / "a" / "last.safetensors", tmp_path / "b" / "last.safetensors")
    assert done.bundle.metrics == straight.bundle.metrics


def test_a_stopped_run_names_the_epoch_it_stopped_in(tmp_path: Path, signal_at: Callable[..., None]) -> None:
    signal_at(3, 12)
    for epoch in (1, 2):
        with pytest.raises(Stopped):
            trained(tmp_path / "r", epochs=3)
        assert facts_of(tmp_path / "r" / "last.safetensors").provenance.epoch == epoch


def test_what_is_no_run_is_not_written_into(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").touch()
    for out in (tmp_path, tmp_path / "photo.jpg"):
        with pytest.raises(CannotCreate, match="exists and is not a run of vitrine"):
            trained(out)
    assert [entry.name for entry in tmp_path.iterdir()] == ["photo.jpg"]


def test_without_data_there_must_be_a_run(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no run to go on with; give DATA to begin one"):
        trained(tmp_path / "r", data=None)
    assert not (tmp_path / "r").exists()


def test_pictures_that_changed_meanwhile_are_noticed(tmp_path: Path, signal_at: Callable[..., None]) -> None:
    data = photos(tmp_path / "data", {"a": 12, "b": 12}, size=(16, 16))
    signal_at(1)
    with pytest.raises(Stopped):
        trained(tmp_path / "r", str(data), epochs=5, batch_size=8)
    (data / "a" / "0.png").write_bytes((data / "a" / "1.png").read_bytes())
    with pytest.raises(BadData, match="the pictures have changed since this run began"):
        told_to_nobody(str(data), tmp_path / "r")


def test_a_kill_before_the_first_save_begins_again(tmp_path: Path) -> None:
    """What a run leaves that was killed in its first seconds: its configuration, and a line cut off."""
    straight = trained(tmp_path / "a", epochs=1)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "config.toml").write_bytes((tmp_path / "a" / "config.toml").read_bytes())
    (tmp_path / "b" / "metrics.jsonl").write_text('{"epoch": 1, "step": 8}\n{"epoch": 2, "st')
    again = trained(tmp_path / "b")
    assert same(tmp_path / "a" / "last.safetensors", tmp_path / "b" / "last.safetensors")
    assert [record["epoch"] for record in records(tmp_path / "b")] == [1]
    assert again.bundle.metrics == straight.bundle.metrics


def test_what_a_user_should_know_outlives_a_stop(tmp_path: Path, signal_at: Callable[..., None]) -> None:
    data = photos(tmp_path / "data", {"a": 6, "b": 6}, size=(60, 50))
    signal_at(1)
    with pytest.raises(Stopped):
        trained(tmp_path / "r", str(data), epochs=2, batch_size=4)
    notes = told_to_nobody(None, tmp_path / "r").bundle.notes
    assert any("are few for a ViT from scratch" in note for note in notes)
