"""Steps whose loss or gradient is not finite: refused without asking the device, counted, told at the next look."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from vitrine.errors import Diverged

IN_A_ROW = 10
"""Refused steps one after another that send a run back to its last state."""

AT_ONCE = ("cpu", "mps")
"""Devices that are asked in each step: a CPU has nothing to wait for, torch's optimisers for MPS know no refusal."""

WORDS = {1: "loss", 2: "gradient", 3: "loss and gradient"}


class Lost(Diverged):
    """So many steps in a row were refused that the weights themselves must be wrong."""


def refusal(loss: Float[Tensor, ""], norm: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """0 where both the loss and the gradient's norm are finite, else 1 for the loss, 2 for the gradient, 3 for both.

    Stays on the device. Where many processes make one step together, both must be the same for all of them.
    """
    if loss.device.type in AT_ONCE:
        seen = (not math.isfinite(float(loss))) + 2.0 * (not math.isfinite(float(norm)))
        return torch.tensor(seen)
    return (~loss.isfinite()).float() + 2 * (~norm.isfinite()).float()


def update(optimizer: torch.optim.Optimizer, refused: Float[Tensor, ""]) -> None:
    """The optimiser's step, unless it is refused: then neither weights nor state change by a bit.

    A CUDA device decides by itself; of the others it is known.
    """
    if refused.device.type not in AT_ONCE:
        update_on_device(optimizer, refused)
    elif not refused:
        optimizer.step()


def update_on_device(optimizer: torch.optim.Optimizer, refused: Float[Tensor, ""]) -> None:
    """As `update`, decided where the tensors are, by what torch's fused optimisers know as `found_inf`."""
    if isinstance(optimizer, torch.optim.SGD):
        # In its first step the fused kernel takes memory for the momentum that it fills only when it is not refused.
        for group in optimizer.param_groups:
            for parameter in group["params"] if group["momentum"] else ():
                if optimizer.state[parameter].get("momentum_buffer") is None:
                    optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    known: Any = optimizer  # torch has the attribute in no class
    known.found_inf = (refused > 0).float()
    optimizer.step()
    known.found_inf = None


class Refused:
    """The steps refused since the last look, kept on the device until then; `in_a_row` of them up to now."""

    def __init__(self, in_a_row: int) -> None:
        self.in_a_row = in_a_row
        self._kinds: list[Tensor] = []
        self._known = in_a_row

    def add(self, refused: Float[Tensor, ""]) -> None:
        """One step more."""
        self._kinds.append(refused)
        if refused.device.type in AT_ONCE:
            self._known = self._known + 1 if refused else 0

    @property
    def urgent(self) -> bool:
        """Whether it is known without asking the device that too many were refused in a row."""
        return self._known >= IN_A_ROW

    def look(self, step: int) -> tuple[dict[int, str], bool]:
        """What was not finite in which steps (from 1) up to `step`, and whether there were too many in a row."""
        kinds = torch.stack(self._kinds).tolist() if self._kinds else []
        self._kinds.clear()
        found, lost, first = dict[int, str](), False, step - len(kinds) + 1
        for number, kind in enumerate(map(int, kinds), first):
            self.in_a_row = self.in_a_row + 1 if kind else 0
            lost |= self.in_a_row >= IN_A_ROW
            if kind:
                found[number] = WORDS[kind]
        self._known = self.in_a_row
        return found, lost


def told(found: Iterable[tuple[int, str]], most: int = 5) -> str:
    """One sentence of the steps that were refused."""
    every = list(found)
    shown = ", ".join(f"step {step:,} ({what})" for step, what in every[:most])
    more = f" and {len(every) - most:,} more" if len(every) > most else ""
    return f"not finite, so left out: {shown}{more}"
