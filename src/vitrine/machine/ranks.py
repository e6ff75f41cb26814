"""The processes of one run: who this one is among them, what they tell each other, and how they end together.

torchrun, accelerate and srun start the same command several times; what they set in the environment says which of
the processes ("ranks") this one is. Words travel as JSON in tensors. Alone every function here
gives what one process would do.
"""

from __future__ import annotations

import contextlib
import datetime
import itertools
import json
import os
import re
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from vitrine.errors import BadData, Unavailable, UsageError
from vitrine.machine.device import num_cores
from vitrine.machine.guard import Guard

T = TypeVar("T")

LIMIT_S = 600.0
"""Seconds without a sign of life after which a rank counts as hung."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """This process among those of the run: its number of `world`, and among the `locals_` of its machine.

    `hosts` are the names of the machines by rank; `address` and `port` are where rank 0 is met.
    """

    rank: int = 0
    world: int = 1
    local: int = 0
    locals_: int = 1
    hosts: tuple[str, ...] = ()
    address: str = "127.0.0.1"
    port: int = 29500

    def name(self, rank: int) -> str:
        """A rank as it is told to people."""
        return f"rank {rank}" + (f" on {self.hosts[rank]}" if rank < len(self.hosts) else "")


_here: list[tuple[Place, Guard]] = []
"""The place of this process while it is `joined` with others."""

_times = itertools.count()
"""How often this process has joined others: each time they meet under other names."""


def asked(environ: Mapping[str, str] | None = None) -> Place:
    """The place that the launcher gave this process: torchrun's and accelerate's words, else those of srun.

    Raises `UsageError` for words that are no numbers, or do not go together.
    """
    words = os.environ if environ is None else environ
    if words.get("WORLD_SIZE") and words.get("RANK"):
        found = _numbers(words, rank="RANK", world="WORLD_SIZE", local="LOCAL_RANK")
        address, port = words.get("MASTER_ADDR") or "127.0.0.1", words.get("MASTER_PORT") or "29500"
    elif words.get("SLURM_PROCID") and (words.get("SLURM_STEP_NUM_TASKS") or words.get("SLURM_NTASKS")):
        size = "SLURM_STEP_NUM_TASKS" if words.get("SLURM_STEP_NUM_TASKS") else "SLURM_NTASKS"
        found = _numbers(words, rank="SLURM_PROCID", world=size, local="SLURM_LOCALID")
        nodes = words.get("SLURM_STEP_NODELIST") or words.get("SLURM_JOB_NODELIST") or ""
        address = words.get("MASTER_ADDR") or first_node(nodes) or "127.0.0.1"
        job = words.get("SLURM_JOB_ID", "0")
        port = words.get("MASTER_PORT") or str(20_000 + int(job if job.isdigit() else 0) % 20_000)
    else:
        return Place()
    if not 0 <= found["rank"] < found["world"]:
        raise UsageError(f"rank {found['rank']} of {found['world']}: there is no such rank. Start by torchrun or srun.")
    if not port.isdigit():
        raise UsageError(f"MASTER_PORT = {port!r}: must be a number.")
    return Place(rank=found["rank"], world=found["world"], local=found["local"], address=address, port=int(port))


def _numbers(words: Mapping[str, str], **names: str) -> dict[str, int]:
    """The numbers under these names; one that is missing is 0."""
    found = {}
    for what, name in names.items():
        text = words.get(name) or "0"
        if not text.isdigit():
            raise UsageError(f"{name} = {text!r}: must be a number, as torchrun or srun set it.")
        found[what] = int(text)
    return found


def first_node(nodes: str) -> str:
    """The first machine of a list as Slurm writes it: `gpu[03-05,9],x1` begins with gpu03."""
    head = re.match(r"([^,\[]*)(?:\[(\d+))?", nodes.strip())
    return f"{head[1]}{head[2] or ''}" if head else ""


def here() -> Place:
    """The place of this process: one of one unless it is joined with others."""
    return _here[-1][0] if _here else Place()


def first() -> bool:
    """Whether this process speaks and writes for all."""
    return here().rank == 0


def beat() -> None:
    """A sign of life: without one for a while this rank counts as hung."""
    if _here:
        _here[-1][1].beat()


@contextlib.contextmanager
def joined(kind: str, limit_s: float = LIMIT_S) -> Iterator[Place]:
    """This process joined with all others of the run until the block ends; alone where there are none.

    `kind` is the type of the device, of which each rank of a machine gets its own. An error of one rank ends all, one
    of which says why; where a rank gives no sign of life for `limit_s` seconds, all end. Raises `Unavailable` where
    the others do not come, `UsageError` for devices on which ranks do not work together.
    """
    place = asked()
    if place.world == 1 or _here:
        yield here()
        return
    index = _own_device(kind, place)
    limit = datetime.timedelta(seconds=limit_s)
    os.environ.update(RANK=str(place.rank), WORLD_SIZE=str(place.world), LOCAL_RANK=str(place.local))
    os.environ.update(MASTER_ADDR=place.address, MASTER_PORT=str(place.port))
    try:
        store, _, _ = next(iter(rendezvous("env://", place.rank, place.world, timeout=limit)))
        # torchrun's store outlives ranks that it begins anew: what the ones before wrote is not for these.
        life = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        store = PrefixStore(f"vitrine {life} {next(_times)}", store)
        dist.init_process_group(
            "gloo" if kind == "cpu" else "cpu:gloo,cuda:nccl", store=PrefixStore("group", store),
            rank=place.rank, world_size=place.world, timeout=limit + datetime.timedelta(seconds=30),
            device_id=None if index is None else torch.device("cuda", index),
        )  # fmt: skip
    except (RuntimeError, ValueError) as error:  # torch's errors of meeting are of either kind
        raise Unavailable(
            f"rank {place.rank} of {place.world} did not meet the others at {place.address}:{place.port} within "
            f"{limit_s:.0f} seconds ({' '.join(str(error).split())[:200]}). Start all of them by torchrun or srun."
        ) from error
    with _guarded(place, store, limit_s) as own:
        yield own


@contextlib.contextmanager
def _guarded(place: Place, store: Any, limit_s: float) -> Iterator[Place]:
    """The block under a guard, with the place as it is once the names of all machines are known."""
    guard = Guard(PrefixStore("guard", store), place.rank, place.world, limit_s)
    _here.append((place, guard))
    try:
        hosts = tuple(str(host) for host in each(socket.gethostname()))
        own = replace(place, hosts=hosts, locals_=hosts.count(hosts[place.rank]))
        guard.names = [own.name(rank) for rank in range(own.world)]
        _here[-1] = own, guard
        # Ranks of a machine share its cores.
        torch.set_num_threads(max(1, min(torch.get_num_threads(), num_cores() // own.locals_)))
        guard.start()
        yield own
        wait()
        guard.stop()
        guard.leave()
    except BaseException as error:
        guard.tell(error)
        raise
    finally:
        _here.pop()
        guard.stop()
        with contextlib.suppress(Exception):
            dist.destroy_process_group()


def _own_device(kind: str, place: Place) -> int | None:
    """The GPU of this rank, made the current one; None on a CPU."""
    if kind == "cpu":
        return None
    if kind != "cuda":
        raise UsageError(f"--device {kind}: several ranks work on cuda or on cpu. Start one process.")
    count = torch.cuda.device_count()
    if 1 < count <= place.local:
        raise UsageError(
            f"rank {place.rank} is number {place.local} on a machine of {count} GPUs. Start {count} there."
        )
    index = place.local % count
    torch.cuda.set_device(index)
    return index


def wait() -> None:
    """Until all ranks are here."""
    if _here:
        each(None)


def each(value: Any) -> list[Any]:
    """What every rank gives, anything JSON holds, by rank."""
    if not _here:
        return [value]
    return [json.loads(found.tobytes()) for found in _bytes(np.frombuffer(json.dumps(value).encode(), np.uint8))]


def from_first(
    make: Callable[[], T], pack: Callable[[T], Any] = lambda x: x, unpack: Callable[[Any], T] = lambda x: x
) -> T:
    """What `make` gives on rank 0, which alone calls it, everywhere. `pack` makes JSON of it, `unpack` undoes that."""
    if not _here:
        return make()
    if not first():
        return unpack(_from_first_bytes(b""))
    made = make()
    _from_first_bytes(json.dumps(pack(made)).encode())
    return made


def _from_first_bytes(data: bytes) -> Any:
    """The JSON of rank 0's `data`."""
    _here[-1][1].meet()
    size = torch.tensor([len(data)])
    dist.broadcast(size, 0)
    words = torch.zeros(int(size), dtype=torch.uint8)
    if first():
        words = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    dist.broadcast(words, 0)
    return json.loads(words.numpy().tobytes())


