from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from tests.train.started import ended, started
from vitrine.errors import BadData, Stopped, Unavailable, UsageError
from vitrine.machine import guard, ranks
from vitrine.machine.guard import Guard
from vitrine.machine.ranks import Place, asked, first_node

SLURM = {
    "SLURM_PROCID": "9", "SLURM_NTASKS": "16", "SLURM_LOCALID": "1", "SLURM_JOB_ID": "40123",
    "SLURM_STEP_NODELIST": "gpu[03-04]",
}  # fmt: skip
TORCHRUN = {
    "RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "MASTER_ADDR": "node0", "MASTER_PORT": "1234",
}  # fmt: skip


@pytest.mark.parametrize(
    ("words", "place"),
    [
        ({}, Place()),
        (TORCHRUN, Place(rank=3, world=8, local=1, address="node0", port=1234)),
        (SLURM, Place(rank=9, world=16, local=1, address="gpu03", port=20_123)),
        ({**SLURM, "MASTER_ADDR": "x", "MASTER_PORT": "7"}, Place(rank=9, world=16, local=1, address="x", port=7)),
        ({**SLURM, "SLURM_STEP_NUM_TASKS": "10"}, Place(rank=9, world=10, local=1, address="gpu03", port=20_123)),
        ({**SLURM, **TORCHRUN}, Place(rank=3, world=8, local=1, address="node0", port=1234)),
        ({"RANK": "0", "WORLD_SIZE": "1"}, Place()),
        ({"SLURM_NTASKS": "4"}, Place()),
    ],
)
def test_the_place_is_what_the_launcher_says(words: dict[str, str], place: Place) -> None:
    assert asked(words) == place


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({**TORCHRUN, "RANK": "x"}, "RANK = 'x': must be a number"),
        ({**TORCHRUN, "RANK": "8"}, "rank 8 of 8: there is no such rank"),
        ({**TORCHRUN, "MASTER_PORT": "http"}, "MASTER_PORT = 'http': must be a number"),
        ({**SLURM, "SLURM_LOCALID": "-1"}, "SLURM_LOCALID = '-1': must be a number"),
    ],
)
def test_words_that_make_no_sense_are_refused(words: dict[str, str], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        asked(words)


@pytest.mark.parametrize(
    ("nodes", "node"),
    [("gpu[03-05,9],x1", "gpu03"), ("gpu7", "gpu7"), ("a1,b2", "a1"), ("n-[1,3]", "n-1"), ("", "")],
)
def test_the_first_machine_of_a_list_of_slurms(nodes: str, node: str) -> None:
    assert first_node(nodes) == node


def test_alone_everything_is_as_in_one_process() -> None:
    with ranks.joined("cpu") as place:
        assert place == Place() and ranks.first()
        assert ranks.each({"a": 1}) == [{"a": 1}]
        assert ranks.from_first(lambda: 5, pack=str, unpack=int) == 5
        assert ranks.agreed(True, False, 2.5) == (True, False, 2.5)
        assert torch.equal(ranks.summed(torch.ones(2)), torch.ones(2))
        assert np.array_equal(ranks.arrays(np.arange(3))[0], np.arange(3))
        ranks.require_same("x", 1)
        ranks.beat()
        ranks.wait()
    assert not dist.is_initialized()


@pytest.fixture
def pair(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Guard]]:
    """Two guards that meet in one store, and look often."""
    monkeypatch.setattr(guard, "LOOK_S", 0.02)
    monkeypatch.setattr(guard, "GRACE_S", 0.1)
    monkeypatch.setattr(guard, "SILENT_S", 0.2)
    store = dist.HashStore()
    both = [Guard(store, rank, 2, 1.0) for rank in range(2)]
    yield both
    for one in both:
        one.stop()


def test_the_first_error_is_told_and_the_others_end_with_its_code(pair: list[Guard]) -> None:
    pair[0].tell(BadData("broken"))  # raises nothing: rank 0 speaks
    with pytest.raises(SystemExit) as caught:
        pair[1].tell(BadData("broken"))
    assert caught.value.code == BadData.exit_code
    with pytest.raises(SystemExit) as caught:
        pair[1].tell(RuntimeError("[gloo] Connection closed by peer"))
    assert caught.value.code == BadData.exit_code


