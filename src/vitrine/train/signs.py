"""Signs that a run goes wrong, read from its records: each a rule, a sentence with its figures, and what to do.

Nothing here asks a model or a clock: the same records give the same sentences. docs/watching.md lists the rules.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

Record = Mapping[str, Any]

WAITING = 0.2
"""Share of the time spent waiting for pictures above which a run is held up by them."""
WAITED_S = 5.0
"""Seconds of training below which a share of the time says nothing."""
FEW = 100
"""Validation pictures below which the accuracy is known to no better than ten points."""
PATIENCE = 5
"""Validated epochs without a lower loss before over-fitting is said, and a tenth of all of them at least."""
IN_A_ROW = 3
"""Epochs that a sign must last, where one alone may be chance."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What the rules must know of a run beside its records.

    `majority` is the share of the most frequent class in the validation part: what a guess that looks at nothing
    reaches. Where a picture may have several classes (`several`), whose figure is mean average precision, that is the
    mean over the classes of their share. `unused` are options against over-fitting that the run does not make use of.
    """

    lr: float
    warmup_epochs: float
    clip_norm: float
    num_workers: int
    cores: int
    majority: float
    num_validation: int
    unused: tuple[str, ...] = ()
    several: bool = False


def score(record: Record) -> float | None:
    """How the weights did on the validation part, in [0, 1]: top-1, or mean average precision; None where none did."""
    found: float | None = record.get("val_top1", record.get("val_map"))
    return found


def signs(records: Sequence[Record], setting: Setting) -> dict[str, str]:
    """The sentences of the rules that hold at the last of `records`, by name of the rule; empty for a healthy run."""
    found = {name: rule(records, setting) for name, rule in RULES.items()} if records else {}
    return {name: sentence for name, sentence in found.items() if sentence}


def rate_too_high(records: Sequence[Record], setting: Setting) -> str:
    """The training loss is above that of the first epoch, leaps up, or rises while nearly every gradient is clipped."""
    losses, now = [record["train_loss"] for record in records], records[-1]
    remedy = f"Begin anew in another --out with --optim.lr {setting.lr / 3:.1g}, or a longer --optim.warmup-steps."
    begin = f"the learning rate looks too high (optim.lr = {setting.lr:g}): "
    if len(losses) >= IN_A_ROW and losses[-1] > 1.05 * losses[0]:
        return (
            f"{begin}the training loss of epoch {now['epoch']} is {losses[-1]:.3g}, above the {losses[0]:.3g} of the "
            f"first. {remedy}"
        )
    if len(losses) >= IN_A_ROW and losses[-1] > 1.5 * losses[-2] and losses[-1] - losses[-2] > 0.25 * losses[0]:
        return f"{begin}the training loss leapt from {losses[-2]:.3g} to {losses[-1]:.3g} in an epoch. {remedy}"
    last, clipped = losses[-IN_A_ROW - 1 :], [record.get("clipped", 0.0) for record in records[-IN_A_ROW:]]
    rising = len(last) > IN_A_ROW and all(after > before for before, after in pairwise(last))
    if rising and last[-1] > 1.02 * last[0] and min(clipped) > 0.95:
        return (
            f"{begin}the training loss has risen for {IN_A_ROW} epochs, from {last[0]:.3g} to {last[-1]:.3g}, and "
            f"{min(clipped):.0%} of the gradients were longer than optim.clip_norm = {setting.clip_norm:g}. {remedy}"
        )
    return ""


def stuck(records: Sequence[Record], setting: Setting) -> str:
    """After a quarter of the run, and its warm-up, no epoch has been better than a guess that looks at nothing."""
    now = records[-1]
    enough = max(IN_A_ROW, 0.25 * now.get("epochs", math.inf), setting.warmup_epochs + 1)
    judged = [found for found in map(score, records) if found is not None]
    if now["epoch"] < enough or len(judged) < IN_A_ROW or not setting.num_validation:
        return ""
    chance = setting.majority
    margin = 2 * math.sqrt(chance * (1 - chance) / setting.num_validation)
    if max(judged) > chance + margin:
        return ""
    what, guess = "validation accuracy", "always saying the most frequent class"
    if setting.several:
        what, guess = "mean average precision of a validation", "a guess that looks at nothing"
    return (
        f"nothing is learnt: after {now['epoch']} of {now['epochs']} epochs the best {what} is "
        f"{max(judged):.1%}, where {guess} gives {chance:.1%}. Look whether the labels "
        f"fit the pictures; then try another rate (--optim.lr {setting.lr / 5:.1g} or {setting.lr * 5:.1g}), or start "
        "from a trained model (--init)."
    )


def over_fitting(records: Sequence[Record], setting: Setting) -> str:
    """The validation loss has long been above its least while the training loss still falls and accuracy does not rise.

    Long: five validated epochs, and a tenth of those so far. Above: by a tenth, and 0.05, in the mean of three.
    """
    judged = [{**record, "score": score(record)} for record in records if "val_loss" in record]
    if len(judged) <= PATIENCE:
        return ""
    best = min(range(len(judged)), key=lambda i: judged[i]["val_loss"])
    since, least = len(judged) - 1 - best, judged[best]
    if since < max(PATIENCE, len(judged) / 10):
        return ""
    late, now = judged[-IN_A_ROW:], judged[-1]
    loss, reached = (sum(record[name] for record in late) / len(late) for name in ("val_loss", "score"))
    risen = loss - least["val_loss"] > max(0.1 * least["val_loss"], 0.05)
    noise = math.sqrt(max(least["score"] * (1 - least["score"]), 1e-9) / max(1, setting.num_validation))
    if not risen or now["train_loss"] >= least["train_loss"] or reached > least["score"] + noise:
        return ""
    options = f" Against it: {', '.join(setting.unused)}." if setting.unused else ""
    return (
        f"over-fitting: the validation loss was least in epoch {least['epoch']} ({least['val_loss']:.3g}) and is "
        f"{loss:.3g} now, {since} validations later, while the training loss went on from {least['train_loss']:.3g} to "
        f"{now['train_loss']:.3g}. The best weights are kept, so nothing is lost but time.{options}"
    )


def data_bound(records: Sequence[Record], setting: Setting) -> str:
    """In each of the last two epochs more than a fifth of the time went into waiting for pictures."""
    last = records[-2:]
    spent = sum(record.get("epoch_seconds", 0.0) for record in last)
    if len(last) < 2 or spent < WAITED_S or min(record.get("wait_share", 0.0) for record in last) <= WAITING:
        return ""
    share, rate = last[-1]["wait_share"], last[-1]["epoch_pictures_per_s"]
    could = f"could learn {rate / (1 - share):,.0f}" if share < 0.99 else "could learn far more"
    more = setting.num_workers < setting.cores
    help_ = f"--num-workers {setting.cores} decodes in more processes; " if more else ""
    return (
        f"waiting for pictures takes {share:.0%} of the time: {rate:,.0f} a second arrive, and the device {could}. "
        f"{help_}files no larger than the model needs are decoded sooner."
    )


def few_judges(records: Sequence[Record], setting: Setting) -> str:
    """The validation part has fewer than a hundred pictures."""
    n = setting.num_validation
    if not 0 < n < FEW:
        return ""
    share = "the share with all classes right" if setting.several else "an accuracy"
    return (
        f"the validation part has {n} pictures: {share} is known to ± {98 / math.sqrt(n):.0f} points there, and "
        "what differs by less may be luck. More pictures, or a larger --data.val-share, tell more."
    )


def never_predicted(records: Sequence[Record], setting: Setting) -> str:
    """Past half of the run, a class was the answer to no validation picture in three validations in a row.

    Silent where a picture may have several classes: a rare one may stay below a half and yet be told from the others.
    """
    judged, now = [record for record in records if "val_top1" in record][-IN_A_ROW:], records[-1]
    if len(judged) < IN_A_ROW or now["epoch"] < now.get("epochs", math.inf) / 2:
        return ""
    in_all = set(judged[0].get("val_never", ())).intersection(*(record.get("val_never", ()) for record in judged[1:]))
    names = [name for name in judged[-1].get("val_never", ()) if name in in_all]
    if not names:
        return ""
    some = ", ".join(map(repr, names[:5])) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    these = "this class is" if len(names) == 1 else f"these {len(names)} classes are"
    return (
        f"{these} never the answer: {some}, in the last {IN_A_ROW} validations. Look whether the labels fit; a class "
        "with few pictures counts for more with --class-weights balanced."
    )


RULES: Mapping[str, Callable[[Sequence[Record], Setting], str]] = {
    "learning rate": rate_too_high,
    "stuck": stuck,
    "over-fitting": over_fitting,
    "data-bound": data_bound,
    "validation part": few_judges,
    "never predicted": never_predicted,
}
