"""What the report of a run shows, gathered from the run: figures, curves, mistakes, options, machine."""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from vitrine.config.options import Config
from vitrine.config.text import flatten, to_dict
from vitrine.data.sources import Source
from vitrine.errors import VitrineError
from vitrine.evaluate.metrics import share
from vitrine.evaluate.multi_label import Scores
from vitrine.evaluate.outputs import Outputs
from vitrine.figures.curves import Curve
from vitrine.figures.report import Answers, Mistake, Option, Report, page
from vitrine.figures.several import Several
from vitrine.figures.tables import ClassRow
from vitrine.files import write_text
from vitrine.models.cost import macs, num_parameters
from vitrine.results import Metrics, Provenance
from vitrine.train.keep import Judged, Keeper, Pictures
from vitrine.train.observer import Observer
from vitrine.train.state import Progress
from vitrine.train.watch import amount, clock
from vitrine.weights.bundle import Bundle

REPORT_FILE = "report.html"
WORST = 24
"""Mistakes that are shown."""

CHARTS: Mapping[str, Mapping[str, str]] = {
    "loss": {"train_loss": "training", "val_loss": "validation"},
    "accuracy": {"train_top1": "training", "val_top1": "validation"},
    "learning rate": {"lr": "at the end of the epoch"},
    "gradient norm": {"grad_norm_mean": "mean", "grad_norm_max": "largest"},
}
"""Titles, and the curves of each by name in metrics.jsonl."""
SEVERAL: Mapping[str, Mapping[str, str]] = {
    "loss": CHARTS["loss"],
    "mean average precision": {"val_map": "validation"},
    "all classes right": {"train_exact_match": "training", "val_exact_match": "validation"},
    "learning rate": CHARTS["learning rate"],
    "gradient norm": CHARTS["gradient norm"],
}
"""The same where a picture may have several classes."""


def write(
    out: Path, keeper: Keeper, bundle: Bundle, observer: Observer, progress: Progress,
    judged: Mapping[str, Judged] | None = None,
) -> Path:  # fmt: skip
    """The path of the report, written whole or not at all. `judged` has the parts of the data by name, none for a run
    that stopped. Raises `DiskError` or `CannotCreate`."""
    path = out / REPORT_FILE
    write_text(path, page(gathered(keeper, bundle, observer, progress, judged or {})))
    return path


def gathered(
    keeper: Keeper, bundle: Bundle, observer: Observer, progress: Progress, judged: Mapping[str, Judged]
) -> Report:
    """All that the page shows. Figures are of the test part where there is one; mistakes are of the validation part, so
    that nobody learns from the test part by looking at it."""
    part = next((name for name in ("test", "validation") if name in judged), "")
    shown = next((name for name in ("validation", "test") if name in judged), "")
    config = keeper.config
    ended = f"finished {_date(bundle.provenance.created)}" if bundle.finished else "stopped; the same command goes on"
    warned = set(observer.warnings.values())
    return Report(
        title=f"{config.arch or KINDS[config.model.family]} on {keeper.pictures.source.name}",
        lead=_lead(config, keeper.pictures),
        state=f"Run of Vitrine, {ended}",
        charts=charts(observer.records, SEVERAL if config.multi_label else CHARTS),
        kept=progress.best_epoch,
        answers=_answers(part, judged[part].metrics) if part else None,
        warnings={f"{name[0].upper()}{name[1:]}": text for name, text in observer.warnings.items()},
        notes=[note for note in bundle.notes if note not in warned],
        mistakes=mistakes(keeper, judged[shown]) if shown else (),
        beside=_beside(config),
        mistakes_of=_mistakes_of(shown, several=config.multi_label),
        facts=_facts(keeper, bundle.provenance, observer.records, progress),
        options=options(config),
    )


KINDS = {"vit": "Vision Transformer", "hybrid": "Hybrid of ResNet and Vision Transformer", "resnet": "ResNet"}


