"""One process a run."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.made import trained
from vitrine.errors import CannotCreate
from vitrine.train.claim import LOCK_FILE, claimed

pytestmark = pytest.mark.skipif(os.name != "posix", reason="locks of files: need POSIX")

HOLD = """
import sys
from pathlib import Path
from vitrine.train.claim import claimed
with claimed(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that trains in `r`, as far as one can see from outside."""
    words = [sys.executable, "-c", HOLD, str(tmp_path / "r")]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as started:
        assert started.stdout is not None and started.stdout.readline() == "held\n"
        yield started
        started.kill()


def test_a_second_process_is_refused_while_the_first_runs(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    with pytest.raises(CannotCreate, match=r"r: another process is training here\. .*another --out") as caught:
        trained(tmp_path / "r", epochs=1)
    assert caught.value.exit_code == 73
    assert holder.poll() is None
    assert [entry.name for entry in (tmp_path / "r").iterdir()] == [LOCK_FILE]


def test_the_lock_of_a_dead_process_is_none(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    holder.kill()
    holder.wait(timeout=30)
    assert (tmp_path / "r" / LOCK_FILE).exists()
    assert trained(tmp_path / "r", epochs=1).bundle.finished
    assert not (tmp_path / "r" / LOCK_FILE).exists()


def test_a_claim_ends_with_its_block_however_it_ends(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), claimed(tmp_path / "r"):
        _ = 1 / 0
    with claimed(tmp_path / "r"), claimed(tmp_path / "s"):
        assert (tmp_path / "r").is_dir()
    assert list((tmp_path / "r").iterdir()) == []
