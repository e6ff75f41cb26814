"""Models by hub id: `hf://organisation/name[@revision][/file]`, fetched by huggingface_hub into its own cache.

Its conventions hold: HF_HOME and HF_HUB_CACHE say where files are kept, HF_TOKEN who asks, HF_ENDPOINT where, and
HF_HUB_OFFLINE that nobody is asked. Nothing is sent anywhere unless such an id is named. Where the hub cannot be
reached within `PATIENCE_S`, what the cache has is used, or an error says so at once.
"""

from __future__ import annotations

import os
import re
import socket
import sys
import threading
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

from vitrine.errors import NotFound, Unavailable, UsageError, VitrineError
from vitrine.weights.reading import FACTS, choose

SCHEMES = ("hf://", "hf-hub:")
PATIENCE_S = 0.9
"""Seconds to wait for a connection to the hub; HF_HUB_ETAG_TIMEOUT, its own knob for slow networks, goes before."""

ANSWER_S = 10.0
"""Seconds to wait for the hub's answer once it is reached."""

_ID = re.compile(
    r"(?P<repo>[\w.\-]+/[\w.\-]+)(?:@(?P<revision>[\w.\-]+(?:%2[Ff][\w.\-]+)*))?(?:/(?P<file>[\w.\-/+]+))?"
)


def is_id(path: str | Path) -> bool:
    """Whether `path` names a model of the hub, not of this disk."""
    return isinstance(path, str) and path.startswith(SCHEMES)


def require_no_address(path: str) -> None:
    """Raise `NotFound` where `path`, which is not there, is an address of the web."""
    if re.match(r"https?://", path):
        raise NotFound(f"{path}: addresses of the web are not fetched. Download the file first, or name a model of the "
                       "hub: hf://ORGANISATION/NAME.")  # fmt: skip


def meant(path: Path) -> str:
    """A hint for a `path` that is not there and may be a hub id without its beginning; else an empty string."""
    name = path.as_posix()
    alike = re.fullmatch(r"[\w\-][\w.\-]*/[\w\-][\w.\-]*", name) and not path.parent.exists()
    return f" If a model of the hub is meant: hf://{name}." if alike else ""


def parse(name: str) -> tuple[str, str | None, str | None]:
    """Repository, revision and file of a hub id, None for those not named. Raises `UsageError`."""
    found = _ID.fullmatch(name.removeprefix("hf-hub:").removeprefix("hf://"))
    if found is None or ".." in name:
        raise UsageError(f"{name!r}: is no hub id. Write hf://ORGANISATION/NAME, with @REVISION or /FILE after it.")
    return found["repo"], found["revision"] and unquote(found["revision"]), found["file"]


def fetch(name: str) -> tuple[Path, tuple[str, ...]]:
    """Where the files of the hub id `name` are on this disk, and sentences on which revision they are.

    Only the weights (safetensors before any other) and the small JSON beside them are fetched; what the cache has
    is not fetched again, and a broken transfer goes on where it broke. Raises `NotFound` for a model, revision or
    file that is not there, `Unavailable` without network, permission or huggingface_hub, `UsageError`.
    """
    repo, revision, file = parse(name)
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
    why = unreachable()
    if why:
        return _cached(name, why)
    try:
        there = huggingface_hub.HfApi().model_info(repo, revision=revision, timeout=ANSWER_S)
        names = sorted(sibling.rfilename for sibling in there.siblings or ())
        folder = Path(
            huggingface_hub.snapshot_download(repo, revision=revision, allow_patterns=_wanted(names, file, name))
        )
    except VitrineError:
        raise
    except Exception as error:  # its errors come from several libraries, and not all from one class
        raise _refusal(error, name, repo, revision) from error
    return _at(folder, file, name), (_pinned(repo, revision, folder.name),)


def unreachable() -> str:
    """Why the hub is not asked: it is not to be, or no connection comes about in time; empty where it can be asked."""
    try:
        from huggingface_hub import constants
    except ImportError:
        return "huggingface_hub is not installed"
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    return "" if _reachable(constants.ENDPOINT) else f"{constants.ENDPOINT} cannot be reached"


