"""How long a run is: the passes that the pictures are worth, the time there is, and what follows from both."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from vitrine.config.options import Config, OptimConfig
from vitrine.config.text import from_dict, to_dict
from vitrine.data.loader import steps_per_epoch
from vitrine.train import modes
from vitrine.train.plan import Facts

COMPILE_PAYS_CPU_S, COMPILE_PAYS_GPU_S = 40 * 60.0, 10 * 60.0

CPU_LIMIT_S, GPU_LIMIT_S = 15 * 60.0, 60 * 60.0


@dataclass(frozen=True, kw_only=True)
class Span:
    """How long a run is to be: its `epochs`, for the reason `why`, in `limit_s` seconds unless that is 0.

    `steps` gives the options of `optim` that are counted in steps, and `decay` that of the average, for a run of so
    many steps.
    """

    epochs: int
    why: str
    limit_s: float
    steps: Callable[[int], dict[str, int]]
    decay: Callable[[int], float]


def span(facts: Facts, *, head: bool = False) -> Span:
    """The length that the pictures are worth and the machine can bear."""
    return Span(
        epochs=wanted_epochs(facts, head=head),
        why=f"for {facts.num_train:,} pictures",
        limit_s=CPU_LIMIT_S if facts.on_cpu else GPU_LIMIT_S,
        steps=lambda total: {"warmup_steps": min(10_000, max(1, total // 20))},
        decay=lambda total: min(0.9999, max(0.9, 1 - 20 / total)),
    )


def with_length(
    config: Config, facts: Facts, given: Mapping[str, Any], step_s: float, own: Span | None = None
) -> tuple[Config, int, list[str]]:
    """`config` with epochs, time limit, warm-up and averaging; the epochs that the limit allows; the reasons.

    `config.epochs` is what the pictures are worth, and the limit may allow fewer at `step_s` seconds a step. What the
    user left open is that of `own`, or of `span`.
    """
    own = own or span(facts, head=modes.looks_once(config))
    steps = steps_per_epoch(facts.num_train, config.batch_size)
    limit = float(given.get("max_time_s", 0.0))
    if "epochs" not in given and not limit:
        limit = own.limit_s
    wanted = int(given.get("epochs", 0)) or own.epochs
    why = "as asked" if "epochs" in given else own.why
    # A tenth of the time is left for validation; the loop corrects the number as it goes.
    affordable = max(1, int(0.9 * limit / (steps * step_s))) if limit else wanted
    if affordable < wanted:
        why = f"of {wanted} that would be worth it: what {limit:.0f} seconds allow"
    epochs = min(wanted, affordable)
    total = epochs * steps
    asked = given.get("optim", {})
    counts = {name: int(asked.get(name, count)) for name, count in own.steps(total).items()}
    decay = float(given.get("ema_decay", own.decay(total)))
    optim = from_dict(OptimConfig, {**to_dict(config.optim), **counts}, "optim.")
    seconds = total * step_s
    compile, why_compile = _compile(config, facts, seconds)
    config = replace(config, epochs=wanted, max_time_s=limit, ema_decay=decay, optim=optim, compile=compile)
    about = f"{seconds / 60:,.0f} minutes" if seconds >= 120 else f"{seconds:.0f} seconds"
    pace = f"{config.batch_size / step_s:,.0f} pictures a second"
    length = f"length: {epochs} epochs of {steps} steps, {why}; about {about} at {pace}"
    average = f"weights averaged with decay {decay:.5g}" if decay else "weights not averaged"
    shape = f"{optim.warmup_steps} steps of warm-up, then {optim.schedule}; {average}"
    return config, epochs, [f"{length}; {shape}", *why_compile]


def _compile(config: Config, facts: Facts, seconds: float) -> tuple[Literal["on", "off"], list[str]]:
    """Whether the step is compiled: compiling takes about a minute, and gains a twentieth on a CPU, more on a GPU."""
    if config.compile != "auto":
        return config.compile, []
    if not facts.compiler:
        return "off", []
    if seconds < (COMPILE_PAYS_CPU_S if facts.on_cpu else COMPILE_PAYS_GPU_S):
        return "off", []
    return "on", ["torch.compile: on, the run is long; its first steps take a minute"]


def wanted_epochs(facts: Facts, *, head: bool = False) -> int:
    """Passes that such a set can use: many over few pictures, and few for fine-tuning; a head alone costs nothing."""
    views, least, most = (60_000, 5, 60) if facts.init is not None else (3_000_000, 60, 300)
    if head:
        views, least, most = 2_000_000, 10, 100
    return min(most, max(least, views // max(1, facts.num_train)))
