"""A model judged on data, every picture counted once, and never silently on what it was trained on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
from torch import Tensor

from vitrine.config.options import DataConfig
from vitrine.config.text import from_dict
from vitrine.data import loader, scan, sources, splits
from vitrine.errors import BadData, UsageError
from vitrine.evaluate.metrics import measure
from vitrine.evaluate.outputs import collect
from vitrine.results import Metrics

if TYPE_CHECKING:
    from vitrine.predict.classifier import Classifier

Part = Literal["auto", "all", "train", "validation", "test"]


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """`metrics`, the `part` of the data they are from, `why` that part, and damaged pictures with reasons."""

    metrics: Metrics
    part: str
    why: str
    bad: dict[str, str]


def judge(
    model: Classifier, data: str, part: str = "auto", progress: Callable[[int, int], None] | None = None
) -> Judgement:
    """The figures of `model` on `data`, in float32.

    `part` auto takes the test part where `data` is what the model was trained on, parted as then, and
    everything where it is not. Damaged pictures are left out and named. Raises `BadData` and `UsageError`.
    """
    if part not in get_args(Part):
        raise UsageError(f"--part {part}: must be one of {', '.join(get_args(Part))}.")
    settings = replace(from_dict(DataConfig, dict(model.run.get("data", {}))), source=data)
    source = sources.open_source(settings, model.class_names)
    scanned = scan.scan(source, settings)
    same = scanned.fingerprint == model.provenance.data_fingerprint
    indices, chosen, why = _choose(source, scanned, settings, part, same)
    if not len(indices):
        raise BadData(f"{data}: its {chosen} part has no pictures. Choose another --part.")
    done = 0

    def logits(images: Tensor) -> Tensor:
        nonlocal done
        done += len(images)
        if progress is not None:
            progress(done, len(indices))
        return model.logits(images)

    bad = {source.ids[i]: reason for i, reason in scanned.bad.items()}
    batches = loader.evaluation(
        source,
        indices,
        model.preprocess,
        settings,
        batch_size=64,
        on_bad=lambda name, reason: bad.update({name: reason}),
    )
    return Judgement(metrics=measure(*collect(logits, batches), model.class_names), part=chosen, why=why, bad=bad)


def _choose(
    source: sources.Source, scanned: scan.Scan, settings: DataConfig, part: str, same: bool
) -> tuple[np.ndarray, str, str]:
    """The pictures to judge on, the name of that part, and the reason."""
    readable = np.setdiff1d(np.arange(len(source)), list(scanned.bad)).astype(np.int64)
    if part == "all" or (part == "auto" and not same):
        why = "as asked" if part == "all" else "the model was not trained on this data"
        return readable, "all", why
    parts = splits.split(source, scanned.bad, settings)
    found = {"train": parts.train, "validation": parts.validation, "test": parts.test}
    if part != "auto":
        return found[part], part, "as asked"
    if len(parts.test):
        return parts.test, "test", "the model was trained on the rest of this data"
    return readable, "all", "there was no test part, so these pictures include those it was trained on"
