"""A model judged on data: every picture counted once, and said which pictures they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
from torch import Tensor

from vitrine.config.options import DataConfig
from vitrine.config.text import from_dict
from vitrine.data import loader, scan, sources, splits
from vitrine.errors import BadData, UsageError
from vitrine.evaluate import multi_label
from vitrine.evaluate.metrics import measure
from vitrine.evaluate.outputs import collect
from vitrine.results import Metrics

if TYPE_CHECKING:
    from vitrine.predict.classifier import Classifier

Part = Literal["auto", "all", "train", "validation", "test"]

OTHER_SET = "this is not the very set it was trained on; pictures of the training may be among these"


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """`metrics`, the `part` of the data they are from, `why` that part, and damaged pictures with reasons."""

    metrics: Metrics
    part: str
    why: str
    bad: dict[str, str]


def judge(
    model: Classifier,
    data: str,
    part: str = "auto",
    *,
    columns: Mapping[str, str] | None = None,
    scanning: Callable[[int, int], None] | None = None,
    measuring: Callable[[int, int], None] | None = None,
) -> Judgement:
    """The figures of `model` on `data`, in float32.

    `part` auto takes the test part where `data` is the very set the model was trained on, parted as then, and
    everything where it is not: a set that differs in a single picture is another one, and may well hold
    pictures of the training. `columns` are `image_column` and `label_column` of a table where they are not those of the
    training. Damaged pictures are left out and named. `scanning(done, all)` is called while
    the pictures are looked at, then `measuring(done, all)`. Raises `BadData` and `UsageError`.
    """
    if part not in get_args(Part):
        raise UsageError(f"--part {part}: must be one of {', '.join(get_args(Part))}.")
    limits = {"max_pixels": model.limits.max_pixels, "max_bytes": model.limits.max_bytes}
    settings = from_dict(DataConfig, {**model.run.get("data", {}), **limits, **(columns or {}), "source": data})
    source = sources.open_source(settings, model.class_names)
    require_same_kind(model, source)
    scanned = scan.scan(source, settings, scanning)
    same = scanned.fingerprint == model.provenance.data_fingerprint
    indices, chosen, why = _choose(source, scanned, settings, part, same)
    if not len(indices):
        raise BadData(f"{data}: its {chosen} part has no pictures. Choose another --part.")
    done = 0

    def logits(images: Tensor) -> Tensor:
        nonlocal done
        done += len(images)
        if measuring is not None:
            measuring(done, len(indices))
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
    if model.multi_label:
        found = multi_label.measure(multi_label.gather(logits, batches), model.class_names, model.threshold)
    else:
        found = measure(collect(logits, batches), model.class_names)
    return Judgement(metrics=found, part=chosen, why=why, bad=bad)


def require_same_kind(model: Classifier, source: sources.Source) -> None:
    """Raise `UsageError` where the model names one class a picture and the data has several, or the other way round."""
    if source.multi_label and not model.multi_label:
        raise UsageError(
            f"{source.name}: a picture may have several classes (column labels), and the model names one. "
            "Give data with a column label, or a model trained on such data."
        )
    if model.multi_label and not source.multi_label:
        raise UsageError(
            f"{source.name}: a picture has one class, and the model may name several. "
            "Give a CSV with a column labels, or a .jsonl."
        )


def _choose(
    source: sources.Source, scanned: scan.Scan, settings: DataConfig, part: str, same: bool
) -> tuple[np.ndarray, str, str]:
    """The pictures to judge on, the name of that part, and the reason."""
    readable = np.setdiff1d(np.arange(len(source)), list(scanned.bad)).astype(np.int64)
    if part == "all" or (part == "auto" and not same):
        return readable, "all", "as asked" if part == "all" else OTHER_SET
    parts = splits.split(source, scanned.bad, settings)
    found = {"train": parts.train, "validation": parts.validation, "test": parts.test}
    if part != "auto":
        return found[part], part, "as asked"
    if len(parts.test):
        return parts.test, "test", "the model was trained on the rest of this data"
    return readable, "all", "there was no test part, so these pictures include those it was trained on"