def arrays(mine: np.ndarray) -> list[np.ndarray]:
    """What every rank gives, by rank: arrays of one type that may differ in their first axis."""
    if not _here:
        return [mine]
    flat = np.ascontiguousarray(mine).reshape(-1).view(np.uint8)
    return [found.view(mine.dtype).reshape(-1, *mine.shape[1:]) for found in _bytes(flat)]


def _bytes(mine: np.ndarray) -> list[np.ndarray]:
    """The bytes of every rank, padded on the way."""
    world = here().world
    _here[-1][1].meet()
    sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(world)]
    dist.all_gather(sizes, torch.tensor([mine.size]))
    longest = max(1, *(int(size) for size in sizes))
    sent = torch.zeros(longest, dtype=torch.uint8)
    sent[: mine.size] = torch.from_numpy(np.array(mine))
    found = [torch.empty(longest, dtype=torch.uint8) for _ in range(world)]
    dist.all_gather(found, sent)
    return [one.numpy()[: int(size)].copy() for one, size in zip(found, sizes, strict=True)]


def summed(tensor: Tensor, group: Any = None) -> Tensor:
    """`tensor` added up over the ranks (of `group`), in place."""
    if _here:
        dist.all_reduce(tensor, group=group)
    return tensor


def agreed(stop: bool, due: bool, seconds: float) -> tuple[bool, bool, float]:
    """Whether any rank is to `stop`, and rank 0's own word on the other two: the clock is its."""
    if not _here:
        return stop, due, seconds
    _here[-1][1].meet()
    mine = [float(due), seconds] if first() else [0.0, 0.0]
    found = summed(torch.tensor([float(stop), *mine], dtype=torch.float64)).tolist()
    return found[0] > 0, found[1] > 0, found[2]


def require_same(what: str, value: Any) -> None:
    """Raise `BadData` naming the ranks whose `value` is another than rank 0's."""
    found = each(value)
    if other := [here().name(rank) for rank, one in enumerate(found) if one != found[0]]:
        raise BadData(
            f"{what}: {', '.join(other[:4])} {'has' if len(other) == 1 else 'have'} another than "
            f"{here().name(0)}. Give every machine the same files."
        )
