"""The course of a run, once everything is settled: the model built, fitted, judged and written down."""

from __future__ import annotations

import copy
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from vitrine.config.options import Config
from vitrine.data import loader, store
from vitrine.errors import BadData, Stopped
from vitrine.machine import device as machine
from vitrine.machine import ranks
from vitrine.machine.peaks import product_rate
from vitrine.models.vit import use_attention
from vitrine.results import Metrics
from vitrine.train import board, features, lora, modes, parallel, plan, report, shards, states
from vitrine.train.asked import Asked
from vitrine.train.distill import Teacher
from vitrine.train.finite import Lost
from vitrine.train.fit import METRICS_FILE, Job, fit, rewind_metrics
from vitrine.train.keep import Judged, Keeper, Pictures
from vitrine.train.losses import balanced
from vitrine.train.multi_label import positive_weights
from vitrine.train.observer import Observer, read_records, setting
from vitrine.train.optim import Average, optimizer
from vitrine.train.pace import space_for
from vitrine.train.parallel import Spread
from vitrine.train.saver import Saver
from vitrine.train.state import Progress
from vitrine.train.task import module_for, objective_for
from vitrine.train.watch import Watch, clock
from vitrine.weights import start
from vitrine.weights.bundle import LAST_FILE, MODEL_FILE, Bundle, open_bundle
from vitrine.weights.bundle import save as save_bundle


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a run came to: its folder, the best model, and how that does on pictures it never saw.

    `test` is None where there were too few pictures for a test part, or no labels to learn.
    """

    out: Path
    bundle: Bundle
    test: Metrics | None


def go(
    out: Path, config: Config, epochs: int, pictures: Pictures, init: Bundle | None, teacher: Teacher | None,
    watch: Watch, command: str, asked: Asked,
) -> Outcome:  # fmt: skip
    """Build the model, fit it, and judge it. A run that is lost to values that are not finite goes back once, to its
    newest state."""
    device = machine.pick(config.device)
    dtype = machine.autocast_dtype(device, config.precision)
    torch.manual_seed(config.seed)
    torch.set_num_threads(config.threads)
    network, sentences = start.initialise(config.model, pictures.class_names, init)
    sentences += modes.prepare(network, config)
    model = module_for(config, network).to(device)
    use_attention(model, machine.attention_way(device, dtype, config.model.num_tokens))
    spread, twin, said = _spread(model, config, device, dtype)
    keeper = Keeper(
        config=config, pictures=pictures, command=command, device=device, dtype=dtype, watch=watch,
        notes=plan.advice(config, pictures.photographs, len(pictures.parts.train)),
        bad={pictures.source.ids[i]: reason for i, reason in pictures.scan.bad.items()},
        teacher=f"{teacher.path} (weights {teacher.hash})" if teacher else "", spread=spread,
        # Ranks judge a part together and leave it together: a stop waits for the end of it.
        look=asked.look if ranks.here().world == 1 else lambda: None,
    )  # fmt: skip
    average = Average(model, config.ema_decay, twin) if config.ema_decay else None
    progress = Progress(epochs=epochs, fingerprint=pictures.scan.fingerprint, teacher=teacher.hash if teacher else "")
    optimiser = optimizer(model, config.optim)
    there = _taken_up(out, model, optimiser, average, pictures, teacher)
    progress, sentences = there or (progress, sentences)
    if config.compile == "on":
        model.compile()
    for sentence in [*[said] * bool(said), *sentences]:
        watch.say(sentence)
    job = _job(out, config, pictures, model, optimiser, average, dtype, keeper, watch, teacher)
    # A head on features does none of the arithmetic that is counted: there is no share of the peak to tell.
    peak = 0.0 if modes.looks_once(config) else product_rate(device, dtype)
    with asked.noted(), Saver(out, config.save, model, optimiser, average, job.save_model) as saver:
        job, notes = replace(job, peak_flops=peak, saver=saver, asked=asked), list(keeper.notes)
        try:
            return _fitted(job, progress, keeper, pictures)
        except Lost as lost:
            saver.wait()
            ranks.wait()  # until it is written that they go back to
            there = _taken_up(out, model, optimiser, average, pictures, teacher)
            if there is None:
                raise
            watch.say(f"warning: {lost} Once the run goes back by itself: {there[1][-1]}")
            keeper.notes[:] = notes
            there[0].seconds = max(there[0].seconds, progress.seconds)
        return _fitted(job, there[0], keeper, pictures)


def _taken_up(
    out: Path, model: nn.Module, optimiser: torch.optim.Optimizer, average: Average | None, pictures: Pictures,
    teacher: Teacher | None,
) -> tuple[Progress, list[str]] | None:  # fmt: skip
    """How far the newest whole state is, which is put into the given objects, and what is to be said; None for none."""
    there = states.newest(out)
    if there is None:
        return None
    path, tensors, facts, passed_over = there
    progress, sentences = states.put(path, tensors, facts, model, optimiser, average)
    ranks.require_same(f"{out}: the newest state of the run", progress.step)
    _require_same_pictures(out, progress, pictures)
    _require_same_teacher(out, progress, teacher)
    return progress, [*passed_over, *sentences, f"going on from step {progress.step:,} ({path.name})"]


def _fitted(job: Job, progress: Progress, keeper: Keeper, pictures: Pictures) -> Outcome:
    """The rest of a run from `progress` on: fitted, judged, written down."""
    config, watch = job.config, job.watch
    known = progress.step - progress.ending  # of an epoch whose end is still to come nothing is known
    rewind_metrics(job.out, known)
    boarded = config.tensorboard and ranks.first()
    with closing(board.Board(job.out, known)) if boarded else nullcontext() as shown:
        observer = Observer(
            read_records(job.out / METRICS_FILE),
            setting(config, pictures.source.labels[pictures.parts.validation], job.steps_per_epoch),
            watch=watch, notes=keeper.notes, board=shown,
        )  # fmt: skip
        job = replace(job, on_epoch=observer)
        total = progress.epochs * job.steps_per_epoch
        watch.begin("training", total * job.batch_size, done=progress.step * job.batch_size)
        try:
            with space_for(config.batch_size, "Begin anew in another --out with"):
                fit(job, progress)
            watch.end()
            return _finish(job, progress, keeper, pictures, observer)
        except Stopped:
            last = keeper.bundle(job.judged, progress)
            if ranks.first():
                report.write(job.out, keeper, last, observer, progress)
            raise


def _spread(
    model: nn.Module, config: Config, device: torch.device, dtype: torch.dtype | None
) -> tuple[Spread, nn.Module | None, str]:
    """How the ranks share the model, which is parted in place where they do; a copy for the average, parted alike,
    where there is one; and a sentence for the user."""
    free = min(ranks.each(machine.memory_bytes(device)))
    mode, said = parallel.chosen(config, sum(p.numel() for p in model.parameters()), free)
    twin = copy.deepcopy(model) if config.ema_decay else None
    return parallel.spread(mode, [model] if twin is None else [model, twin], config, device, dtype), twin, said


def _job(
    out: Path, config: Config, pictures: Pictures, model: nn.Module, optimiser: torch.optim.Optimizer,
    average: Average | None, dtype: torch.dtype | None, keeper: Keeper, watch: Watch, teacher: Teacher | None,
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
    weights = _class_weights(config, pictures, keeper)
    by = f"by {config.num_workers} processes" if config.num_workers else "ahead of the training"
    watch.say(f"pictures: {'kept in memory' if kept.in_memory else f'decoded as they are needed, {by}'}")
    batch_size = min(config.batch_size, len(pictures.parts.train))
    batches = partial(
        loader.training, kept, pictures.source, pictures.parts.train, size=config.model.size,
        batch_size=batch_size, seed=config.seed, augment=config.augment,
        num_workers=config.num_workers, on_bad=keeper.on_bad, squash=config.preprocess.resize == "squash",
        share=(keeper.spread.number, keeper.spread.parts),
    )  # fmt: skip
    job = Job(
        out=out, config=config, model=model, optimizer=optimiser, average=average, dtype=dtype, batch_size=batch_size,
        steps_per_epoch=loader.steps_per_epoch(len(pictures.parts.train), batch_size),
        objective=objective_for(config, keeper.device, teacher=teacher, class_weights=weights),
        batches=lambda first, last: batches(first_step=first, last_step=last),
        validate=keeper.validate if len(pictures.parts.validation) else None,
        save_model=keeper.save_model, watch=watch, spread=keeper.spread,
    )  # fmt: skip
    job = features.with_features(job, keeper, kept, weights) if modes.looks_once(config) else job
    spread, objective = job.spread.meeting(model, job.objective)
    return replace(job, spread=spread, objective=objective)


def _class_weights(config: Config, pictures: Pictures, keeper: Keeper) -> Tensor | None:
    """The weights of the classes on the device, where they are asked for."""
    if config.class_weights == "none":
        return None
    weigh = positive_weights if config.multi_label else balanced
    weights = weigh(pictures.source.labels[pictures.parts.train], config.model.num_classes)
    keeper.watch.say(
        f"classes: a picture counts {weights.min():.2g} to {weights.max():.2g} times by how rare its class is"
    )
    return weights.to(keeper.device)


def _judged(job: Job, keeper: Keeper, pictures: Pictures, best: Bundle) -> dict[str, Judged]:
    """The kept weights judged on each part that has labels to judge by, at the threshold that does best on the
    validation part, where a picture may have several classes."""
    if not pictures.labelled:
        return {}
    if job.spread.parted:
        shards.fill(job.judged, best.tensors)
    else:
        lora.fill(job.judged, best.tensors)
    found, threshold = dict[str, Judged](), best.threshold
    if job.validate is not None:
        found["validation"] = keeper.judge(job.judged, pictures.parts.validation)
        threshold = found["validation"].metrics.threshold or threshold
    if len(pictures.parts.test):
        job.watch.say(f"measuring on {len(pictures.parts.test):,} pictures kept for the test")
        found["test"] = keeper.judge(job.judged, pictures.parts.test, threshold)
    return found


def _finish(job: Job, progress: Progress, keeper: Keeper, pictures: Pictures, observer: Observer) -> Outcome:
    """Judge the kept weights on the test part, write both bundles as finished and the report, and drop the state.

    A signal that comes while it is judged leaves the state, from which only the judging is done again; one that comes
    later changes nothing any more.
    """
    assert job.saver is not None
    job.saver.wait()
    if modes.looks_once(job.config):
        job.save_model(job.out / LAST_FILE, job.judged, progress)  # and the best that waits
    elif job.validate is None:
        job.save_model(job.out / MODEL_FILE, job.judged, progress)  # and its adapter
    best_file, last = job.out / MODEL_FILE, keeper.bundle(job.judged, progress)
    # A copy: the model is soon given the best weights, to be judged with them.
    last = replace(last, tensors={name: tensor.clone() for name, tensor in last.tensors.items()})
    ranks.wait()  # until rank 0 has written
    notes = list(last.notes)
    if job.validate is None:
        notes.append("the last weights, averaged where ema_decay is set: there was no validation part to choose by")
        best = last if not job.spread.parted else open_bundle(best_file)
    else:
        best = open_bundle(best_file)
    judged = _judged(job, keeper, pictures, best)
    figures = {part: found.metrics.figures for part, found in judged.items()} if pictures.labelled else best.metrics
    threshold = next((found.metrics.threshold for found in judged.values()), None) or best.threshold
    best = replace(best, metrics=figures, finished=True, notes=tuple(notes), threshold=threshold)
    test = judged["test"].metrics if "test" in judged else None
    ranks.wait()  # until every rank has read
    if ranks.first():
        if job.config.mode == "lora" and job.config.multi_label:
            lora.retell(job.out / lora.FOLDER, job.config, threshold)
        save_bundle(best, best_file)
        save_bundle(replace(last, finished=True), job.out / LAST_FILE)
        report.write(job.out, keeper, best, observer, progress, judged)
        states.drop(job.out, job.config.save)
    if keeper.bad:
        job.watch.say(f"{len(keeper.bad)} damaged pictures counted for nothing: {', '.join(list(keeper.bad)[:5])}")
    job.watch.say(
        f"{job.out}: done in {clock(progress.seconds)}; best epoch {best.provenance.epoch} of {progress.epochs}"
    )
    job.asked.over = True
    return Outcome(out=job.out, bundle=best, test=test)


def _require_same_pictures(out: Path, progress: Progress, pictures: Pictures) -> None:
    if progress.fingerprint != pictures.scan.fingerprint:
        raise BadData(f"{out}: the pictures have changed since this run began. Begin anew with another --out.")


def _require_same_teacher(out: Path, progress: Progress, teacher: Teacher | None) -> None:
    if teacher is not None and progress.teacher != teacher.hash:
        raise BadData(
            f"{out}: the teacher {teacher.path} has changed since this run began. Begin anew in another --out."
        )