def has_weights(name: str) -> bool:
    """Whether the cache has weights of the hub id `name`; nobody is asked."""
    folder = _snapshot(name)
    return folder is not None and any(one.suffix == ".safetensors" and one.is_file() for one in folder.iterdir())


def pinned(name: str) -> str:
    """The hub id `name` with the commit that the cache has, so that the same weights are found for ever; as it is where
    the cache has none. Nobody is asked."""
    folder = _snapshot(name)
    return name if folder is None else f"hf://{parse(name)[0]}@{folder.name}"


def _snapshot(name: str) -> Path | None:
    """The folder of the cache for a hub id, named for its commit; None where there is none. Nobody is asked."""
    try:
        import huggingface_hub

        repo, revision, _ = parse(name)
        # No pattern matches: which files are needed cannot be asked, so that reading the folder must tell.
        return Path(
            huggingface_hub.snapshot_download(repo, revision=revision, local_files_only=True, allow_patterns=[])
        )
    except (ImportError, OSError, ValueError):
        return None


def _wanted(names: list[str], file: str | None, name: str) -> list[str]:
    """The files to fetch of those that the repository has."""
    if file is not None:
        if file not in names:
            raise NotFound(f"{name}: the repository has no such file. It has {', '.join(names[:12])}.")
        beside = [fact for fact in FACTS if "/" not in file and fact in names]
        return [_literal(one) for one in (file, *beside)]
    top = [one for one in names if "/" not in one]
    weights = choose(top, name)
    stem = weights.partition(".")[0]
    shards = [one for one in top if weights.endswith(".index.json") and re.fullmatch(rf"{stem}-\d+-of-\d+\..*", one)]
    return [_literal(one) for one in (weights, *shards, *(fact for fact in FACTS if fact in top))]


def _literal(name: str) -> str:
    """A pattern that matches this file name alone."""
    return re.sub(r"([*?\[])", r"[\1]", name)


def _at(folder: Path, file: str | None, name: str) -> Path:
    place = folder / file if file else folder
    if not place.exists():
        raise NotFound(f"{name}: {file} is not in the cached copy {folder.name[:12]}, and the hub is not asked.")
    return place


def _pinned(repo: str, revision: str | None, commit: str) -> str:
    asked = f" ({revision})" if revision and revision != commit else ""
    return f"hub: {repo} at revision {commit}{asked}; hf://{repo}@{commit} names it for ever"


def _cached(name: str, why: str) -> tuple[Path, tuple[str, ...]]:
    """What the cache has of a hub id. Raises `Unavailable` where that is nothing."""
    repo, revision, file = parse(name)
    folder = _snapshot(name)
    if folder is None:
        raise Unavailable(
            f"{name}: {why}, and the cache has no copy of it. Fetch it once with a network, or give a local file."
        )
    return _at(folder, file, name), (f"hub: {why}; the copy in the cache is used", _pinned(repo, revision, folder.name))


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


def _refusal(error: Exception, name: str, repo: str, revision: str | None) -> VitrineError:
    """What went wrong in the words of this project."""
    from huggingface_hub import errors

    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.GatedRepoError) or status == 403:
        return Unavailable(f"{name}: its owner lets only those in who accepted the terms on its hub page. "
                           "Accept them there, and set HF_TOKEN to a token of yours.")  # fmt: skip
    if isinstance(error, errors.RevisionNotFoundError):
        return NotFound(f"{name}: {repo} has no revision {revision}. Look at its branches and commits on its hub page.")
    if isinstance(error, errors.RepositoryNotFoundError) or status in (401, 404):
        return NotFound(f"{name}: the hub has no such model, or it is private. Check the spelling; for a private one "
                        "set HF_TOKEN.")  # fmt: skip
    if isinstance(error, errors.HFValidationError):
        return UsageError(f"{name!r}: is no hub id ({str(error).splitlines()[0]}).")
    told = " ".join(str(error).split())[:200] or type(error).__name__
    return Unavailable(f"{name}: the hub did not give it ({told}). Try again later.")