def _mistakes_of(part: str, *, several: bool) -> str:
    """What the pictures below are."""
    if several:
        return (
            f"The {part} pictures with a class wrong that the model was surest of: below each the class, and the "
            "probability that it gave it."
        )
    return f"The wrong answers to {part} pictures that the model was surest of."


def _lead(config: Config, pictures: Pictures) -> str:
    """How large the model is, and what it learnt from."""
    size = f"{num_parameters(config.model) / 1e6:.3g} million parameters"
    begin = f"started from {config.init}" if config.begins_from else "from scratch"
    of = f"in {len(pictures.class_names):,} classes" if pictures.labelled else "without labels"
    several = ", several a picture or none" if pictures.multi_label else ""
    data = f"{len(pictures.parts.train):,} pictures {of}{several}"
    return f"{size}, trained {begin} on {data}."


def _date(iso: str) -> str:
    """`2026-11-25T21:44:25+00:00` as `25 November 2026, 21:44 UTC`."""
    when = datetime.datetime.fromisoformat(iso)
    return f"{when.day} {when:%B %Y, %H:%M} UTC"


def _beside(config: Config) -> str:
    """What makes the training's curve differ from the validation's, though nothing is wrong."""
    augment = config.augment
    ways = {
        "smoothed targets": config.label_smoothing > 0,
        "mixed pictures": bool(augment.mixup or augment.cutmix),
        "augmentation": augment.policy != "none" or augment.crop_min_area < 1 or augment.rotate_deg > 0,
        "dropout": bool(config.model.drop_rate or config.model.drop_path_rate),
    }
    there = [way for way, used in ways.items() if used]
    return f"Training is judged under {' and '.join(there)}, validation without." if there else ""


def charts(
    records: Sequence[Mapping[str, Any]], wanted: Mapping[str, Mapping[str, str]] = CHARTS
) -> dict[str, list[Curve]]:
    """The curves of each chart, from records of metrics.jsonl; a value that a record lacks is left out."""
    return {
        title: [
            Curve(
                name=words,
                points=tuple((float(one["epoch"]), float(one[key])) for one in records if one.get(key) is not None),
                second=place > 0,
            )
            for place, (key, words) in enumerate(of.items())
        ]
        for title, of in wanted.items()
    }


def _answers(part: str, metrics: Metrics) -> Answers | Several:
    if metrics.multi_label:
        assert metrics.threshold is not None and metrics.chance_map is not None
        return Several(
            part=part, figures=metrics.figures, guess=metrics.chance_map, threshold=metrics.threshold,
            classes=metrics.classes,
        )  # fmt: skip
    confusion = np.array(metrics.confusion, np.int64)
    named = confusion.sum(axis=0).tolist()
    return Answers(
        part=part,
        top1=metrics.top1,
        guess=metrics.majority,
        confusion=confusion,
        classes=tuple(
            ClassRow(
                name=row.name, n=row.n, recall=row.recall,
                precision=share(int(confusion[i, i]), named[i]) if named[i] else None,
            )
            for i, row in enumerate(metrics.classes)
        ),
    )  # fmt: skip


def mistakes(keeper: Keeper, judged: Judged) -> list[Mistake]:
    """The wrong answers with the highest probability, at most `WORST`; a picture that has gone since is left out.

    Where a picture may have several classes: those of which a class was called, or not called, most surely wrongly.
    """
    found, source = judged.outputs, keeper.pictures.source.within(keeper.config.data)
    wrong = _wrong_sets(found, judged.metrics, source) if isinstance(found, Scores) else _wrong(found, source)
    shown: list[Mistake] = []
    for place, words in islice(wrong, WORST):
        i = int(judged.index[place])
        with contextlib.suppress(VitrineError):
            shown.append(Mistake(id=source.ids[i], picture=source.picture(i), **words))
    return shown


