"""The bundle: the one file that training leaves and everything else takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vitrine.config.architecture import ModelConfig
from vitrine.config.options import PreprocessConfig
from vitrine.config.text import Nested, from_dict, to_dict
from vitrine.errors import BadConfig, BadData, NotFound
from vitrine.models.networks import Network, network
from vitrine.results import Figure, Provenance
from vitrine.weights import container

FORMAT = 1
"""Number of the format. Within it, entries are only added, with a default; a change of meaning raises it."""

MODEL_FILE, LAST_FILE = "model.safetensors", "last.safetensors"


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """A model as it stands in a file: weights, and all that is needed to use and to judge them.

    `metrics` has figures by part ("test", "validation") and name. `run` is the configuration of the
    training, without `model` and `preprocess`; `notes` says in words what a user should know. `multi_label`: a picture
    may have several classes, or none: the logits are for sigmoids, and a class is called from the probability
    `threshold` on.
    """

    model: ModelConfig
    preprocess: PreprocessConfig
    class_names: tuple[str, ...]
    tensors: Mapping[str, Tensor]
    metrics: Mapping[str, Mapping[str, Figure]] = field(default_factory=dict)
    provenance: Provenance = field(default_factory=Provenance)
    run: Nested = field(default_factory=dict)
    finished: bool = True
    notes: tuple[str, ...] = ()
    multi_label: bool = False
    threshold: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.threshold < 1:
            raise BadConfig(f"threshold = {self.threshold!r}: must be a probability above 0 and below 1.")
        if not isinstance(self.multi_label, bool):
            raise BadConfig(f"multi_label = {self.multi_label!r}: must be true or false.")
        if self.model.num_classes and len(self.class_names) != self.model.num_classes:
            raise BadConfig(f"{len(self.class_names)} class names for a head of {self.model.num_classes} classes.")
        if self.preprocess.channels != self.model.in_chans:
            raise BadConfig(
                f"preprocess.mean = {self.preprocess.mean}: must have as many values as model.in_chans = "
                f"{self.model.in_chans}."
            )


def save(bundle: Bundle, path: Path) -> None:
    """Write `bundle` to `path`, whole or not at all. Raises `DiskError` or `CannotCreate`."""
    container.write(path, bundle.tensors, _facts(bundle))


def _facts(bundle: Bundle) -> Nested:
    return {
        "format": FORMAT,
        "kind": "model",
        "model": to_dict(bundle.model),
        "preprocess": to_dict(bundle.preprocess),
        "class_names": list(bundle.class_names),
        "metrics": {
            part: {name: asdict(figure) for name, figure in figures.items()} for part, figures in bundle.metrics.items()
        },
        "provenance": asdict(bundle.provenance),
        "run": bundle.run,
        "finished": bundle.finished,
        "notes": list(bundle.notes),
        "multi_label": bundle.multi_label,
        "threshold": bundle.threshold,
    }


def open_bundle(path: str | Path) -> Bundle:
    """The bundle at `path`, a file or a run folder, its hash checked.

    Raises `NotFound`, or `BadData` naming the file and what is wrong with it.
    """
    file = locate(path)
    tensors, facts = container.read(file)
    return _bundle(facts, tensors, file)


def facts_of(path: str | Path) -> Bundle:
    """As `open_bundle`, without the tensors: quick, and the hash of the whole file is checked all the same."""
    file = locate(path)
    return _bundle(container.read_facts(file), {}, file)


def _bundle(facts: Nested, tensors: Mapping[str, Tensor], file: Path) -> Bundle:
    if facts.get("kind") != "model":
        raise BadData(f"{file}: holds the state of a run, not a model. Give the run's folder or its {MODEL_FILE}.")
    number = facts.get("format")
    if not isinstance(number, int):
        raise BadData(f"{file}: the facts of the bundle are incomplete (no format number). Take another copy.")
    if number > FORMAT:
        raise BadData(f"{file}: written in bundle format {number}; this version reads up to {FORMAT}. Update vitrine.")
    known = {f.name for f in fields(Provenance)}
    try:
        return Bundle(
            model=from_dict(ModelConfig, facts["model"], "model."),
            preprocess=from_dict(PreprocessConfig, facts["preprocess"], "preprocess."),
            class_names=tuple(facts["class_names"]),
            tensors=tensors,
            metrics={
                part: {name: Figure(**figure) for name, figure in figures.items()}
                for part, figures in facts.get("metrics", {}).items()
            },
            provenance=Provenance(**{k: v for k, v in facts.get("provenance", {}).items() if k in known}),
            run=facts.get("run", {}),
            finished=facts.get("finished", True),
            notes=tuple(facts.get("notes", ())),
            multi_label=facts.get("multi_label", False),
            threshold=facts.get("threshold", 0.5),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise BadData(f"{file}: the facts of the bundle are incomplete ({error}).") from error
    except BadConfig as error:
        raise BadData(f"{file}: {error}") from error


def locate(path: str | Path) -> Path:
    """The file meant by `path`: a run folder stands for its best model. Raises `NotFound`, saying what is there."""
    place = Path(path)
    if place.is_dir():
        if (place / MODEL_FILE).is_file():
            return place / MODEL_FILE
        hint = " The run has not finished its first epoch." if (place / "config.toml").exists() else ""
        raise NotFound(f"{place}: there is no {MODEL_FILE} in this folder.{hint}")
    if not place.exists():
        raise NotFound(f"{place}: there is no such file or run folder. `vitrine train DATA --out {place}` makes one.")
    return place


def build(bundle: Bundle, device: str | torch.device = "cpu") -> Network:
    """The network with the bundle's weights, in evaluation mode.

    Strict: raises `BadData` with every missing, unexpected and misshapen tensor.
    """
    with torch.device("meta"):
        model = network(bundle.model)
    check_tensors(model.state_dict(), bundle.tensors)
    model.load_state_dict(
        {name: tensor.to(device) for name, tensor in bundle.tensors.items()}, strict=True, assign=True
    )
    return model.requires_grad_(True).eval()


def check_tensors(wanted: Mapping[str, Tensor], found: Mapping[str, Any]) -> None:
    """Raise `BadData` with three lists unless names and shapes agree."""
    missing = [name for name in wanted if name not in found]
    unexpected = [name for name in found if name not in wanted]
    misshapen = [
        f"{name} {tuple(found[name].shape)} where {tuple(wanted[name].shape)} is needed"
        for name in wanted
        if name in found and wanted[name].shape != found[name].shape
    ]
    lists = (("missing", missing), ("unexpected", unexpected), ("of the wrong shape", misshapen))
    wrong = [f"{what}: {', '.join(_short(which))}" for what, which in lists if which]
    if wrong:
        raise BadData(f"the tensors do not fit the model: {'; '.join(wrong)}.")


def _short(names: list[str], most: int = 12) -> list[str]:
    """The first names, and how many more there are."""
    return [*names[:most], f"and {len(names) - most} more"] if len(names) > most else names
