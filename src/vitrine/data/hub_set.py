"""Data sets by hub id: `hf://datasets/ORGANISATION/NAME[@REVISION][:CONFIGURATION]`, their Parquet files alone.

They are fetched into huggingface_hub's cache, or streamed: then nothing is kept, and row groups are read by ranges when
they are needed. No program of a data set is ever run.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, unquote

from vitrine.data.parquet import Disk, Place, not_parquet
from vitrine.data.parted import Chosen, of_hub
from vitrine.errors import NotFound, Unavailable, UsageError, VitrineError
from vitrine.files import existing_parent
from vitrine.hub import ANSWER_S, at_commit, client, literal, refusal, snapshot, unreachable, without_scheme

T = TypeVar("T")

CONVERTED = "refs/convert/parquet"
"""The branch on which the hub keeps what it made of sets in other formats (huggingface.co/docs/dataset-viewer)."""

CARD = "README.md"
TRIES = 3
FIRST_WAIT_S = 0.5
"""Before a second try, and twice as long before a third. The client tries six times in each, for 23 seconds."""

_ID = re.compile(
    r"datasets/(?P<repo>[\w.\-]+/[\w.\-]+)(?:@(?P<revision>[\w.\-]+(?:%2[Ff][\w.\-]+)*))?(?::(?P<config>[\w.\-+ ]+))?"
)


@dataclass(frozen=True, kw_only=True)
class HubSet:
    """A set that was found: where its files lie, which they are, its id with the commit, and sentences."""

    place: Place
    chosen: Chosen
    pinned: str
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Name:
    """What a hub id of a data set names."""

    repo: str
    revision: str | None
    config: str | None

    def at(self, commit: str) -> str:
        """The id of the same set at this commit."""
        return f"hf://datasets/{self.repo}@{quote(commit, safe='')}" + (f":{self.config}" if self.config else "")


def parse(name: str) -> Name:
    """What a hub id names. Raises `UsageError` for one of another form."""
    found = _ID.fullmatch(without_scheme(name))
    if found is None or ".." in name:
        raise UsageError(
            f"{name!r}: is no hub id of a data set. Write hf://datasets/ORGANISATION/NAME, with @REVISION or "
            ":CONFIGURATION after it."
        )
    return Name(found["repo"], found["revision"] and unquote(found["revision"]), found["config"])


def same(asked: str, pinned: str) -> bool:
    """Whether `pinned` is the set `asked` at a commit that was looked up for it."""
    one, other = parse(asked), parse(pinned)
    return one.revision is None and (one.repo, one.config) == (other.repo, other.config)


def find(name: str, streaming: bool) -> HubSet:
    """The set that the id `name` names: fetched, what the cache has not yet; or, streamed, only found.

    A set larger than the free space of the disk is streamed too. Without network the cache serves. Raises `NotFound`,
    `UsageError`, and `Unavailable` without network, permission or huggingface_hub.
    """
    asked = parse(name)
    hub = client(name)
    why = unreachable()
    if why:
        if streaming:
            raise Unavailable(f"{name}: {why}, and a streamed set is not in the cache. Give it a network.")
        return _cached(hub, name, asked, why)
    try:
        return _found(hub, name, asked, streaming)
    except VitrineError:
        raise
    except Exception as error:  # its errors come from several libraries, and not all from one class
        raise refusal(error, name, asked.repo, asked.revision, "data set") from error


def _found(hub: Any, name: str, asked: Name, streaming: bool) -> HubSet:
    branch = asked.revision
    commit, sizes = _listing(hub, asked.repo, branch)
    if asked.revision is None and not any(file.endswith(".parquet") for file in sizes):
        with contextlib.suppress(hub.errors.RevisionNotFoundError):
            commit, sizes = _listing(hub, asked.repo, CONVERTED)
            branch = CONVERTED
    if not any(file.endswith(".parquet") for file in sizes):
        raise NotFound(
            f"{name}: has no Parquet files, and the hub has made none of it ({CONVERTED}). Load it by `datasets` and "
            "write it by `to_parquet` or `save_to_disk`."
        )
    # By the name of the branch, so that the cache knows what that was when nobody can be asked.
    fetch: dict[str, Any] = {"repo_type": "dataset", "revision": branch}
    card = hub.hf_hub_download(asked.repo, CARD, **fetch) if CARD in sizes else None
    chosen = of_hub(name, sizes, asked.config, _configurations(hub, card))
    total = sum(sizes[file] or 0 for file, _ in chosen.files)
    notes = (*chosen.notes, _at_commit(asked, commit))
    if not streaming and not _fits(hub, asked.repo, total):
        streaming = True
        notes = (*notes, f"hub: {total:,} bytes are more than the disk has room for, so the set is streamed")
    if streaming:
        place = Far(asked.repo, commit, tuple(sorted((file, sizes[file] or 0) for file, _ in chosen.files)))
        return HubSet(place=place, chosen=chosen, pinned=asked.at(commit), notes=notes)
    wanted = [literal(file) for file, _ in chosen.files]
    folder = hub.snapshot_download(asked.repo, allow_patterns=wanted, **fetch)
    if Path(folder).name != commit:
        raise Unavailable(f"{name}: it was changed on the hub while it was fetched. Try again.")
    return HubSet(place=Disk(Path(folder)), chosen=chosen, pinned=asked.at(commit), notes=notes)


def _listing(hub: Any, repo: str, revision: str | None) -> tuple[str, dict[str, int | None]]:
    """The commit of a revision, and the bytes of each of its files."""
    there = hub.HfApi().dataset_info(repo, revision=revision, timeout=ANSWER_S, files_metadata=True)
    return there.sha, {one.rfilename: one.size for one in there.siblings or ()}


def _configurations(hub: Any, card: str | None) -> Any:
    """What the card of a set says of its configurations; nothing where it says nothing that can be read."""
    if card is None:
        return None
    try:
        return (hub.metadata_load(card) or {}).get("configs")
    except Exception:  # whatever a card may hold that is not YAML
        return None


def _fits(hub: Any, repo: str, total: int) -> bool:
    """Whether the disk of the cache has room for so many bytes, beside what it has of the set already."""
    cache = Path(hub.constants.HF_HUB_CACHE)
    blobs = cache / f"datasets--{repo.replace('/', '--')}" / "blobs"
    there = sum(one.stat().st_size for one in blobs.iterdir()) if blobs.is_dir() else 0
    return total - there <= shutil.disk_usage(cache if cache.is_dir() else existing_parent(cache)).free


def _at_commit(asked: Name, commit: str) -> str:
    return at_commit(asked.repo, asked.revision, commit, asked.at(commit))


def _cached(hub: Any, name: str, asked: Name, why: str) -> HubSet:
    """What the cache has of a set, where that is all of it."""
    for revision in [asked.revision] if asked.revision else [None, CONVERTED]:
        folder = snapshot(asked.repo, revision, "dataset")
        if folder is None:
            continue
        files = [one.relative_to(folder).as_posix() for one in folder.rglob("*.parquet") if one.is_file()]
        if files:
            card = folder / CARD
            chosen = of_hub(name, files, asked.config, _configurations(hub, str(card) if card.is_file() else None))
            notes = (f"hub: {why}; the copy in the cache is used", _at_commit(asked, folder.name))
            return HubSet(
                place=Disk(folder), chosen=chosen, pinned=asked.at(folder.name), notes=(*chosen.notes, *notes)
            )
    raise Unavailable(
        f"{name}: {why}, and the cache has no copy of it. Fetch it once with a network, or give a local folder."
    )


@dataclass(frozen=True)
class Far:
    """Files of a hub's data set at a commit, with their bytes, read by ranges where they are."""

    repo: str
    commit: str
    sizes: tuple[tuple[str, int], ...]
    far: bool = field(default=True)

    def reading(self, file: str, use: Callable[[Any], T]) -> T:
        """What `use` makes of the file, opened for ranges. A network that fails is tried `TRIES` times.

        Raises `BadData` where the file is no sound Parquet, `Unavailable` where the hub does not give it.
        """
        from huggingface_hub import HfFileSystem, constants
        from huggingface_hub.errors import HfHubHTTPError

        wait = FIRST_WAIT_S
        for left in reversed(range(TRIES)):
            met: list[Exception] = []
            try:
                path = f"datasets/{self.repo}@{quote(self.commit, safe='')}/{file}"
                with HfFileSystem(endpoint=constants.ENDPOINT).open(
                    path, "rb", cache_type="none", size=dict(self.sizes)[file]
                ) as opened:
                    return use(_Watched(opened, met))
            except VitrineError:
                if not met:
                    raise
            except Exception as error:
                if not met and not isinstance(error, HfHubHTTPError | ConnectionError):
                    raise not_parquet(file, error) from error
                met.append(error)
            if not left or not _may_pass(met[0]):
                told = refusal(met[0], file, self.repo, self.commit, "data set")
                # It was there when the set was opened: what fails now is no picture, but the hub.
                raise (told if isinstance(told, Unavailable) else Unavailable(str(told))) from met[0]
            time.sleep(wait)
            wait *= 2
        raise AssertionError("unreachable")


def _may_pass(error: Exception) -> bool:
    """Whether another try may do: not where the hub says that the file is not there or not for all."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status is None or status == 429 or status >= 500


class _Watched:
    """A file for pyarrow that remembers the error that a range met, which pyarrow tells as one of its own."""

    def __init__(self, opened: Any, met: list[Exception]) -> None:
        self._opened, self._met = opened, met

    def __getattr__(self, name: str) -> Any:
        return getattr(self._opened, name)

    def read(self, *args: Any) -> Any:
        """As the file reads."""
        try:
            return self._opened.read(*args)
        except Exception as error:
            self._met.append(error)
            raise
