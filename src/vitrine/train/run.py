"""A whole run: from the name of the data to a finished folder. The order of the calls is the order of events."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from vitrine.config import text
from vitrine.config.options import Config
from vitrine.config.text import Nested, flatten, from_dict, merge, nested, read_toml, to_dict, write_toml
from vitrine.data import checks, loader, scan, sources, splits, store
from vitrine.errors import BadData, CannotCreate, UsageError, VitrineError
from vitrine.files import SYNCS_FOLDERS
from vitrine.machine import device as machine
from vitrine.models.networks import Network
from vitrine.models.vit import use_attention
from vitrine.results import Metrics
from vitrine.train import plan, state
from vitrine.train.claim import LOCK_FILE, claimed
from vitrine.train.fit import Job, fit, rewind_metrics
from vitrine.train.keep import Keeper, Pictures
from vitrine.train.losses import balanced
from vitrine.train.multi_label import positive_weights
from vitrine.train.objective import objective_of
from vitrine.train.optim import Average, optimizer
from vitrine.train.pace import best_threads, space_for
from vitrine.train.state import STATE_FILE, Progress
from vitrine.train.watch import Watch, clock
from vitrine.weights import start
from vitrine.weights.bundle import LAST_FILE, MODEL_FILE, Bundle, facts_of, open_bundle
from vitrine.weights.bundle import save as save_bundle
from vitrine.weights.opening import open_model

CONFIG_FILE = "config.toml"
ASKED_OF_A_FILE = ("num_heads", "head_dim", "norm_eps", "act_layer")
"""Options of the model that a public weight file may leave open; the rest of them is for the model to come."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a run came to: its folder, the best model, and how that does on pictures it never saw.

    `test` is None where there were too few pictures for a test part.
    """

    out: Path
    bundle: Bundle
    test: Metrics | None


def train(
    source: str | Path | None, /, out: str | Path, *, watch: Watch | None = None, command: str = "", **options: Any
) -> Outcome:
    """Train a ViT on the data at `source` into the folder `out`, or go on with the run that stopped there.

    `options` are those of `Config`, dotted names with two underscores (`optim__lr=1e-3`) or nested dicts.
    Raises `CannotCreate` where a finished run stands, `UsageError` where a stopped one had other options,
    `BadData`, `Diverged`, `Stopped`, and what opening the data and the model to start from raise.
    """
    folder, given = Path(out), nested(options)
    if source is not None:
        given = merge(given, {"data": {"source": str(source).rstrip("/") or "/"}})
    from_dict(text.partial(Config), given)  # names and types are checked before any work
    with watch or Watch() as seen:
        stopped = resumable(folder, given)
        settings = stopped.data if stopped else from_dict(Config, {"data": given.get("data", {})}).data
        init = _init(folder, stopped, given, seen)
        pictures = _open(settings, seen)
        if stopped:
            config, epochs = stopped, stopped.epochs
            _require_same_classes(folder, config, pictures)
        else:
            config, epochs = _settle(given, pictures, init, seen)
        with claimed(folder):
            if resumable(folder, given) != stopped:
                raise CannotCreate(f"{folder}: another process has trained here meanwhile. Choose another --out.")
            if stopped is None:
                write_toml(config, folder / CONFIG_FILE)
            return _train(folder, config, epochs, pictures, init, seen, command)


def _of_no_account(entry: Path) -> bool:
    """Whether an entry of a run folder is a lock or the part of a file that a kill left."""
    return entry.name == LOCK_FILE or (entry.name.startswith(".") and entry.suffix == ".part")


def _init(out: Path, stopped: Config | None, given: Nested, watch: Watch) -> Bundle | None:
    """The model to start from, how it was understood being said; a run that has its state needs it no more."""
    path = stopped.init if stopped else given.get("init", "")
    if not path or (out / STATE_FILE).exists():
        return None
    own = {name: value for name, value in given.get("model", {}).items() if name in ASKED_OF_A_FILE}
    try:
        found = open_model(path, given=own)
    except VitrineError as error:
        detour = any(option in str(error) for option in ("--format", "--entry", "--model.num-classes 0"))
        way = f" Here by a detour: `vitrine export {path} --to vitrine --out FILE` takes it; start from FILE."
        raise type(error)(f"{error}{way if detour else ''}") from error
    if found.format != "vitrine":
        for sentence in (f"--init: {found.title}", *found.said):
            watch.say(sentence)
    return found.bundle


def resumable(out: Path, given: Nested) -> Config | None:
    """The configuration of the stopped run in `out`, or None where there is none.

    Raises `CannotCreate` for a finished run or a folder that is none, `UsageError` naming the options in
    which `given` differs from those of the stopped run.
    """
    if not out.exists() or (out.is_dir() and all(_of_no_account(entry) for entry in out.iterdir())):
        if not given.get("data", {}).get("source"):
            raise UsageError(f"--out {out}: there is no run to go on with; give DATA to begin one.")
        return None
    if not (out / CONFIG_FILE).is_file():
        raise CannotCreate(f"{out}: exists and is not a run of vitrine. Choose another --out.")
    if any((out / name).exists() and facts_of(out / name).finished for name in (LAST_FILE, MODEL_FILE)):
        raise CannotCreate(f"{out}: a finished run stands here and is not overwritten. Choose another --out.")
    stored = read_toml(out / CONFIG_FILE)
    was = dict(flatten(to_dict(from_dict(Config, stored))))
    other = [
        f"{name} = {value!r} (it began with {was.get(name)!r})"
        for name, value in flatten(given)
        if (list(value) if isinstance(value, tuple) else value) != was.get(name)
    ]
    if other:
        raise UsageError(
            f"{out}: the run that stopped here had other options: {', '.join(other)}. "
            "Give the same ones to go on with it, or another --out to begin anew."
        )
    return from_dict(Config, stored)


def _settle(given: Nested, pictures: Pictures, init: Bundle | None, watch: Watch) -> tuple[Config, int]:
    """Every option settled, and the epochs to begin with; the plan is told with its reasons."""
    device = machine.pick(given.get("device", "auto"))
    facts = _facts(pictures, device, init)
    watch.say(f"device: {machine.describe(device)}")
    config, reasons = plan.decide(facts, given)
    if init is not None:
        start.require_same_architecture(config.model, init.model)  # before the time that measuring takes
    every = torch.get_num_threads()
    threads, step_s = best_threads(config, device, facts.num_train)
    if threads < every and not config.threads:
        reasons.append(f"threads: {threads}, measured faster here than {every} for this model")
    config, epochs, length = plan.with_length(replace(config, threads=threads), facts, given, step_s)
    for sentence in [*reasons, *length, *plan.advice(config, facts.photographs, facts.num_train)]:
        watch.say(sentence)
    if not SYNCS_FOLDERS:
        watch.say("this system cannot sync a folder: a power cut just after a save may undo it")
    return config, epochs


def _open(settings: Any, watch: Watch) -> Pictures:
    source = sources.open_source(settings)
    watch.begin("looking at every picture", len(source))
    scanned = scan.scan(source, settings, lambda done, total: watch.at(done, total))
    watch.end()
    parts = splits.split(source, scanned.bad, settings)
    for line in checks.report(source, scanned, parts).lines():
        watch.say(line)
    return Pictures(source=source, scan=scanned, parts=parts)


def _photographs(pictures: Pictures) -> bool:
    """Whether the pictures are files larger than thumbnails."""
    return pictures.source.arrays is None and max(pictures.scan.median_size) > 48


def _facts(pictures: Pictures, device: torch.device, init: Bundle | None) -> plan.Facts:
    share = pictures.source.labels[pictures.parts.train].mean() if pictures.source.multi_label else None
    return plan.Facts(
        mean_share=None if share is None else float(share),
        num_train=len(pictures.parts.train),
        class_names=pictures.source.class_names,
        median_size=pictures.scan.median_size,
        photographs=_photographs(pictures),
        grey=pictures.scan.grey,
        on_cpu=device.type == "cpu",
        cores=machine.num_cores(),
        memory_bytes=machine.memory_bytes(device),
        compiler=machine.has_compiler(),
        init=init,
    )


def _train(
    out: Path, config: Config, epochs: int, pictures: Pictures, init: Bundle | None, watch: Watch, command: str
) -> Outcome:
    """Build the model, fit it, and judge it."""
    device = machine.pick(config.device)
    dtype = machine.autocast_dtype(device, config.precision)
    torch.manual_seed(config.seed)
    torch.set_num_threads(config.threads)
    model, sentences = start.initialise(config.model, pictures.source.class_names, init)
    model.to(device)
    use_attention(model, machine.attention_way(device, dtype, config.model.num_tokens))
    keeper = Keeper(
        config=config, pictures=pictures, command=command, device=device, dtype=dtype, watch=watch,
        notes=plan.advice(config, _photographs(pictures), len(pictures.parts.train)),
        bad={pictures.source.ids[i]: reason for i, reason in pictures.scan.bad.items()},
    )  # fmt: skip
    average = Average(model, config.ema_decay) if config.ema_decay else None
    progress = Progress(epochs=epochs, fingerprint=pictures.scan.fingerprint)
    optimiser = optimizer(model, config.optim)
    if (out / STATE_FILE).exists():
        progress, sentences = state.load(out / STATE_FILE, model, optimiser, average)
        _require_same_pictures(out, progress, pictures)
        sentences.append(f"going on from step {progress.step:,}")
    if config.compile == "on":
        model.compile()
    rewind_metrics(out, progress.step)
    for sentence in sentences:
        watch.say(sentence)
    job = _job(out, config, pictures, model, optimiser, average, dtype, keeper, watch)
    total = progress.epochs * job.steps_per_epoch
    watch.begin("training", total * job.batch_size, done=progress.step * job.batch_size)
    with space_for(config.batch_size, "Begin anew in another --out with"):
        fit(job, progress)
    watch.end()
    return _finish(job, progress, keeper, pictures)


def _require_same_pictures(out: Path, progress: Progress, pictures: Pictures) -> None:
    if progress.fingerprint != pictures.scan.fingerprint:
        raise BadData(f"{out}: the pictures have changed since this run began. Begin anew with another --out.")


def _require_same_classes(out: Path, config: Config, pictures: Pictures) -> None:
    source = pictures.source
    if len(source.class_names) != config.model.num_classes or source.multi_label != config.multi_label:
        raise BadData(f"{out}: the classes have changed since this run began. Begin anew with another --out.")


def _job(
    out: Path, config: Config, pictures: Pictures, model: Network, optimiser: torch.optim.Optimizer,
    average: Average | None, dtype: torch.dtype | None, keeper: Keeper, watch: Watch,
) -> Job:  # fmt: skip
    """The pieces of the loop, put together."""
    height, width = config.model.size
    # A third more than the model sees leaves room for the random crop without decoding again.
    keep_side = round(max(height, width) * 4 / 3) if config.augment.crop_min_area < 1 else max(height, width)
    watch.begin("loading the pictures", len(pictures.source))
    kept = store.store(
        pictures.source, pictures.scan, channels=config.model.in_chans, keep_side=keep_side,
        budget_bytes=machine.memory_bytes(torch.device("cpu")) // 4, progress=lambda done, total: watch.at(done, total),
    )  # fmt: skip
    watch.end()
    weights = None
    if config.class_weights == "balanced":
        weigh = positive_weights if config.multi_label else balanced
        weights = weigh(pictures.source.labels[pictures.parts.train], config.model.num_classes)
        watch.say(
            f"classes: a picture counts {weights.min():.2g} to {weights.max():.2g} times by how rare its class is"
        )
        weights = weights.to(next(model.parameters()).device)
    by = f"by {config.num_workers} processes" if config.num_workers else "ahead of the training"
    watch.say(f"pictures: {'kept in memory' if kept.in_memory else f'decoded as they are needed, {by}'}")
    batch_size = min(config.batch_size, len(pictures.parts.train))
    batches = partial(
        loader.training, kept, pictures.source, pictures.parts.train, size=config.model.size,
        batch_size=batch_size, seed=config.seed, augment=config.augment,
        num_workers=config.num_workers, on_bad=keeper.on_bad, squash=config.preprocess.resize == "squash",
    )  # fmt: skip
    return Job(
        out=out, config=config, model=model, optimizer=optimiser, average=average, dtype=dtype, batch_size=batch_size,
        steps_per_epoch=loader.steps_per_epoch(len(pictures.parts.train), batch_size),
        objective=objective_of(config, weights),
        batches=lambda first, last: batches(first_step=first, last_step=last),
        validate=keeper.validate if len(pictures.parts.validation) else None,
        save_model=keeper.save_model, watch=watch,
    )  # fmt: skip


def _finish(job: Job, progress: Progress, keeper: Keeper, pictures: Pictures) -> Outcome:
    """Judge the kept weights on the test part, write both bundles as finished, and drop the state."""
    best_file, last = job.out / MODEL_FILE, keeper.bundle(job.judged, progress)
    notes = list(last.notes)
    if job.validate is None:
        notes.append("the last weights, averaged where ema_decay is set: there was no validation part to choose by")
        best = last
    else:
        best = open_bundle(best_file)
        job.judged.load_state_dict(dict(best.tensors))
    figures, test, threshold = {}, None, best.threshold
    if len(pictures.parts.validation):
        found = keeper.measure(job.judged, pictures.parts.validation)
        figures["validation"], threshold = found.figures, found.threshold or threshold
    if len(pictures.parts.test):
        job.watch.say(f"measuring on {len(pictures.parts.test):,} pictures kept for the test")
        test = keeper.measure(job.judged, pictures.parts.test, threshold)
        figures["test"] = test.figures
    best = replace(best, metrics=figures, finished=True, notes=tuple(notes), threshold=threshold)
    save_bundle(best, best_file)
    save_bundle(replace(last, finished=True), job.out / LAST_FILE)
    (job.out / STATE_FILE).unlink(missing_ok=True)
    if keeper.bad:
        job.watch.say(f"{len(keeper.bad)} damaged pictures counted for nothing: {', '.join(list(keeper.bad)[:5])}")
    job.watch.say(
        f"{job.out}: done in {clock(progress.seconds)}; best epoch {best.provenance.epoch} of {progress.epochs}"
    )
    return Outcome(out=job.out, bundle=best, test=test)
