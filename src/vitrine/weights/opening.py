"""A model of any origin to a `Bundle`: our own file, a public one in any known format, or a hub id."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vitrine.config.options import PreprocessConfig
from vitrine.errors import BadData, NotFound, UsageError, VitrineError
from vitrine.models.networks import first_filter, network
from vitrine.results import Provenance
from vitrine.weights import adapter, hub
from vitrine.weights import bundle as bundles
from vitrine.weights.bundle import MODEL_FILE, Bundle, check_tensors
from vitrine.weights.container import is_ours
from vitrine.weights.foreign import Format, Raw, Reading
from vitrine.weights.formats import registry
from vitrine.weights.labels import class_names, from_file
from vitrine.weights.reading import no_parts, read_raw
from vitrine.weights.resample import resized
from vitrine.weights.start import adapt_channels

OURS, OURS_TITLE = "vitrine", "a bundle of Vitrine"
"""Name and title of our own format."""


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A model as a bundle, and how it came about: the format and what became of each tensor.

    `path` is what was asked for. `used`, `dropped` and `fresh` are as in `Reading`; `said` are sentences for the
    user, each once: what was chosen, assumed, or came with the source.
    """

    path: str
    bundle: Bundle
    format: str
    title: str
    used: tuple[str, ...] = ()
    dropped: Mapping[str, str] = field(default_factory=dict)
    fresh: Mapping[str, str] = field(default_factory=dict)
    said: tuple[str, ...] = ()


def open_model(
    path: str | Path,
    *,
    given: Mapping[str, Any] | None = None,
    labels: str | Path | None = None,
    format: str | None = None,
    entry: str = "",
) -> Opened:
    """The model at `path`: a run folder, a bundle, a public weight file or folder, `hf://organisation/name`.

    `given` are options of the model by name: facts that the file does not hold, another `img_size`, `patch_size`
    or `in_chans`. `labels` is a file of class names, `format` the name of one where a file fits several, `entry` the
    part of a training file to read, such as `model_ema`. Raises `NotFound`, `BadData`, `UsageError` for a fact
    that is missing or a format that cannot be told, `BadConfig`, `Unavailable`, `DiskError`.
    """
    given = given or {}
    if format not in (None, OURS):
        registry.chosen(format)
    local, told = hub.fetch(str(path)) if hub.is_id(path) else (Path(path), ())
    if format is None and not entry and adapter.is_adapter(local):
        found = _adapted(local, str(path), given, labels)
        return replace(_fitted(found, given), said=tuple(dict.fromkeys((*told, *found.said))))
    ours = _ours(local, str(path))
    if ours is not None:
        if format not in (None, OURS):
            raise UsageError(f"{path}: is {OURS_TITLE}, not of the format {format}. Leave --format out.")
        if entry:
            raise no_parts(entry, str(path))
        found = _own(ours, str(path), labels)
    else:
        raw = replace(read_raw(local, given, entry=entry), path=str(path))
        found = _foreign(raw, _format(raw, format), labels)
    found = _fitted(found, given)
    return replace(found, said=tuple(dict.fromkeys((*told, *found.said))))


def _ours(path: Path, told: str) -> Path | None:
    """The bundle at `path` or in the run folder there; None where it is no file of ours. Raises `NotFound`."""
    if not path.exists() and not path.is_symlink():
        hub.require_no_address(told)
        try:
            return bundles.locate(path)  # says how one comes to be there
        except NotFound as error:
            raise NotFound(f"{error}{hub.meant(path)}") from None
    if (path / "config.toml").exists() and not (path / MODEL_FILE).exists():
        return bundles.locate(path)  # a run without a model yet: this says so
    place = path / MODEL_FILE if path.is_dir() else path
    return place if place.is_file() and is_ours(place) else None


