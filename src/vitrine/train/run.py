"""A whole run: from the name of the data to a finished folder. The order of the calls is the order of events."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from vitrine.config import text
from vitrine.config.distill import DistillConfig
from vitrine.config.options import FROM_SCRATCH, Config
from vitrine.config.parallel import ParallelConfig
from vitrine.config.recipes import recipe
from vitrine.config.text import Nested, flatten, from_dict, merge, nested, read_toml, to_dict, write_toml
from vitrine.data import checks, hub_set, scan, sources, splits
from vitrine.errors import BadData, CannotCreate, UsageError
from vitrine.files import SYNCS_FOLDERS
from vitrine.hub import is_id
from vitrine.machine import device as machine
from vitrine.machine import ranks
from vitrine.train import beginning, board, course, follow, length, modes, parallel, plan, states
from vitrine.train.asked import Asked, heard
from vitrine.train.claim import LOCK_FILE, claimed
from vitrine.train.distill import Teacher, matched, open_teacher
from vitrine.train.keep import Pictures
from vitrine.train.pace import best_threads, seconds_per_head_step
from vitrine.train.watch import Watch
from vitrine.weights import start
from vitrine.weights.bundle import LAST_FILE, MODEL_FILE, Bundle, facts_of

CONFIG_FILE = "config.toml"


def train(
    source: str | Path | None, /, out: str | Path, *, watch: Watch | None = None, command: str = "", **options: Any
) -> course.Outcome:
    """Train a ViT on the data at `source` into the folder `out`, or go on with the run that stopped there.

    `options` are those of `Config`, dotted names with two underscores (`optim__lr=1e-3`) or nested dicts.
    Raises `CannotCreate` where a finished run stands, `UsageError` where a stopped one had other options,
    `BadData`, `Diverged`, `Stopped`, and what opening the data and the model to start from raise.
    """
    folder, given = Path(out), nested(options)
    if source is not None:
        given = merge(given, {"data": {"source": _as_begun(folder, str(source).rstrip("/") or "/")}})
    from_dict(text.partial(Config), given)  # names and types are checked before any work
    wanted = from_dict(ParallelConfig, given.get("parallel", {}), "parallel.")
    kind = machine.pick(given.get("device", "auto")).type if ranks.asked().world > 1 else "cpu"
    with heard(folder) as asked, ranks.joined(kind, wanted.timeout_s):
        told = (watch or Watch()) if ranks.first() else Watch(quiet=True)
        told.alive = ranks.beat
        with told as seen:
            return _train(folder, given, seen, command, asked)


def _train(folder: Path, given: Nested, seen: Watch, command: str, asked: Asked) -> course.Outcome:
    """The run, by this rank: rank 0 settles it, all open the data, and see that it is the same."""
    if given.get("recipe"):
        of_recipe = recipe(given["recipe"]).options
        given = merge({name: of_recipe[name] for name in ("task", "mode", "distill") if name in of_recipe}, given)
    stopped = ranks.from_first(
        lambda: resumable(folder, given), lambda found: found and to_dict(found), lambda sent: sent and _config(sent)
    )
    labelled = (stopped.task if stopped else given.get("task", "classify")) == "classify"
    if stopped.tensorboard if stopped else given.get("tensorboard"):
        board.require()
    settings = stopped.data if stopped else from_dict(Config, {"data": given.get("data", {})}).data
    init = _init(folder, stopped, given, seen)
    follows = stopped.distill if stopped else from_dict(DistillConfig, given.get("distill", {}), "distill.")
    teacher = open_teacher(follows) if labelled else None
    pictures = _open(settings, seen, labelled)
    if teacher is not None:
        teacher = matched(teacher, pictures.class_names, several=pictures.multi_label)
        for sentence in teacher.said:
            seen.say(sentence)
    if stopped:
        config, epochs = stopped, stopped.epochs
        _require_same_classes(folder, config, pictures)
    else:
        if pictures.source.again:
            given = merge(given, {"data": {"source": pictures.source.again}})
        config, epochs, init = _settled_by_first(given, pictures, init, teacher, seen)
    parallel.check(config, ranks.here().world, min(config.batch_size, len(pictures.parts.train)))
    with claimed(folder) if ranks.first() else nullcontext():
        if ranks.first() and resumable(folder, given) != stopped:
            raise CannotCreate(f"{folder}: another process has trained here meanwhile. Choose another --out.")
        if stopped is None and ranks.first():
            write_toml(config, folder / CONFIG_FILE)
        ranks.wait()
        return course.go(folder, config, epochs, pictures, init, teacher, seen, command, asked)


def _config(found: Nested) -> Config:
    return from_dict(Config, found)


def _settled_by_first(
    given: Nested, pictures: Pictures, init: Bundle | None, teacher: Teacher | None, watch: Watch
) -> tuple[Config, int, Bundle | None]:
    """What rank 0 settles: every option, the epochs to begin with, and the model to begin from, by its name."""
    device = machine.pick(given.get("device", "auto"))
    tensor = given.get("parallel", {}).get("tensor", 1)
    memory_bytes = parallel.memory_of_all(machine.memory_bytes(device), device, tensor)

    def settle() -> tuple[Config, int, Bundle | None]:
        begun, options = _looked_for(given, pictures, init, watch)
        return *_settle(options, pictures, begun, teacher, watch, memory_bytes), begun

    def opened(sent: Any) -> tuple[Config, int, Bundle | None]:
        config = _config(sent[0])
        again = init is None and bool(config.begins_from)
        return config, sent[1], beginning.asked(config.init, given.get("model", {}), watch) if again else init

    return ranks.from_first(settle, lambda made: [to_dict(made[0]), made[1]], opened)


def _as_begun(out: Path, source: str) -> str:
    """The data that the run in `out` began with, where `source` is the hub's set that it named without a commit."""
    if not is_id(source) or not (out / CONFIG_FILE).is_file():
        return source
    begun = read_toml(out / CONFIG_FILE).get("data", {}).get("source", "")
    return begun if is_id(begun) and hub_set.same(source, begun) else source


