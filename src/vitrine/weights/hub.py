"""Models by hub id: `hf://organisation/name[@revision][/file]`, fetched by huggingface_hub into its own cache.

Nothing is sent anywhere unless such an id is named. Where the hub cannot be reached in time, what the cache has is
used, or an error says so at once.
"""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote

from vitrine.errors import NotFound, Unavailable, UsageError, VitrineError
from vitrine.hub import ANSWER_S, at_commit, client, is_id, literal, refusal, snapshot, unreachable, without_scheme
from vitrine.weights.reading import FACTS, choose

__all__ = ["fetch", "has_weights", "is_id", "meant", "parse", "pinned", "require_no_address", "unreachable"]

_ID = re.compile(
    r"(?P<repo>[\w.\-]+/[\w.\-]+)(?:@(?P<revision>[\w.\-]+(?:%2[Ff][\w.\-]+)*))?(?:/(?P<file>[\w.\-/+]+))?"
)


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
    if without_scheme(name).startswith("datasets/"):
        raise UsageError(f"{name!r}: names a data set of the hub, where a model is needed.")
    found = _ID.fullmatch(without_scheme(name))
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
    huggingface_hub = client(name)
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
        raise refusal(error, name, repo, revision) from error
    return _at(folder, file, name), (_pinned(repo, revision, folder.name),)


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
    repo, revision, _ = parse(name)
    return snapshot(repo, revision)


def _wanted(names: list[str], file: str | None, name: str) -> list[str]:
    """The files to fetch of those that the repository has."""
    if file is not None:
        if file not in names:
            raise NotFound(f"{name}: the repository has no such file. It has {', '.join(names[:12])}.")
        beside = [fact for fact in FACTS if "/" not in file and fact in names]
        return [literal(one) for one in (file, *beside)]
    top = [one for one in names if "/" not in one]
    weights = choose(top, name)
    stem = weights.partition(".")[0]
    shards = [one for one in top if weights.endswith(".index.json") and re.fullmatch(rf"{stem}-\d+-of-\d+\..*", one)]
    return [literal(one) for one in (weights, *shards, *(fact for fact in FACTS if fact in top))]


def _at(folder: Path, file: str | None, name: str) -> Path:
    place = folder / file if file else folder
    if not place.exists():
        raise NotFound(f"{name}: {file} is not in the cached copy {folder.name[:12]}, and the hub is not asked.")
    return place


def _pinned(repo: str, revision: str | None, commit: str) -> str:
    return at_commit(repo, revision, commit, f"hf://{repo}@{commit}")


def _cached(name: str, why: str) -> tuple[Path, tuple[str, ...]]:
    """What the cache has of a hub id. Raises `Unavailable` where that is nothing."""
    repo, revision, file = parse(name)
    folder = _snapshot(name)
    if folder is None:
        raise Unavailable(
            f"{name}: {why}, and the cache has no copy of it. Fetch it once with a network, or give a local file."
        )
    return _at(folder, file, name), (f"hub: {why}; the copy in the cache is used", _pinned(repo, revision, folder.name))