def _own(file: Path, path: str, labels: str | Path | None) -> Opened:
    bundle = bundles.open_bundle(file)
    said: tuple[str, ...] = ()
    if labels is not None:
        bundle = replace(bundle, class_names=from_file(Path(labels), bundle.model.num_classes))
        said = (f"class names: from {labels}",)
    return Opened(path=path, bundle=bundle, format=OURS, title=OURS_TITLE, used=tuple(bundle.tensors), said=said)


def _adapted(local: Path, path: str, given: Mapping[str, Any], labels: str | Path | None) -> Opened:
    """An adapter folder as the model it makes of its base, which is opened too; sizes in `given` are for later."""
    adapters, base = adapter.chain(local)
    sizes = ("img_size", "patch_size", "in_chans", "num_classes")
    found = open_model(base, given={name: value for name, value in given.items() if name not in sizes})
    made, said = found.bundle, list(found.said)
    for place, one in reversed(list(enumerate(adapters))):
        made, told = adapter.applied(made, one, local, labels if place == 0 else None)
        said += told
    provenance = Provenance(init=f"{path} ({adapter.TITLE}) on {base}")
    made = replace(made, provenance=provenance, notes=tuple(said))
    used = tuple(f"{name} (merged)" for name in adapters[0].factors) + tuple(adapters[0].saved)
    return Opened(
        path=path, bundle=made, format="peft", title=f"{adapter.TITLE} on {base}", used=used, said=tuple(said)
    )  # fmt: skip


def _format(raw: Raw, asked: str | None) -> Format:
    """The one format that `raw` is of, or the one asked for. Raises `BadData` or `UsageError`."""
    if asked == OURS:
        raise BadData(f"{raw.path}: is not {OURS_TITLE}. Leave --format out to have the format found.")
    if asked is not None:
        return registry.chosen(asked)
    found = registry.fitting(raw)
    if len(found) == 1:
        return found[0]
    if found:
        several = "; ".join(f"{one.name}: {one.title}" for one in found)
        raise UsageError(f"{raw.path}: fits several formats. Choose one by --format NAME: {several}.")
    names = list(raw.tensors)
    seen = ", ".join(f"{name} {list(raw.shape(name))}" for name in [*names[:4], *names[4:][-2:]])
    raise BadData(
        f"{raw.path}: {len(names)} tensors of no known format: {seen or 'none at all'}. "
        f"Known are {', '.join((OURS, *registry.readable()))}; --format NAME tries one and says what is missing."
    )


def _foreign(raw: Raw, format: Format, labels: str | Path | None) -> Opened:
    """A stranger's tensors as a bundle, strictly."""
    reading = _read(raw, format)
    tensors, widened = _in_float32(reading.tensors)
    _check(raw, format, reading, tensors)
    names, source = class_names(reading.model.num_classes, raw.config, own=reading.class_names, labels=labels)
    said = tuple(filter(None, (*raw.said, *reading.said, _as_given(raw), widened, _not_finite(tensors), source)))
    bundle = Bundle(
        model=reading.model,
        preprocess=reading.preprocess,
        class_names=names,
        tensors=tensors,
        provenance=Provenance(
            init=f"{raw.path} ({format.title})", created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        ),
        notes=said,
        multi_label=reading.multi_label,
    )
    return Opened(
        path=raw.path, bundle=bundle, format=format.name, title=format.title, used=reading.used,
        dropped=reading.dropped, fresh=reading.fresh, said=said,
    )  # fmt: skip


def _read(raw: Raw, format: Format) -> Reading:
    """What the format makes of the tensors; where they are not of it, as it was asked for, its error says so."""
    try:
        return format.read(raw)
    except BadData as error:
        message, cause = str(error), error
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError, StopIteration) as error:
        if format.fits(raw):
            raise  # a fault of the reader's, not of whoever chose the format
        message, cause = "names or shapes that it needs are not there.", BadData(str(error))
    if not message.startswith(raw.path):
        message = f"{raw.path}: as {format.title}: {message}"
    others = [] if format.fits(raw) else [found.name for found in registry.fitting(raw)]
    hint = f" It fits {' and '.join(others)}: leave --format out." if others else ""
    raise BadData(message + hint) from cause


