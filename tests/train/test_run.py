"""Whole runs, from the name of the data to the folder."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.made import MICRO, MODEL, photos, told_to_nobody, trained
from vitrine.config.options import Config
from vitrine.config.text import from_dict, read_toml
from vitrine.errors import BadConfig, BadData, Diverged, NotFound, Unavailable, UsageError
from vitrine.train import fit, pace, run
from vitrine.train.objective import classify
from vitrine.train.state import Progress
from vitrine.train.watch import Watch, clock
from vitrine.weights.bundle import build, open_bundle
from vitrine.weights.start import initialise


def records(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def refuse(word: str) -> float:
    raise ValueError(f"{word} is no JSON")


def test_a_finished_folder(run: Path) -> None:
    assert {entry.name for entry in run.iterdir()} == {
        "config.toml", "metrics.jsonl", "model.safetensors", "last.safetensors", "report.html"
    }  # fmt: skip
    config = from_dict(Config, read_toml(run / "config.toml"))
    best, last = open_bundle(run), open_bundle(run / "last.safetensors")
    assert best.finished and last.finished
    assert best.model == last.model == config.model and best.preprocess == config.preprocess
    assert best.class_names == tuple("0123456789")
    assert best.run["epochs"] == config.epochs == 2 and best.run["data"]["source"] == "digits"
    assert [record["epoch"] for record in records(run)] == [1, 2]
    assert records(run)[-1]["step"] == last.provenance.steps == 16


def test_the_figures_have_their_number_and_interval(run: Path) -> None:
    best = open_bundle(run)
    assert set(best.metrics) == {"validation", "test"}
    for figures in best.metrics.values():
        assert {"top1", "top5", "loss", "ece"} == set(figures)
        assert all(figure.low <= figure.value <= figure.high and figure.n == 360 for figure in figures.values())
    kept = records(run)[best.provenance.epoch - 1]
    assert best.metrics["validation"]["top1"].value == pytest.approx(kept["val_top1"], abs=0.02)


def test_provenance_says_how_to_run_it_again(run: Path) -> None:
    found = open_bundle(run).provenance
    assert found.data == "digits" and len(found.data_fingerprint) == 64
    assert (found.seed, found.train_pictures, found.precision) == (0, 1077, "fp32")
    assert found.device.startswith("cpu (") and found.versions["torch"] and found.created.endswith("+00:00")


def test_the_same_seed_gives_the_same_run_and_another_one_another(run: Path, tmp_path: Path) -> None:
    first, again, other = (
        open_bundle(path).tensors["head.weight"]
        for path in (run, trained(tmp_path / "b", epochs=2).out, trained(tmp_path / "c", epochs=2, seed=1).out)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_it_learns(tmp_path: Path) -> None:
    outcome = trained(tmp_path / "r", epochs=12, model={**MODEL, "depth": 2, "embed_dim": 32}, batch_size=32)
    assert outcome.test is not None
    assert outcome.test.top1.low > 0.5 > 3 * outcome.test.majority


def test_options_may_be_given_with_underscores(tmp_path: Path) -> None:
    outcome = trained(tmp_path / "r", epochs=1, optim__lr=0.25, augment__shift=0.0)
    assert outcome.bundle.run["optim"]["lr"] == 0.25 and outcome.bundle.run["augment"]["shift"] == 0.0


def test_averaging_keeps_the_average(tmp_path: Path) -> None:
    plain, averaged = (trained(tmp_path / f"{d}", epochs=1, ema_decay=d).bundle.tensors for d in (0.0, 0.9))
    assert not torch.equal(plain["head.weight"], averaged["head.weight"])


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"epoch": 3}, BadConfig, "epoch: there is no such option. Did you mean 'epochs'"),
        ({"optim__lrr": 3}, BadConfig, "optim.lrr: there is no such option. Did you mean 'lr'"),
        ({"batch_size": "many"}, BadConfig, "batch_size = 'many'"),
        ({"batch_size": -1}, BadConfig, "batch_size = -1"),
        ({"epochs": 0}, BadConfig, "epochs = 0"),
        ({"device": "gpu"}, BadConfig, "device = 'gpu'"),
        ({"optim": 5}, BadConfig, "optim = 5"),
        ({"arch": "vit-q/16"}, NotFound, "vit-q/16"),
        ({"init": "nowhere"}, NotFound, "nowhere"),
        ({"data__test_share": 1.5}, BadConfig, "data.test_share = 1.5"),
        ({"model__num_classes": 3}, UsageError, "the data has 10 classes"),
        (
            {"preprocess__size": (9, 8)},
            UsageError,
            "preprocess.size = (9, 8): must be a multiple of model.patch_size = 2",
        ),
    ],
)
def test_what_cannot_hold_is_refused_before_anything_is_written(
    tmp_path: Path, options: dict[str, Any], error: type[Exception], said: str
) -> None:
    with pytest.raises(error) as caught:
        told_to_nobody("digits", tmp_path / "r", **options)
    assert said in str(caught.value)
    assert not (tmp_path / "r").exists()


def test_a_time_limit_is_kept_and_the_schedule_ends_with_it(tmp_path: Path) -> None:
    began = time.monotonic()
    trained(tmp_path / "r", max_time_s=2.0, optim={"lr": 1e-2})
    assert 1.0 < time.monotonic() - began < 6.0  # opening and judging the data are beside the limit
    found = records(tmp_path / "r")
    assert found[-1]["seconds"] < 3.0
    assert max(record["lr"] for record in found) > 8e-3
    assert found[-1]["lr"] < 1e-3
    assert "val_top1" in found[-1]


@pytest.mark.parametrize(
    "options",
    [
        {"optim": {"name": "sgd", "lr": 1e9, "clip_norm": 0.0, "warmup_steps": 0}},
        {"optim": {"name": "sgd", "lr": 1e38, "warmup_steps": 0}, "batch_size": 1077},
        {"optim": {"name": "adamw", "lr": 1e30}, "ema_decay": 0.0},
    ],
)
def test_a_run_that_diverges_says_so_and_leaves_nothing_broken(tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(
        Diverged, match=r"r: the loss or its gradient is not finite at step \d+.*lower rate: --optim\.lr"
    ):
        trained(tmp_path / "r", epochs=4, **options)
    for path in (tmp_path / "r").glob("*.safetensors"):
        assert all(bool(tensor.isfinite().all()) for tensor in open_bundle(path).tensors.values())
    if (tmp_path / "r" / "metrics.jsonl").exists():
        for line in (tmp_path / "r" / "metrics.jsonl").read_text().splitlines():
            json.loads(line, parse_constant=refuse)


def test_a_batch_without_space_is_refused_with_half_of_it() -> None:
    said = rf"--batch-size {1 << 50}: there is no space for such a batch\. Try --batch-size {1 << 49}\."
    tiny = {"model": {**MODEL, "img_size": 16, "patch_size": 8, "num_classes": 3}, "preprocess": {"size": [16, 16]}}
    config = from_dict(Config, {**tiny, "batch_size": 1 << 50, "threads": torch.get_num_threads()})
    with pytest.raises(Unavailable, match=said):
        pace.best_threads(config, torch.device("cpu"), 1 << 50)


def test_a_batch_wider_than_the_data_is_all_of_it(tmp_path: Path) -> None:
    trained(tmp_path / "r", epochs=1, batch_size=1 << 40)
    assert records(tmp_path / "r")[-1]["step"] == 1


def test_space_that_ends_while_training_is_told_too() -> None:
    remedy = "Begin anew in another --out with"
    with (
        pytest.raises(Unavailable, match=r"--batch-size 8: .* with --batch-size 4\."),
        pace.space_for(8, remedy),
    ):
        torch.empty(1 << 58, dtype=torch.uint8)
    with pytest.raises(RuntimeError, match="mat1"), pace.space_for(8, remedy):
        torch.ones(2, 3) @ torch.ones(2, 3)


def test_the_number_of_threads_is_measured_unless_given() -> None:
    config = from_dict(Config, {"model": {**MODEL, "img_size": 8, "patch_size": 2, "in_chans": 1, "num_classes": 3},
        "preprocess": {"size": [8, 8], "mean": [0.5], "std": [0.5]}, "batch_size": 4, "precision": "fp32"})  # fmt: skip
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        threads, step_s = pace.best_threads(config, torch.device("cpu"), 9)
        assert threads in (1, 2) and torch.get_num_threads() == threads
        assert 1e-5 < step_s < 5
        given = from_dict(Config, {"threads": 3, "model": {**MODEL, "img_size": 16, "patch_size": 8}, "batch_size": 2})
        assert pace.best_threads(given, torch.device("cpu"), 9)[0] == 3 == torch.get_num_threads()
    finally:
        torch.set_num_threads(before)


def test_damaged_pictures_are_left_out_and_too_many_refused(tmp_path: Path) -> None:
    data = photos(tmp_path / "data", {"a": 30, "b": 30}, size=(16, 16))
    (data / "a" / "3.png").write_bytes(b"no picture")
    outcome = trained(tmp_path / "r", str(data), epochs=1, batch_size=8)
    assert outcome.test is not None
    assert outcome.bundle.provenance.train_pictures == 59 - outcome.test.top1.n
    for i in range(4, 9):
        (data / "b" / f"{i}.png").write_bytes(b"no picture")
    with pytest.raises(BadData, match=r"6 of 60 pictures cannot be read, more than data\.max_bad_share"):
        trained(tmp_path / "s", str(data), epochs=1)


def test_with_few_pictures_there_are_no_figures_but_a_model(tmp_path: Path) -> None:
    data = photos(tmp_path / "data", {"a": 4, "b": 4}, size=(16, 16))
    outcome = trained(tmp_path / "r", str(data), epochs=2, batch_size=8)
    assert outcome.test is None and outcome.bundle.metrics == {}
    assert any("there was no validation part to choose by" in note for note in outcome.bundle.notes)
    first, last = (open_bundle(tmp_path / "r" / name).tensors for name in ("model.safetensors", "last.safetensors"))
    assert all(torch.equal(first[name], last[name]) for name in last)


def test_each_file_names_the_epoch_of_its_own_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit, "better", lambda found, progress: progress.best_epoch == 0)
    outcome = trained(tmp_path / "r", epochs=3)
    best, last = (open_bundle(tmp_path / "r" / name).provenance for name in ("model.safetensors", "last.safetensors"))
    assert (best.epoch, best.steps, last.epoch, last.steps) == (1, 8, 3, 24)
    assert outcome.bundle.provenance == best


def test_progress_is_counted_in_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[tuple[Any, ...]] = []
    seen: list[tuple[Any, ...]] = []
    monkeypatch.setattr(Watch, "begin", lambda self, label, total, unit="pictures", done=0: begun.append(
        (label, total, unit, done)))  # fmt: skip
    monkeypatch.setattr(Watch, "at", lambda self, done, total=None, detail="": seen.append((done, total, detail)))
    trained(tmp_path / "r", epochs=2)
    assert ("training", 2 * 8 * 128, "pictures", 0) in begun
    shown = [(done, total) for done, total, _ in seen if total == 2 * 8 * 128]
    assert shown == [(128 * k, 2 * 8 * 128) for k in range(1, 17)]
    details = [detail for _, _, detail in seen if detail]
    assert details and details[-1].startswith("loss ") and " accuracy " in details[-1]


@pytest.mark.parametrize(("before", "after"), [("RGB", "L"), ("L", "RGB")])
def test_fine_tuning_at_another_size_with_other_classes_and_colours(tmp_path: Path, before: str, after: str) -> None:
    old = photos(tmp_path / "old", {"a": 20, "b": 20, "c": 20}, size=(16, 16), mode=before)
    new = photos(tmp_path / "new", {"b": 20, "d": 20}, size=(24, 24), mode=after)
    first = trained(tmp_path / "first", str(old), epochs=1, batch_size=16)
    channels = {"L": 1, "RGB": 3}
    changed = {"img_size": 24, "in_chans": channels[after]}
    given = {**MICRO, "model": changed, "init": str(tmp_path / "first"), "epochs": 2, "batch_size": 16}
    second = told_to_nobody(str(new), tmp_path / "second", **given)
    assert (first.bundle.model.in_chans, second.bundle.model.in_chans) == (channels[before], channels[after])
    assert second.bundle.model.img_size == 24 and second.bundle.preprocess.size == (24, 24)
    assert second.bundle.class_names == ("b", "d")
    assert second.bundle.model.embed_dim == 16 and second.bundle.provenance.init == str(tmp_path / "first")
    started, _ = initialise(second.bundle.model, ("b", "d"), first.bundle)
    near = started.state_dict()["blocks.0.mlp.fc1.weight"]
    moved = (second.bundle.tensors["blocks.0.mlp.fc1.weight"] - near).abs().max()
    assert 0 < moved < 0.1
    assert build(second.bundle)(torch.zeros(1, channels[after], 24, 24)).shape == (1, 2)


def test_fine_tuning_with_another_architecture_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(BadConfig, match=r"another architecture: depth = 3 \(it has 1\)"):
        trained(tmp_path / "r", init=str(run), model={"depth": 3}, epochs=1)


def test_a_limit_refits_the_number_of_epochs_and_nothing_else_does() -> None:
    limited = job(Config(max_time_s=100.0, epochs=60))
    for seconds, done, epochs, expected in [(10.0, 1, 60, 9), (10.0, 1, 9, 9), (5.0, 1, 9, 19), (1.0, 1, 60, 60)]:
        progress = Progress(step=10 * done, epochs=epochs, seconds=seconds)
        fit.refit(limited, progress)
        assert progress.epochs == expected, (seconds, epochs)
    progress = Progress(step=10, epochs=5, seconds=1e9)
    fit.refit(job(Config()), progress)
    assert progress.epochs == 5


@pytest.mark.parametrize(
    ("top1", "loss", "kept"),
    [
        (0.80, 0.7, True),  # a lower loss at the same accuracy
        (0.80, 0.9, False),
        (0.77, 0.7, True),  # a standard error is 4 points here: such a difference is luck
        (0.83, 0.9, False),
        (0.75, 0.1, False),  # too far below
        (0.90, 2.0, True),  # so far above that the best so far is too far below
    ],
)
def test_the_weights_kept_are_of_the_lowest_loss_among_the_most_accurate(top1: float, loss: float, kept: bool) -> None:
    progress = Progress(epochs=9, best=0.8, best_loss=0.8, peak=0.8)
    assert fit.better(fit.Validation(top1=top1, loss=loss, n=100), progress) is kept


@pytest.mark.parametrize("top1", [0.0, 0.3, 1.0])
def test_the_first_weights_are_kept_whatever_they_are(top1: float) -> None:
    assert fit.better(fit.Validation(top1=top1, loss=9.0, n=20), Progress(epochs=9))


def job(config: Config) -> fit.Job:
    """A job of ten steps an epoch in which nothing is trained."""
    model = torch.nn.Linear(1, 1)
    return fit.Job(
        out=Path(), config=config, model=model, optimizer=torch.optim.SGD(model.parameters()), average=None, dtype=None,
        batch_size=4, steps_per_epoch=10, objective=classify(config), batches=lambda first, last: (_ for _ in ()),
        validate=None, save_model=lambda path, model, progress: None, watch=Watch(quiet=True),
    )  # fmt: skip


def test_metrics_after_a_step_are_dropped(tmp_path: Path) -> None:
    lines = ['{"step": 8, "x": 1}', '{"step": 16}', '{"nothing": 1}', "half a li"]
    (tmp_path / "metrics.jsonl").write_text("".join(line + "\n" for line in lines))
    fit.rewind_metrics(tmp_path, 15)
    assert (tmp_path / "metrics.jsonl").read_text() == lines[0] + "\n"
    fit.rewind_metrics(tmp_path / "none", 15)
    assert not (tmp_path / "none").exists()


def test_what_is_told_stands_on_stderr_and_a_quiet_watch_says_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told_to_nobody("digits", tmp_path / "a", **MICRO, epochs=1)
    assert capsys.readouterr() == ("", "")
    threads = torch.get_num_threads()
    with Watch() as watch:
        run.train("digits", tmp_path / "b", watch=watch, **MICRO, epochs=1)
    torch.set_num_threads(threads)
    said = capsys.readouterr()
    assert said.out == ""
    for words in ("1,797 pictures in 10 classes", "length: 1 epochs of 8 steps, as asked", "weights: fresh", "done in"):
        assert words in said.err


def test_the_rate_counts_from_where_a_run_was_taken_up(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    watch = Watch()
    watch.begin("training", 2_000, "steps", 1_000)
    now[0] += 20
    watch.at(1_100)
    assert capsys.readouterr().err.startswith("training: 1,100 of 2,000 steps, 5 a second, 3 min 0 s left")


def test_clock() -> None:
    assert [clock(s) for s in (0.4, 42, 190, 7500)] == ["0 s", "42 s", "3 min 10 s", "2 h 5 min"]


def test_the_pictures_of_a_pace_are_like_the_real_ones() -> None:
    made = pace._batch(Config())
    assert made.images.shape == (128, 3, 224, 224) and made.images.dtype == torch.uint8
    assert math.isclose(float(made.images.float().mean()), 127.5, abs_tol=1)
    assert np.unique(made.labels).max() < 1000