def _wrong(found: Outputs, source: Source) -> Iterator[tuple[int, dict[str, Any]]]:
    """The places of the wrong answers, the surest first, each with the words of its `Mistake`."""
    wrong, names = np.flatnonzero(~found.correct), source.class_names
    for place in wrong[np.argsort(-found.confidence[wrong], kind="stable")].tolist():
        true, said = names[found.label[place]], names[found.predicted[place]]
        yield place, {"true": true, "said": said, "probability": float(found.confidence[place])}


def _wrong_sets(found: Scores, metrics: Metrics, source: Source) -> Iterator[tuple[int, dict[str, Any]]]:
    """The same where a picture may have several classes, with the class that is the furthest from right."""
    assert metrics.threshold is not None
    probabilities, called = found.probabilities(), found.called(metrics.threshold)
    off = np.where(called == found.labels, 0.0, np.abs(probabilities - found.labels))
    worst = off.argmax(axis=1)
    wrong = np.flatnonzero(~found.all_right(metrics.threshold))

    def named(row: np.ndarray) -> str:
        return ", ".join(source.class_names[k] for k in np.flatnonzero(row))

    for place in wrong[np.argsort(-off.max(axis=1)[wrong], kind="stable")].tolist():
        k = int(worst[place])
        yield place, {
            "true": named(found.labels[place]), "said": named(called[place]), "of": source.class_names[k],
            "probability": float(probabilities[place, k]),
        }  # fmt: skip


def options(config: Config) -> tuple[Option, ...]:
    """Every option of the run with its default, in the order of the classes."""
    usual = dict(flatten(to_dict(Config())))
    return tuple(
        Option(name=name, value=_written(value), default=_written(usual.get(name)))
        for name, value in flatten(to_dict(config))
    )


def _written(value: object) -> str:
    """A value as a person writes it; nothing for one that is empty or not there."""
    if isinstance(value, list | tuple):
        return " ".join(_written(one) for one in value)
    return "" if value is None else str(value)


def _facts(
    keeper: Keeper, origin: Provenance, records: Sequence[Mapping[str, Any]], progress: Progress
) -> dict[str, str]:
    config, parts = keeper.config, keeper.pictures.parts
    facts = {
        "command": origin.command,
        "data": f"{origin.data}: {len(parts.train):,} pictures to train, {len(parts.validation):,} to validate, "
        f"{len(parts.test):,} to test",
        "fingerprint": origin.data_fingerprint,
        "length": f"{progress.step:,} steps of {config.batch_size} pictures, of {progress.epochs} epochs in all, in "
        f"{clock(progress.seconds)}",
        "model": f"{macs(config.model) / 1e6:,.3g} million multiply-accumulates a picture",
        "seed": str(config.seed),
        "machine": f"{origin.device}, {origin.precision}",
        **_speed(records),
        "versions": ", ".join(f"{name} {number}" for name, number in origin.versions.items()),
    }
    if keeper.bad:
        facts["damaged"] = f"{len(keeper.bad):,} pictures counted for nothing: {', '.join(list(keeper.bad)[:5])}"
    return facts


def _speed(records: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Pictures a second, memory and waiting, over the epochs that tell."""
    told = [one for one in records if one.get("epoch_seconds")]
    if not told:
        return {}
    seconds = sum(one["epoch_seconds"] for one in told)

    def mean(name: str) -> float:
        return sum((one.get(name) or 0.0) * one["epoch_seconds"] for one in told) / seconds

    peak = f", {mean('peak_share'):.0%} of the measured rate of matrix products" if mean("peak_share") else ""
    found = {"speed": f"{mean('epoch_pictures_per_s'):,.0f} pictures a second{peak}"}
    found["waiting"] = f"{mean('wait_share'):.1%} of the time, for pictures"
    most = max(one.get("memory_bytes") or 0 for one in told)
    return found | ({"memory": f"{amount(most)} at most"} if most else {})