def _of_no_account(entry: Path) -> bool:
    """Whether an entry of a run folder is a lock or the part of a file that a kill left."""
    return entry.name == LOCK_FILE or (entry.name.startswith(".") and entry.suffix == ".part")


def _init(out: Path, stopped: Config | None, given: Nested, watch: Watch) -> Bundle | None:
    """The model that was asked for; a run that has its state needs it no more."""
    path = stopped.init if stopped else given.get("init", "")
    if path in ("", FROM_SCRATCH) or states.found(out):
        return None
    return beginning.asked(path, given.get("model", {}), watch)


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
        if not name.startswith("parallel.") and (list(value) if isinstance(value, tuple) else value) != was.get(name)
    ]
    if other:
        raise UsageError(
            f"{out}: the run that stopped here had other options: {', '.join(other)}. "
            "Give the same ones to go on with it, or another --out to begin anew."
        )
    return from_dict(Config, merge(stored, {"parallel": given.get("parallel", {})}))


def _looked_for(given: Nested, pictures: Pictures, init: Bundle | None, watch: Watch) -> tuple[Bundle | None, Nested]:
    """The model to begin from, and the options that say so: what was asked for, or what can be found."""
    kind = {"photographs": pictures.photographs, "grey": pictures.scan.grey}
    if not beginning.worth_looking(given, num_train=len(pictures.parts.train), **kind):
        return init, given
    there = beginning.found(watch, on_cpu=machine.pick(given.get("device", "auto")).type == "cpu")
    return (there[1], merge(given, {"init": there[0]})) if there else (init, given)


def _settle(
    given: Nested, pictures: Pictures, init: Bundle | None, teacher: Teacher | None, watch: Watch, memory_bytes: int
) -> tuple[Config, int]:
    """Every option settled, and the epochs to begin with; the plan is told with its reasons."""
    device = machine.pick(given.get("device", "auto"))
    facts = _facts(pictures, device, init, memory_bytes)
    watch.say(f"device: {machine.describe(device)}")
    name = plan.recipe_for(facts, given)
    given = merge(given, {"recipe": name}) if name else given
    config, reasons = (follow if name else plan).decide(facts, given)
    if init is not None:
        start.require_same_architecture(config.model, init.model)  # before the time that measuring takes
    parallel.check(config, ranks.here().world, min(config.batch_size, facts.num_train))
    every = torch.get_num_threads()
    once = modes.looks_once(config)
    share = parallel.of_one(config, facts.num_train)
    few = replace(config, batch_size=min(config.batch_size, 4)) if once else share  # the look is timed, not a step
    threads, step_s = best_threads(few, device, facts.num_train, teacher)
    step_s /= min(config.parallel.tensor, ranks.here().world)
    if threads < every and not config.threads:
        reasons.append(f"threads: {threads}, measured faster here than {every} for this model")
    if once:
        look_s = facts.num_train * step_s / few.batch_size
        reasons.append(f"features: about {look_s:.0f} seconds for the training pictures")
        step_s = seconds_per_head_step(replace(config, batch_size=min(config.batch_size, facts.num_train)), device)
    lasting = (follow if name else length).with_length
    config, epochs, more = lasting(replace(config, threads=threads), facts, given, step_s)
    for sentence in [*reasons, *more, *plan.advice(config, facts.photographs, facts.num_train)]:
        watch.say(sentence)
    if not SYNCS_FOLDERS:
        watch.say("this system cannot sync a folder: a power cut just after a save may undo it")
    return config, epochs


def _open(settings: Any, watch: Watch, labelled: bool) -> Pictures:
    tables = watch.counting("reading tables of contents", "files")
    source = sources.open_source(settings, labelled=labelled, progress=tables)
    watch.begin("looking at every picture", len(source))
    scanned = scan.scan(source, settings, lambda done, total: watch.at(done, total))
    watch.end()
    ranks.require_same(f"{settings.source}: the pictures", scanned.fingerprint)
    parts = splits.split(source, scanned.bad, settings)
    for line in checks.report(source, scanned, parts).lines():
        watch.say(line)
    return Pictures(source=source, scan=scanned, parts=parts, labelled=labelled)


def _facts(pictures: Pictures, device: torch.device, init: Bundle | None, memory_bytes: int) -> plan.Facts:
    share = float(pictures.source.labels[pictures.parts.train].mean()) if pictures.multi_label else None
    return plan.Facts(
        mean_share=share,
        num_train=len(pictures.parts.train),
        class_names=pictures.class_names,
        median_size=pictures.scan.median_size,
        photographs=pictures.photographs,
        grey=pictures.scan.grey,
        on_cpu=device.type == "cpu",
        cores=max(1, machine.num_cores() // ranks.here().locals_),
        memory_bytes=memory_bytes,
        compiler=machine.has_compiler(),
        init=init,
    )


def _require_same_classes(out: Path, config: Config, pictures: Pictures) -> None:
    if len(pictures.class_names) != config.model.num_classes or pictures.multi_label != config.multi_label:
        raise BadData(f"{out}: the classes have changed since this run began. Begin anew with another --out.")
