"""Saving beside the training: a step waits for a copy in memory, a thread writes the copy to the disk.

The copy goes into buffers that are kept: touching fresh memory costs more than copying into it. On a CUDA device they
are pinned, and the copies are queued like any other work of the device.
"""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vitrine.config.saving import SaveConfig
from vitrine.machine import ranks
from vitrine.train import sharded, state, states
from vitrine.train.optim import Average
from vitrine.train.shards import is_parted
from vitrine.train.state import Progress
from vitrine.weights import container
from vitrine.weights.bundle import LAST_FILE, MODEL_FILE

SHARE = 20
"""Between two saves lies at least so many times what one took."""

WORTH_SHARING = 32_768
"""Numbers from which torch copies with several threads."""

PATIENCE_S = 1.0
"""How long a run that leaves at once waits for what is being written."""


class Saver:
    """Writes the states of a run and its models, one after another, each from a copy of what they were when asked for.

    Of several ranks that hold the whole model the first writes; ranks that hold parts of it write together, and wait.

    The weights that are judged and kept are the average where there is one. `save_model` writes a model file; it is
    called in the thread, and given a copy. What goes wrong in the thread is raised by the next call. A resource: use
    `with`, which waits for what is being written, but hardly when the block is left by an interrupt.
    """

    def __init__(
        self, out: Path, settings: SaveConfig, model: nn.Module, optimizer: torch.optim.Optimizer,
        average: Average | None, save_model: Callable[[Path, nn.Module, Progress], None],
    ) -> None:  # fmt: skip
        self.out, self.settings = out, settings
        self.blocked: list[float] = []
        """Seconds that each state kept the training waiting."""
        self._of, self._save_model = (model, optimizer, average), save_model
        self._pinned = next(model.parameters()).device.type == "cuda"
        self._parted = is_parted(model)
        judged = model if average is None else average.model
        self._judged = judged if self._parted or not ranks.first() else _twin(judged, model, self._pinned)
        self._buffers: dict[str, Tensor] = {}
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._left = False
        self._at, self._step = time.monotonic() + settings.every_s, -1

    def __enter__(self) -> Saver:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._left = kind is not None and not issubclass(kind, Exception)
        if self._thread is not None:
            self._thread.join(PATIENCE_S if self._left else None)
        if kind is None:
            self.wait()

    def due(self, step: int) -> bool:
        """Whether a state is to be saved after so many steps: it is time, and nothing is being written.

        Raises what went wrong with the last one.
        """
        self._raise()
        every, for_good = self.settings.every_steps, self.settings.keep_every_steps
        if self._step < 0:
            self._step = step - 1
            if not self._parted and ranks.first():
                judged = {f"{self._prefix}{name}" for name, _ in self._judged.named_parameters()}
                every_tensor = state.tensors_of(*self._of)
                wanted = {name: tensor for name, tensor in every_tensor.items() if name not in judged}
                self._begin(lambda: self._make_room(wanted))
        if for_good and step % for_good == 0:
            return True
        if self._thread is not None and self._thread.is_alive():
            return False
        return step // every > self._step // every if every else time.monotonic() > self._at

    def state(self, progress: Progress, *, models: bool = True, follow: bool = False) -> None:
        """Save the state; with `models` the last weights for use too, and with `follow` the best ones, which are these.

        Comes back when the copy is made. Waits where something is still being written.
        """
        self.wait()
        began, kept = time.monotonic(), progress.copy()
        self._step = progress.step
        if self._parted:
            self._together(progress, [LAST_FILE] * models + [MODEL_FILE] * follow)
        if self._parted or not ranks.first():
            return
        tensors, facts = self._copied(state.tensors_of(*self._of)), state.facts_of(kept)
        there = self._mark()
        self.blocked.append(time.monotonic() - began)

        def write() -> None:
            there()
            container.write(states.path_of(self.out, kept.step), tensors, facts)
            states.let_go(self.out, kept.step, self.settings)
            for name in [LAST_FILE] * models + [MODEL_FILE] * follow:
                if self._left:
                    return
                self._save_model(self.out / name, self._judged, kept)
            self._wrote(began)

        self._begin(write)

    def _together(self, progress: Progress, models: list[str]) -> None:
        """The state, to which every rank adds its share, and the models, which they put together."""
        began = time.monotonic()
        path = states.path_of(self.out, progress.step, parted=True)
        sharded.save(path, *self._of, progress)
        if ranks.first():
            states.let_go(self.out, progress.step, self.settings)
        for name in models:
            self._save_model(self.out / name, self._judged, progress)
        self.blocked.append(time.monotonic() - began)
        self._wrote(began)

    def _wrote(self, began: float) -> None:
        """From now on it is a while until the next save."""
        ended = time.monotonic()
        self._at = ended + max(self.settings.every_s, SHARE * (ended - began))

    def best(self, progress: Progress) -> None:
        """Save the judged weights as the best ones. Comes back when the copy is made, as `state` does."""
        self.wait()
        if self._parted:
            self._save_model(self.out / MODEL_FILE, self._judged, progress)
        if self._parted or not ranks.first():
            return
        kept, average = progress.copy(), self._of[2]
        model = self._of[0] if average is None else average.model
        self._copied({f"{self._prefix}{name}": tensor for name, tensor in model.state_dict().items()})
        there = self._mark()

        def write() -> None:
            there()
            self._save_model(self.out / MODEL_FILE, self._judged, kept)

        self._begin(write)

    def wait(self) -> None:
        """Come back when everything is written. Raises what went wrong."""
        if self._thread is not None:
            self._thread.join()
        self._raise()

    @property
    def _prefix(self) -> str:
        """What the names of the judged weights begin with in a state."""
        return "model." if self._of[2] is None else "average."

    def _copied(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The same in memory of our own, which the thread reads until it is done."""
        own = {f"{self._prefix}{name}": tensor for name, tensor in self._judged.state_dict().items()}
        self._make_room({name: tensor for name, tensor in tensors.items() if name not in own})
        own |= self._buffers
        frozen = self._frozen()
        names = [name for name in tensors if name not in frozen]
        copy_all([(own[name], tensors[name].detach()) for name in names])
        return {name: own[name] for name in tensors}

    def _make_room(self, tensors: Mapping[str, Tensor]) -> None:
        """Have a buffer for each, touched once: all later copies find its memory there."""
        for name, tensor in tensors.items():
            there = self._buffers.get(name)
            if there is None or there.shape != tensor.shape or there.dtype != tensor.dtype:
                self._buffers[name] = _empty_like(tensor, self._pinned).zero_()

    def _frozen(self) -> set[str]:
        """Names of what never changes; the copies have it from the beginning."""
        fixed = [name for name, parameter in self._of[0].named_parameters() if not parameter.requires_grad]
        return {f"{self._prefix}{name}" for name in fixed}

    def _mark(self) -> Callable[[], None]:
        """To be called by the thread: comes back when the device has made its copies."""
        if not self._pinned:
            return lambda: None
        event = torch.cuda.Event()
        event.record()
        return event.synchronize

    def _begin(self, write: Callable[[], None]) -> None:
        def run() -> None:
            try:
                write()
            except BaseException as error:
                self._error = error

        self._thread = threading.Thread(target=run, name="saver", daemon=True)
        self._thread.start()

    def _raise(self) -> None:
        if self._error is not None and not (self._thread is not None and self._thread.is_alive()):
            error, self._error = self._error, None
            raise error


def copy_all(pairs: list[tuple[Tensor, Tensor]]) -> None:
    """Copy the second tensor of each pair into the first, which is in main memory.

    What is there already is shared out among as many threads as torch has, each of which takes the next tensor. torch's
    own threads wait for each other after every tensor: beside other programs that takes several times as long.
    """
    here, rest = list[tuple[Tensor, Tensor]](), list[tuple[Tensor, Tensor]]()
    for own, tensor in pairs:
        (here if _plain(own) and _plain(tensor) and own.numel() >= WORTH_SHARING else rest).append((own, tensor))
    with torch.no_grad():
        if rest:
            torch._foreach_copy_([own for own, _ in rest], [tensor for _, tensor in rest], True)
    turns = iter(sorted(here, key=lambda pair: -pair[0].numel()))

    def some() -> None:
        for own, tensor in turns:
            np.copyto(own.reshape(-1).view(torch.uint8).numpy(), tensor.reshape(-1).view(torch.uint8).numpy())

    others = [threading.Thread(target=some, daemon=True) for _ in range(torch.get_num_threads() - 1 if here else 0)]
    for thread in others:
        thread.start()
    some()
    for thread in others:
        thread.join()


def _plain(tensor: Tensor) -> bool:
    """Whether a tensor is a piece of main memory without gaps."""
    return tensor.device.type == "cpu" and tensor.is_contiguous()


def _twin(judged: nn.Module, model: nn.Module, pinned: bool) -> nn.Module:
    """A copy of a module in main memory, into which its tensors are copied anew for each save."""
    memo: dict[int, Any] = {}
    for parameter in judged.parameters():
        own = _empty_like(parameter, pinned).copy_(parameter.detach())
        memo[id(parameter)] = nn.Parameter(own, requires_grad=False)
    for buffer in judged.buffers():
        memo[id(buffer)] = _empty_like(buffer, pinned).copy_(buffer)
    return copy.deepcopy(judged, memo).eval()


def _empty_like(tensor: Tensor, pinned: bool) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=pinned)
