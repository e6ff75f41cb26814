"""The errors a caller may catch. Each names the thing, its value and the remedy, and carries an exit code.

The codes are those of sysexits.h where one fits. `docs/errors.md` lists them for users.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class VitrineError(Exception):
    """Anything that went wrong and that the user can mend. `exit_code` is what the command line returns."""

    exit_code = 1


class UsageError(VitrineError):
    """An option or argument that does not make sense."""

    exit_code = 2


class BadData(VitrineError):
    """The data or a file was found but is not what it must be: damaged, empty, of one class only."""

    exit_code = 65


class NotFound(VitrineError):
    """A path, a class or a name that is not there."""

    exit_code = 66


class Unavailable(VitrineError):
    """Something this machine lacks: a device, a library, memory for the batch."""

    exit_code = 69


class Diverged(VitrineError):
    """Training left the realm of finite numbers."""

    exit_code = 70


class CannotCreate(VitrineError):
    """The output exists already or cannot be made."""

    exit_code = 73


class DiskError(VitrineError):
    """Reading or writing failed: disk full, permission, input/output error."""

    exit_code = 74


class Stopped(VitrineError):
    """The run was stopped with its state saved: the same command continues it."""

    exit_code = 75


class BadConfig(VitrineError):
    """A configuration value that cannot be used."""

    exit_code = 78


def nearest(word: str, choices: Iterable[str]) -> str:
    """` Did you mean 'x'?` for the choice closest to `word`, or an empty string where none is close."""
    found = difflib.get_close_matches(word, list(choices), n=1)
    return f" Did you mean {found[0]!r}?" if found else ""
