"""Saves without end in a child, kills it at random moments and before every write, sync and rename, and looks.

Run as a program: it forks, which a process with threads must not do. Prints one JSON object.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tests.made import bundle, small
from tests.train.forked import begun, ended, warm
from vitrine.config.options import OptimConfig
from vitrine.config.saving import SaveConfig
from vitrine.models.vit import VisionTransformer
from vitrine.train import state, states
from vitrine.train.optim import Average, optimizer
from vitrine.train.saver import Saver
from vitrine.train.state import Progress
from vitrine.weights.bundle import LAST_FILE, open_bundle
from vitrine.weights.bundle import save as save_bundle

SIZE: dict[str, int] = {"embed_dim": 32, "depth": 1}
Parts = tuple[nn.Module, torch.optim.Optimizer, Average]


def parts() -> Parts:
    """A model, its optimiser with all its state, its average."""
    torch.manual_seed(0)
    model = VisionTransformer(small(**SIZE)).train()
    made = optimizer(model, OptimConfig())
    model(torch.zeros(1, 3, 16, 16)).sum().backward()
    made.step()
    return model, made, Average(model, 0.9)


def saver(out: Path, of: Parts) -> Saver:
    """A saver of these, whose model files hold the weights it is given."""
    like = bundle(**SIZE)

    def save_model(path: Path, model: nn.Module, progress: Progress) -> None:
        from dataclasses import replace

        save_bundle(replace(like, tensors=dict(model.state_dict())), path)

    return Saver(out, SaveConfig(keep_last=2), *of, save_model)


def fill(of: Parts, value: float) -> None:
    """Have every tensor of a state say `value`, but for the random one."""
    for name, tensor in state.tensors_of(*of).items():
        if not name.startswith("random"):
            tensor.detach().fill_(value)


def save_on(out: Path, of: Parts, step: int, tell: int) -> None:
    """Save one step after another until killed, and tell what is written."""
    writing = saver(out, of)
    os.write(tell, step.to_bytes(8, "little"))
    while True:
        step += 1
        fill(of, step)
        writing.state(Progress(epochs=1, step=step))
        if step % 2:  # every other save meets the next one while it is written
            writing.wait()
            os.write(tell, step.to_bytes(8, "little"))


def looked(out: Path, of: Parts) -> int:
    """The step of the newest state, which was found unaided, whole, and of one moment."""
    found = states.newest(out)
    assert found is not None
    path, tensors, facts, said = found
    step = int(facts["progress"]["step"])
    assert said == [] and path == states.path_of(out, step)
    assert all(bool((t == step).all()) for name, t in tensors.items() if not name.startswith("random")), path
    progress, _ = state.put(tensors, facts, *of)
    assert progress.step == step
    for other in states.found(out):
        state.read(other)
    if (out / LAST_FILE).exists():
        open_bundle(out / LAST_FILE)
    return step


def killed_at_random(out: Path, of: Parts, kills: int) -> dict[str, Any]:
    """So many children killed after some milliseconds."""
    rng, steps, leftovers = random.Random(0), [looked(out, of)], 0
    for _ in range(kills):
        told, tell = os.pipe()
        child = begun(lambda: save_on(out, of, steps[-1], tell), out.parent / "said")  # noqa: B023
        os.close(tell)
        begun_with = os.read(told, 8)
        time.sleep(rng.uniform(0.0, 0.06))
        os.kill(child, signal.SIGKILL)
        assert ended(child) == -signal.SIGKILL, (out.parent / "said").read_text()
        acknowledged = (begun_with + os.read(told, 1 << 20))[-8:]
        os.close(told)
        leftovers += len(list(out.rglob(".*.part")))
        steps.append(looked(out, of))
        assert steps[-1] >= int.from_bytes(acknowledged, "little"), "a save that was done is lost"
        assert steps[-1] >= steps[-2]
    return {"kills": kills, "steps": steps[-1], "leftovers": leftovers}


def counted(act: Callable[[int], None]) -> list[str]:
    """From now on `act(n)` before the n-th write, sync, rename or removal; the list gains their names."""
    names: list[str] = []

    def before(name: str, plain: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **how: Any) -> Any:
            names.append(name)
            act(len(names) - 1)
            return plain(*args, **how)

        return wrapped

    for name in ("fsync", "replace", "rename", "unlink", "mkdir"):
        setattr(os, name, before(name, getattr(os, name)))
    plain_open = Path.open

    class Counted:
        def __init__(self, file: Any) -> None:
            self.file = file
            self.write = before("write", file.write)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

        def __enter__(self) -> Any:
            return self

        def __exit__(self, *_: object) -> None:
            self.file.close()

    def opened(self: Path, mode: str = "r", *args: Any, **how: Any) -> Any:
        file = plain_open(self, mode, *args, **how)
        return Counted(file) if "w" in mode else file

    Path.open = opened  # type: ignore[assignment, method-assign]
    return names


def killed_before_each(out: Path, of: Parts, every: int) -> dict[str, Any]:
    """A child killed before each act on the disk of one save, of the writes before one in `every`.

    Gives how many points there were, and how often the new state was there after.
    """

    def save_once(act: Callable[[int], None], tell: int = -1) -> None:
        step = looked(out, of) + 1
        names = counted(act)
        writing = saver(out, of)
        fill(of, step)
        writing.state(Progress(epochs=1, step=step))
        writing.wait()
        if tell >= 0:
            os.write(tell, " ".join(names).encode())

    told, tell = os.pipe()
    assert ended(begun(lambda: save_once(lambda n: None, tell), out.parent / "said")) == 0
    os.close(tell)
    acts = os.read(told, 1 << 20).decode().split()
    os.close(told)
    new, unreached, points = 0, 0, [n for n, name in enumerate(acts) if name != "write" or n % every == 0]
    for number in points:
        before = looked(out, of)

        def die(n: int, number: int = number) -> None:
            if n == number:
                os.kill(os.getpid(), signal.SIGKILL)
                time.sleep(60)

        code = ended(begun(lambda: save_once(die), out.parent / "said"))
        assert code in (0, -signal.SIGKILL), (out.parent / "said").read_text()
        unreached += code == 0  # there was less to sweep away than in the save that was counted
        found = looked(out, of)
        assert found in (before, before + 1)
        new += found - before
    each = {name: acts.count(name) for name in sorted(set(acts))}
    return {"acts": each, "points": len(points), "new": new, "unreached": unreached}


def main(folder: Path, kills: int, every: int) -> None:
    warm()
    out, of = folder / "r", parts()
    with saver(out, of) as first:
        fill(of, 1)
        first.state(Progress(epochs=1, step=1))
    random_kills = killed_at_random(out, of, kills)
    points = killed_before_each(out, of, every)
    last = looked(out, of) + 1
    with saver(out, of) as writing:
        fill(of, last)
        writing.state(Progress(epochs=1, step=last))
    names = sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())
    print(json.dumps({"random": random_kills, "points": points, "names": names, "last": last}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
