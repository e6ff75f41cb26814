"""P4: SIGTERM, SIGINT and SIGUSR1 in any phase leave a whole state and the documented exit code."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.made import told_to_nobody, trained
from tests.train.signalled import DONE, PHASES
from tests.train.test_killed import ran
from vitrine.errors import Stopped
from vitrine.train import fit, states
from vitrine.train.asked import Asked, heard
from vitrine.train.keep import Keeper

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="signals to groups of processes: need POSIX")


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("every", "at_random"), [(4, 3), pytest.param(1, 55, marks=pytest.mark.slow)])
def test_a_signal_in_any_phase_leaves_a_whole_state_and_its_exit_code(
    tmp_path: Path, every: int, at_random: int
) -> None:
    report = ran("signalled", tmp_path, every, at_random, timeout=1700)
    print(report)
    codes = report["codes"]
    assert set(codes) == {*PHASES, "random"} or every > 3
    for phase, found in codes.items():
        allowed = {0} if phase in DONE else {0, 75} if phase == "random" else {75}
        assert set(found) <= allowed, f"{phase}: {found}"
    assert sum(map(len, codes.values())) == -(-3 * len(PHASES) // every) + at_random
    assert 75 in codes["random"]
    assert report["twice"] == [130, 143, 143]
    assert report["slowest_s"] < 15, "one step, one save and the report, on a machine that is busy"


def test_a_signal_that_finds_nothing_under_way_stops_at_once_and_handlers_are_put_back(tmp_path: Path) -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    with (
        pytest.raises(Stopped, match=r"r: stopped before it trained; the same command begins again"),
        heard(tmp_path / "r"),
    ):
        os.kill(os.getpid(), signal.SIGUSR1)
        raise AssertionError("not reached")
    with pytest.raises(KeyboardInterrupt), heard(tmp_path / "r") as asked, asked.noted():
        os.kill(os.getpid(), signal.SIGTERM)
        assert asked.stop
        with pytest.raises(Stopped):
            asked.look()
        os.kill(os.getpid(), signal.SIGTERM)
    assert {number: signal.getsignal(number) for number in before} == before


def test_an_interrupt_of_others_stays_one(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), heard(tmp_path):
        raise KeyboardInterrupt
    Asked().look()


def test_sigusr2_saves_and_the_run_goes_on(tmp_path: Path, signal_at: Callable[..., None]) -> None:
    signal_at(2, number=signal.SIGUSR2)
    seen: list[list[int]] = []
    plain = fit.end_epoch

    def look(job: fit.Job, *args: object) -> None:
        assert job.saver is not None
        job.saver.wait()
        seen.append([states.step_of(path) for path in states.found(job.out)])
        plain(job, *args)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fit, "end_epoch", look)
        assert trained(tmp_path / "r", epochs=2).bundle.finished
    assert seen == [[3], [3]]


def test_when_only_judging_is_left_nothing_else_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    straight = trained(tmp_path / "a", epochs=2)
    plain = Keeper.judge

    def judge(self: Keeper, *args: object) -> object:
        os.kill(os.getpid(), signal.SIGTERM)
        return plain(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(Keeper, "judge", judge)
    with pytest.raises(Stopped, match=r"b: stopped, all is kept"):
        trained(tmp_path / "b", epochs=2)
    monkeypatch.setattr(Keeper, "judge", plain)
    monkeypatch.setattr(fit, "train_step", None)
    assert told_to_nobody(None, tmp_path / "b").bundle.metrics == straight.bundle.metrics
    assert (tmp_path / "b" / "metrics.jsonl").read_text().count("\n") == 2
