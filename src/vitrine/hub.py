"""The hub of Hugging Face: what its ids begin with, whether it can be asked, and what its refusals mean.

Models (`weights.hub`) and data sets (`data.hub_set`) are fetched by huggingface_hub into its own cache, and its
conventions hold: HF_HOME and HF_HUB_CACHE say where files are kept, HF_TOKEN who asks, HF_ENDPOINT where, and
HF_HUB_OFFLINE that nobody is asked. Nothing is sent anywhere unless an id is named.
"""

from __future__ import annotations

import os
import re
import socket
import sys
import threading
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from vitrine.errors import NotFound, Unavailable, UsageError, VitrineError

SCHEMES = ("hf://", "hf-hub:")
PATIENCE_S = 0.9
"""Seconds to wait for a connection to the hub; HF_HUB_ETAG_TIMEOUT, its own knob for slow networks, goes before."""

ANSWER_S = 10.0
"""Seconds to wait for the hub's answer once it is reached."""


def is_id(path: str | Path) -> bool:
    """Whether `path` names something of the hub, not of this disk."""
    return isinstance(path, str) and path.startswith(SCHEMES)


def without_scheme(name: str) -> str:
    """A hub id without its beginning."""
    return name.removeprefix("hf-hub:").removeprefix("hf://")


def client(name: str) -> Any:
    """The module huggingface_hub, silent where nobody looks. Raises `Unavailable` where it is not installed."""
    try:
        import huggingface_hub  # half a second, so only when an id is named
        from huggingface_hub import utils
    except ImportError as error:
        raise Unavailable(
            f"{name}: needs the package huggingface_hub. Install it: pip install huggingface-hub"
        ) from error
    if not sys.stderr.isatty():
        silence: Any = utils
        silence.disable_progress_bars()
    return huggingface_hub


def unreachable() -> str:
    """Why the hub is not asked: it is not to be, or no connection comes about in time; empty where it can be asked."""
    try:
        from huggingface_hub import constants
    except ImportError:
        return "huggingface_hub is not installed"
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    return "" if _reachable(constants.ENDPOINT) else f"{constants.ENDPOINT} cannot be reached"


def literal(name: str) -> str:
    """A pattern that matches this file name alone."""
    return re.sub(r"([*?\[])", r"[\1]", name)


def snapshot(repo: str, revision: str | None, kind: str = "model") -> Path | None:
    """The folder of the cache for a repository of that kind (`model`, `dataset`), named for its commit; None where it
    has none. Nobody is asked."""
    try:
        import huggingface_hub

        # No pattern matches: which files are needed cannot be asked, so that reading the folder must tell.
        found = huggingface_hub.snapshot_download(
            repo, repo_type=kind, revision=revision, local_files_only=True, allow_patterns=[]
        )
    except (ImportError, OSError, ValueError):
        return None
    return Path(found)


def at_commit(repo: str, revision: str | None, commit: str, pinned: str) -> str:
    """A sentence: which commit was taken, the `revision` asked for, and the id `pinned` that names it for ever."""
    asked = f" ({revision})" if revision and revision != commit else ""
    return f"hub: {repo} at revision {commit}{asked}; {pinned} names it for ever"


def _reachable(endpoint: str) -> bool:
    """Whether a connection to the hub, or to the proxy before it, comes about in time.

    A thread asks, as nothing else bounds how long the look-up of a name may take.
    """
    parts = urlsplit(endpoint)
    proxies = getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if proxy and parts.hostname and not proxy_bypass(parts.hostname):
        parts = urlsplit(proxy if "//" in proxy else f"//{proxy}")
    where = (parts.hostname or "", parts.port or (80 if parts.scheme == "http" else 443))
    patience = float(os.environ.get("HF_HUB_ETAG_TIMEOUT") or PATIENCE_S)
    met = threading.Event()

    def knock() -> None:
        try:
            socket.create_connection(where, timeout=patience).close()
        except OSError:
            return
        met.set()

    thread = threading.Thread(target=knock, daemon=True)
    thread.start()
    thread.join(patience)
    return met.is_set()


def refusal(error: Exception, name: str, repo: str, revision: str | None, kind: str = "model") -> VitrineError:
    """What went wrong in the words of this project; `kind` is what was asked for, a model or a data set."""
    from huggingface_hub import errors

    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.GatedRepoError) or status == 403:
        return Unavailable(f"{name}: its owner lets only those in who accepted the terms on its hub page. "
                           "Accept them there, and set HF_TOKEN to a token of yours.")  # fmt: skip
    if isinstance(error, errors.RevisionNotFoundError):
        return NotFound(f"{name}: {repo} has no revision {revision}. Look at its branches and commits on its hub page.")
    if isinstance(error, errors.RepositoryNotFoundError) or status in (401, 404):
        return NotFound(f"{name}: the hub has no such {kind}, or it is private. Check the spelling; for a private one "
                        "set HF_TOKEN.")  # fmt: skip
    if isinstance(error, errors.HFValidationError):
        return UsageError(f"{name!r}: is no hub id ({str(error).splitlines()[0]}).")
    told = " ".join(str(error).split())[:200] or type(error).__name__
    return Unavailable(f"{name}: the hub did not give it ({told}). Try again later.")
