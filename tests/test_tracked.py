"""What holds for every file that git keeps: text is sound, and no package registry is named."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# In pieces, so that this file does not hold them.
HOSTS = tuple(
    ".".join(pieces)
    for pieces in (
        ("pypi", "org"), ("pythonhosted", "org"), ("download", "pytorch", "org"), ("anaconda", "org"),
        ("npmjs", "org"), ("crates", "io"), ("rubygems", "org"), ("proxy", "golang", "org"), ("debian", "org"),
    )
)  # fmt: skip


def tracked() -> list[Path]:
    """Every file of the checkout that git keeps, or would keep once added."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout, so there is no list of files")
    paths = (ROOT / name for name in found.stdout.split("\0") if name)
    return [path for path in paths if path.is_file()]


def texts() -> Iterator[tuple[Path, bytes]]:
    """Path and content of each tracked file without a NUL byte, which is what git takes for text."""
    for path in tracked():
        content = path.read_bytes()
        if b"\0" not in content:
            yield path, content


def test_text_is_utf8_and_ends_with_a_newline() -> None:
    wrong = []
    for path, content in texts():
        try:
            content.decode("utf-8")
        except UnicodeDecodeError:
            wrong.append(f"{path}: is not UTF-8")
        if content and not content.endswith(b"\n"):
            wrong.append(f"{path}: does not end with a newline")
        if b"\r\n" in content:
            wrong.append(f"{path}: has line ends of Windows")
    assert wrong == []


def test_no_package_registry_is_named() -> None:
    found = [(path.name, host) for path, content in texts() for host in HOSTS if host.encode() in content.lower()]
    assert found == []
