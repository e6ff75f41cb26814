"""The state of a run between two steps, so that a stopped run goes on as if it had not been stopped."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vitrine.errors import BadData
from vitrine.train.optim import Average
from vitrine.weights import container

STATE_FILE = "state.safetensors"
"""What older versions called the one state of a run; `train.states` has today's names."""


@dataclass(kw_only=True)
class Progress:
    """How far a run is. The one mutable record of the loop; everything here is saved.

    From `loss` on it is what `Meter` has added up over the epoch under way. `ending`: the epoch is trained, and its end
    (validation, record) still to come; `done`: the last step is made. `in_a_row` counts the steps refused just now for
    values that are not finite, `refused` has those of the epoch, by number, and what was not finite.
    """

    step: int = 0
    epochs: int
    fingerprint: str = ""
    teacher: str = ""
    peak: float = 0.0
    best: float = -1.0
    best_loss: float = 0.0
    best_epoch: int = 0
    seconds: float = 0.0
    loss: float = 0.0
    correct: float = 0.0
    weight: float = 0.0
    norms: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])
    epoch_steps: int = 0
    epoch_seconds: float = 0.0
    waited: float = 0.0
    grad_norm: float = 0.0
    ending: bool = False
    done: bool = False
    in_a_row: int = 0
    refused: dict[str, str] = field(default_factory=dict)

    def copy(self) -> Progress:
        """As it is now."""
        return replace(self, norms=list(self.norms), refused=dict(self.refused))


def save(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: Average | None,
    progress: Progress,
) -> None:
    """Write the whole state to `path`, whole or not at all."""
    container.write(path, tensors_of(model, optimizer, average), facts_of(progress))


def facts_of(progress: Progress) -> dict[str, Any]:
    """What stands beside the tensors of a state."""
    return {"kind": "state", "progress": asdict(progress), "threads": torch.get_num_threads()}


def tensors_of(model: nn.Module, optimizer: torch.optim.Optimizer, average: Average | None) -> dict[str, Tensor]:
    """The tensors of a state by name, as they are: the run's own, but for the random state."""
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    if average is not None:
        tensors |= {f"average.{name}": tensor for name, tensor in average.model.state_dict().items()}
    names = _parameter_names(model)
    for parameter, slots in optimizer.state.items():
        tensors |= {f"optim.{names[parameter]}.{slot}": torch.as_tensor(value) for slot, value in slots.items()}
    tensors["random.cpu"] = torch.get_rng_state()
    device = next(model.parameters()).device
    if device.type == "cuda":
        tensors["random.cuda"] = torch.cuda.get_rng_state(device)
    return tensors


def load(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, average: Average | None
) -> tuple[Progress, list[str]]:
    """Put the state at `path` into the given objects; gives the progress and sentences for the user.

    Raises `BadData` where the file is damaged or belongs to another model.
    """
    return put(*read(path), model, optimizer, average)


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and facts of a state, its hash checked. Raises `BadData` where the file is damaged or no state."""
    tensors, facts = container.read(path)
    if facts.get("kind") != "state":
        raise BadData(f"{path}: not the state of a run.")
    return tensors, facts


def put(
    tensors: Mapping[str, Tensor], facts: Mapping[str, Any], model: nn.Module, optimizer: torch.optim.Optimizer,
    average: Average | None,
) -> tuple[Progress, list[str]]:  # fmt: skip
    """Put what `read` gave into the given objects; gives the progress and sentences for the user."""
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        part, _, rest = name.partition(".")
        parts.setdefault(part, {})[rest] = tensor
    model.load_state_dict(parts["model"], strict=True)
    if average is not None:
        average.model.load_state_dict(parts["average"], strict=True)
    _load_optimizer(optimizer, _parameter_names(model), parts.get("optim", {}))
    torch.set_rng_state(parts["random"]["cpu"])
    device = next(model.parameters()).device
    if device.type == "cuda" and "cuda" in parts["random"]:
        torch.cuda.set_rng_state(parts["random"]["cuda"], device)
    return told_by(facts)


def told_by(facts: Mapping[str, Any]) -> tuple[Progress, list[str]]:
    """The progress in the facts of a state, and sentences for the user."""
    notes = []
    if facts["threads"] != torch.get_num_threads():
        notes.append(
            f"the run began with {facts['threads']} threads and goes on with {torch.get_num_threads()}: "
            "sums are ordered differently, so the result may differ in its last bits"
        )
    return Progress(**facts["progress"]), notes


def _parameter_names(model: nn.Module) -> dict[Tensor, str]:
    return {parameter: name for name, parameter in model.named_parameters()}


def _load_optimizer(optimizer: torch.optim.Optimizer, names: dict[Tensor, str], saved: dict[str, Tensor]) -> None:
    """Give each parameter its saved slots, through the optimiser's own loader, which knows devices and types."""
    slots: dict[str, dict[str, Any]] = {}
    for name, tensor in saved.items():
        parameter, _, slot = name.rpartition(".")
        slots.setdefault(parameter, {})[slot] = tensor.clone()
    ordered = [names[p] for group in optimizer.param_groups for p in group["params"]]
    state = optimizer.state_dict()
    state["state"] = {number: slots[name] for number, name in enumerate(ordered) if name in slots}
    optimizer.load_state_dict(state)
