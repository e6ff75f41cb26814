"""Each warning where it should be given, and none for a run that is well."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from tests.made import MICRO, MODEL, trained
from vitrine.train.run import train
from vitrine.train.signs import RULES, Setting, signs

SETTING = Setting(
    lr=1e-3, warmup_epochs=1.0, clip_norm=1.0, num_workers=0, cores=4, majority=0.1, num_validation=400,
    unused=("more augmentation (--augment.policy trivial)",),
)  # fmt: skip


def run(epochs: int = 20, seen: int | None = None, **changes: Any) -> list[dict[str, Any]]:
    """A healthy run's records, `seen` of `epochs`; a change is a value, or a function of the epoch from 1."""
    found = []
    for epoch in range(1, (seen or epochs) + 1):
        record = {
            "epoch": epoch, "epochs": epochs, "train_loss": 2.3 * 0.9**epoch, "val_loss": 2.2 * 0.9**epoch + 0.05,
            "val_top1": 0.95 - 0.8 * 0.8**epoch, "clipped": 1.0, "wait_share": 0.05, "epoch_seconds": 30.0,
            "epoch_pictures_per_s": 650.0, "val_never": [],
        }  # fmt: skip
        record |= {name: change(epoch) if callable(change) else change for name, change in changes.items()}
        found.append(record)
    return found


def ever(records: list[dict[str, Any]], setting: Setting = SETTING) -> dict[str, int]:
    """The rules that hold at some time, with the first epoch at which they do."""
    found: dict[str, int] = {}
    for end in range(1, len(records) + 1):
        for name in signs(records[:end], setting):
            found.setdefault(name, end)
    return found


def test_a_healthy_run_is_not_disturbed() -> None:
    assert ever(run()) == {}
    assert ever(run(300)) == {}
    assert ever(run(1)) == {} and signs([], SETTING) == {}


def test_records_of_older_runs_can_be_read() -> None:
    old = [{name: record[name] for name in ("epoch", "train_loss", "val_top1", "val_loss")} for record in run()]
    assert ever(old) == {}


def test_a_loss_above_its_start_is_a_rate_too_high() -> None:
    assert ever(run(seen=4, train_loss=lambda epoch: 2.3 if epoch == 1 else 2.5)) == {"learning rate": 3}
    said = signs(run(seen=3, train_loss=lambda epoch: 2.3 if epoch == 1 else 2.5), SETTING)["learning rate"]
    assert "optim.lr = 0.001" in said and "epoch 3 is 2.5, above the 2.3 of the first" in said
    assert "--optim.lr 0.0003," in said
    assert ever(run(seen=4, train_loss=lambda epoch: 2.3 if epoch == 1 else 2.4)) == {}  # within a twentieth


def test_a_leap_of_the_loss_is_a_rate_too_high() -> None:
    leaps = {1: 2.3, 9: 1.9, 10: 1.0}
    found = run(train_loss=lambda epoch: leaps.get(epoch, 0.5), val_loss=0.5)
    assert ever(found) == {"learning rate": 9}
    assert "leapt from 0.5 to 1.9" in signs(found[:9], SETTING)["learning rate"]
    tiny = run(train_loss=lambda epoch: 2.3 if epoch == 1 else 0.01 + 0.02 * (epoch % 2))
    assert ever(tiny) == {}  # three times as much, of next to nothing


def test_a_slow_rise_counts_where_nearly_every_gradient_is_clipped() -> None:
    def rise(epoch: int) -> float:
        return 2.0 if epoch < 6 else 1.0 + 0.02 * (epoch - 6)

    assert ever(run(12, train_loss=rise, val_loss=0.5)) == {"learning rate": 9}
    assert ever(run(12, train_loss=rise, val_loss=0.5, clipped=0.9)) == {}


def test_an_accuracy_of_chance_is_told_after_a_quarter_of_the_run() -> None:
    at_chance = run(20, val_top1=lambda epoch: 0.1 + 0.02 * (epoch % 2))
    assert ever(at_chance) == {"stuck": 5}
    assert "after 5 of 20 epochs the best validation accuracy is 12.0%" in signs(at_chance[:5], SETTING)["stuck"]
    late = Setting(**{**vars(SETTING), "warmup_epochs": 8.0})
    assert ever(at_chance, late) == {"stuck": 9}
    assert ever(run(20, val_top1=lambda epoch: 0.1 if epoch < 4 else 0.14)) == {}  # beyond two standard errors
    few = Setting(**{**vars(SETTING), "num_validation": 200})
    assert ever(run(20, val_top1=0.14), few) == {"stuck": 5}