def _as_given(raw: Raw) -> str:
    """A sentence on the options that the user gave, which go before what a file or a convention says."""
    given = {name: value for name, value in raw.given.items() if name not in ("img_size", "patch_size", "in_chans")}
    told = ", ".join(f"{name} = {value}" for name, value in given.items())
    return f"as given, before what the file says: {told}" if told else ""


def _in_float32(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """The tensors with every other float type widened or narrowed to float32, and a sentence where one was."""
    other = {tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()} - {torch.float32}
    if not other:
        return dict(tensors), ""
    kinds = " and ".join(sorted(str(kind).removeprefix("torch.") for kind in other))
    found = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    return found, f"weights: stored as {kinds}, computed in float32"


def _check(raw: Raw, format: Format, reading: Reading, tensors: Mapping[str, Tensor]) -> None:
    """Raise `BadData` unless the tensors are those of the model, no more and no fewer, in shape and kind."""
    try:
        with torch.device("meta"):
            wanted = network(reading.model).state_dict()
        check_tensors(wanted, tensors)
    except VitrineError as error:
        raise type(error)(f"{raw.path}: as {format.title}: {error}") from error
    wrong = [f"{name} ({tensor.dtype})" for name, tensor in tensors.items() if not tensor.is_floating_point()]
    if wrong:
        raise BadData(f"{raw.path}: weights that are no floating point numbers: {', '.join(wrong[:8])}.")


def _not_finite(tensors: Mapping[str, Tensor]) -> str:
    """A sentence on weights that are NaN or infinite, or an empty one."""
    bad = []
    for name, tensor in tensors.items():
        # One sum finds them at the speed of memory; it may overflow too, so the few that it picks are counted. numpy's
        # is as fast on one core as torch's on all, and does not wait for cores that others use.
        with np.errstate(all="ignore"):
            suspect = not np.isfinite(tensor.detach().numpy().sum())
        if suspect and (count := int((~torch.isfinite(tensor)).sum())):
            bad.append(f"{count:,} of {name}")
    return f"warning: weights that are not finite: {', '.join(bad[:8])}; the answers will not be either" if bad else ""


def _fitted(found: Opened, given: Mapping[str, Any]) -> Opened:
    """The model at the size and for the channels that were asked for."""
    bundle = found.bundle
    ways = {name: value for name, value in given.items() if name.startswith("pos_") and found.format == OURS}
    bundle = replace(bundle, model=replace(bundle.model, **ways))
    config, tensors, notes = resized(bundle.model, bundle.tensors, given.get("img_size"), given.get("patch_size"))
    preprocess = bundle.preprocess
    channels = given.get("in_chans", config.in_chans)
    if channels != config.in_chans:
        key = first_filter(config)
        weight, changed = adapt_channels(tensors[key], channels)
        tensors = {**tensors, key: weight}
        config = replace(config, in_chans=channels)
        preprocess = _for_channels(preprocess, channels)
        notes = (*notes, *changed)
    if config == bundle.model:
        return replace(found, bundle=bundle)
    if config.size != bundle.model.size:
        preprocess = replace(preprocess, size=config.size)
    notes = tuple(note for note in notes if note)
    bundle = replace(
        bundle, model=config, tensors=tensors, preprocess=preprocess, notes=(*bundle.notes, *notes), metrics={}
    )  # fmt: skip
    return replace(found, bundle=bundle, said=(*found.said, *notes))


def _for_channels(preprocess: PreprocessConfig, channels: int) -> PreprocessConfig:
    """Mean and deviation for another number of channels: one value repeated, or the mean of three."""
    mean, std = (
        values * channels if len(values) == 1 else (sum(values) / len(values),)
        for values in (preprocess.mean, preprocess.std)
    )
    return replace(preprocess, mean=mean, std=std)