def test_an_error_of_another_rank_than_the_first_is_its_own(pair: list[Guard]) -> None:
    pair[1].tell(Stopped("stopped"))
    with pytest.raises(SystemExit) as caught:
        pair[0].tell(KeyboardInterrupt(15))
    assert caught.value.code == Stopped.exit_code


def test_a_rank_that_is_gone_is_named_where_a_connection_broke(pair: list[Guard]) -> None:
    pair[0].start()
    pair[1].start()
    time.sleep(0.2)
    pair[1].stop()
    with pytest.raises(Unavailable, match="rank 1 is gone: the run ends here too"):
        pair[0].tell(RuntimeError("Connection closed by peer"))


@pytest.mark.parametrize("how", ["hangs", "stopped"])
def test_a_rank_that_gives_no_sign_of_life_is_named(
    pair: list[Guard], monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    codes: list[Any] = []
    monkeypatch.setattr(Guard, "_end", lambda self, code, said: (codes.append((code, said)), self.stop()))
    pair[0].start()
    pair[1].start()
    for _ in range(3):
        pair[0].beat()
    pair[1].beat()
    if how == "stopped":
        pair[1].stop()
    end = time.monotonic() + 5
    while not codes and time.monotonic() < end:
        time.sleep(0.05)
    code, said = codes[0]
    assert code == 69
    assert said.startswith("rank 1 gave no sign of life for 1 seconds (--parallel.timeout-s): the run ends.")


CHILD = """
import json, os, signal, sys, time
import numpy as np, torch
from vitrine.__main__ import _code_of
from vitrine.errors import VitrineError
from vitrine.machine import ranks, guard
guard.GRACE_S = 1.0
case = sys.argv[1]
try:
    with ranks.joined("cpu", 3.0) as place:
        r = place.rank
        ranks.beat()
        if case == "words":
            assert place.world == 2 and len(place.hosts) == 2 and place.locals_ == 2
            assert ranks.each([r, "x"]) == [[0, "x"], [1, "x"]]
            assert ranks.from_first(lambda: {"r": r}) == {"r": 0}
            assert ranks.agreed(r == 1, r == 1, 5.0 + r) == (True, False, 5.0)
            assert ranks.summed(torch.tensor([1.0 + r])).item() == 3
            found = ranks.arrays(np.arange(4 * r, dtype=np.float64).reshape(2 * r, 2))
            assert [f.shape for f in found] == [(0, 2), (2, 2)] and found[1][1, 1] == 3
            ranks.require_same("data", 7)
            print("fine")
        elif case == "differ":
            ranks.require_same("data", r)
        elif case == "error":
            if r == 1:
                raise VitrineError("the disk of this rank is bad")
            ranks.wait()
        elif case == "hangs":
            while True:
                if r == 1 and ranks._here[-1][1]._met > 3:
                    time.sleep(600)
                ranks.beat()
                ranks.wait()
        elif case == "killed":
            ranks.wait()
            if r == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            ranks.wait()
except VitrineError as error:
    print(f"vitrine: {error}", file=sys.stderr)
    sys.exit(error.exit_code)
"""


@pytest.mark.parametrize(
    ("case", "codes", "said"),
    [
        ("words", (0, 0), ""),
        ("differ", (65, 65), "data: rank 1 on {host} has another than rank 0 on {host}. Give every machine the same"),
        ("error", (1, 1), "vitrine: rank 1 on {host}: the disk of this rank is bad"),
        ("hangs", (69, 69), "rank 1 on {host} gave no sign of life for 3 seconds (--parallel.timeout-s): the run ends"),
        ("killed", (69, -9), "rank 1 on {host} is gone: the run ends here too."),
    ],
)
def test_two_processes_end_together_and_one_of_them_says_why(case: str, codes: tuple[int, int], said: str) -> None:
    found = ended(started(2, ["-c", CHILD, case]), timeout=60)
    assert tuple(code for code, _ in found) == codes, found
    told = "".join(error for _, error in found)
    assert said.format(host=socket.gethostname()) in told
    assert told.count("vitrine: ") == (1 if said else 0), told


def test_ranks_that_do_not_come_are_told_of() -> None:
    first, second = started(2, ["-c", CHILD, "words"])
    second.kill()
    second.communicate()
    ((code, error),) = ended([first], timeout=60)
    assert code == 69 and "rank 0 of 2 did not meet the others at 127.0.0.1:" in error
