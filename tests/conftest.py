"""One tiny trained run that the tests of several rooms look at."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.made import MARKS, marks, told_to_nobody, trained
from tests.weights.stand_in_hub import Hub, point_to, serving

# No test asks the hub or looks into the cache of whoever runs it, unless it says so.
os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_CACHE=os.devnull)

# A shell that starts the tests in the background has them ignore Ctrl-C, and their children too.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run over two epochs of the digits. Read it, do not change it."""
    out = tmp_path_factory.mktemp("runs") / "digits"
    trained(out, epochs=2)
    return out


@pytest.fixture(scope="session")
def marked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run on pictures of several classes, with the data in `data` beside it. Read it only."""
    folder = tmp_path_factory.mktemp("marked")
    told_to_nobody(str(marks(folder / "data")), folder / "run", **MARKS)
    return folder / "run"


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A stand-in that huggingface_hub takes for the hub, with an empty cache."""
    with serving(Hub()) as made:
        point_to(made.url, tmp_path / "cache", monkeypatch)
        yield made
        from huggingface_hub import close_session

        close_session()  # its connections would outlive the server