def test_a_rising_validation_loss_is_over_fitting() -> None:
    def loss(epoch: int) -> float:
        return 1.0 - 0.1 * epoch if epoch < 6 else 0.5 + 0.04 * (epoch - 5)

    found = run(30, val_loss=loss, val_top1=lambda epoch: min(0.8, 0.2 * epoch))
    assert ever(found) == {"over-fitting": 10}
    said = signs(found[:12], SETTING)["over-fitting"]
    assert "least in epoch 5 (0.5)" in said and "7 validations later" in said and "--augment.policy trivial" in said
    better = run(30, val_loss=loss, val_top1=lambda epoch: min(0.95, 0.5 + 0.02 * epoch))
    assert ever(better) == {}  # accuracy still rises
    assert ever(run(30, val_loss=loss, val_top1=0.8, train_loss=lambda epoch: 2.0 - 1e-3 * min(epoch, 5))) == {}
    flat = run(30, val_loss=lambda epoch: 0.5 + (0.03 if epoch > 5 else 0), val_top1=0.8)
    assert ever(flat) == {}


def test_a_small_part_of_a_long_run_is_not_yet_over_fitting() -> None:
    found = run(200, val_loss=lambda epoch: 0.5 + (0.2 if epoch > 100 else 0.1 * (1 - epoch / 100)), val_top1=0.8)
    assert ever(found)["over-fitting"] == 112  # a tenth of the validations after the least


def test_waiting_for_pictures_is_told_with_both_rates() -> None:
    found = run(6, wait_share=lambda epoch: 0.9 if epoch in (1, 3) else 0.35 if epoch > 3 else 0.0)
    assert ever(found) == {"data-bound": 4}  # one epoch alone, as the first, may be the start of the processes
    said = signs(found[:5], SETTING)["data-bound"]
    assert "takes 35% of the time: 650 a second arrive, and the device could learn 1,000" in said
    assert "--num-workers 4" in said
    every = Setting(**{**vars(SETTING), "num_workers": 4})
    assert "--num-workers" not in signs(found[:5], every)["data-bound"]
    assert ever(run(6, wait_share=0.9, epoch_seconds=1.0)) == {}
    assert ever(run(6, wait_share=0.2)) == {}
    assert "far more" in signs(run(6, wait_share=1.0), SETTING)["data-bound"]


@pytest.mark.parametrize(("n", "said"), [(99, True), (100, False), (0, False)])
def test_a_small_validation_part(n: int, said: bool) -> None:
    found = signs(run(), Setting(**{**vars(SETTING), "num_validation": n}))
    assert ("validation part" in found) == said
    if said:
        assert f"{n} pictures" in found["validation part"] and "± 10 points" in found["validation part"]


def test_a_class_that_is_never_the_answer() -> None:
    found = run(20, val_never=lambda epoch: ["b", "a"] if epoch < 12 else ["a"])
    assert ever(found) == {"never predicted": 10}
    assert "this class is never the answer: 'a', in" in signs(found, SETTING)["never predicted"]
    assert "these 2 classes are never the answer: 'b', 'a'" in signs(found[:10], SETTING)["never predicted"]
    many = signs(run(20, val_never=[str(i) for i in range(9)]), SETTING)["never predicted"]
    assert "and 4 more" in many
    assert ever(run(20, val_never=lambda epoch: ["a"] if epoch % 3 else [])) == {}
    assert ever(run(20, val_never=lambda epoch: ["a"] if epoch < 9 else [])) == {}


def test_every_rule_has_its_place_in_the_documents() -> None:
    page = (Path(__file__).parents[2] / "docs/watching.md").read_text(encoding="utf-8")
    assert [name for name in RULES if f"| {name} |" not in page] == []


def test_a_run_that_learns_says_nothing_and_one_that_cannot_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    well = trained(tmp_path / "a", epochs=12, model={**MODEL, "depth": 2, "embed_dim": 32}, batch_size=32).bundle.notes
    assert well == ()
    ill = train("digits", tmp_path / "b", **{**MICRO, "epochs": 8, "optim": {"lr": 1.0, "warmup_steps": 0}})
    lines = [json.loads(line) for line in (tmp_path / "b" / "metrics.jsonl").read_text().splitlines()]
    assert all(math.isfinite(line["train_loss"]) for line in lines)
    (stuck,) = [note for note in ill.bundle.notes if "nothing is learnt: after 3 of 8 epochs" in note]
    assert "--optim.lr 0.2 or 5)" in stuck and f"warning: {stuck}" in capsys.readouterr().err
