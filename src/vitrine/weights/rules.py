"""How another format's tensors become ours, and go back: a list of rules, read in both directions.

A rule names one tensor of ours, the tensors of theirs that it is made of, and both conversions. Names may hold
`{i}`, the number of the block. Every source tensor is taken by a rule or dropped by a named one, and every
tensor of ours is filled: what is left over on either side is an error with the lists.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vitrine.errors import BadData

Read = Callable[..., Tensor]
Write = Callable[[Tensor], Sequence[Tensor]]


@dataclass(frozen=True, kw_only=True)
class Rule:
    """`ours` = `read`(*`theirs`), and `theirs` = `write`(`ours`)."""

    ours: str
    theirs: tuple[str, ...]
    read: Read
    write: Write


@dataclass(frozen=True, kw_only=True)
class Drop:
    """Source tensors whose whole name matches `pattern` are left out, `why` the function stays the same."""

    pattern: str
    why: str


@dataclass(frozen=True, kw_only=True)
class Taken:
    """Our `tensors`, the names of theirs that were `used`, and those `dropped` with the reason."""

    tensors: dict[str, Tensor]
    used: tuple[str, ...]
    dropped: dict[str, str]


def same(ours: str, theirs: str) -> Rule:
    """The tensor as it is."""
    return Rule(ours=ours, theirs=(theirs,), read=lambda x: x, write=lambda x: (x,))


def shaped(ours: str, theirs: str, inner: Sequence[int], outer: Sequence[int]) -> Rule:
    """The same numbers in the same order: our shape is `inner`, theirs `outer`."""
    return Rule(
        ours=ours, theirs=(theirs,), read=lambda x: x.reshape(*inner), write=lambda x: (x.reshape(*outer),)
    )  # fmt: skip


def transposed(ours: str, theirs: str) -> Rule:
    """A matrix stored as (in, out), as JAX does; ours is (out, in)."""
    return Rule(ours=ours, theirs=(theirs,), read=lambda x: x.t().contiguous(), write=lambda x: (x.t().contiguous(),))


def permuted(ours: str, theirs: str, axes: Sequence[int]) -> Rule:
    """Axis j of ours is axis `axes[j]` of theirs."""
    back = [list(axes).index(axis) for axis in range(len(axes))]
    return Rule(
        ours=ours, theirs=(theirs,),
        read=lambda x: x.permute(*axes).contiguous(), write=lambda x: (x.permute(*back).contiguous(),),
    )  # fmt: skip


def stacked(ours: str, theirs: Sequence[str]) -> Rule:
    """Several tensors of theirs one after another along the first axis of ours, all of one length: q | k | v."""
    count = len(theirs)
    return Rule(ours=ours, theirs=tuple(theirs), read=lambda *x: torch.cat(x), write=lambda x: x.chunk(count))


def each(depth: int, rules: Iterable[Rule]) -> list[Rule]:
    """The rules for every block, `{i}` being its number from 0."""
    rules = list(rules)
    return [
        replace(rule, ours=rule.ours.format(i=i), theirs=tuple(name.format(i=i) for name in rule.theirs))
        for i in range(depth)
        for rule in rules
    ]


def take(rules: Sequence[Rule], found: Mapping[str, Tensor], drops: Sequence[Drop] = ()) -> Taken:
    """Our tensors from those `found`.

    Raises `BadData` with the names that are missing, those that no rule takes, and those whose shape no
    conversion fits.
    """
    wanted = {name for rule in rules for name in rule.theirs}
    missing = sorted(wanted - found.keys())
    dropped = {
        name: drop.why for name in found if name not in wanted for drop in drops if re.fullmatch(drop.pattern, name)
    }
    left = sorted(found.keys() - wanted - dropped.keys())
    tensors: dict[str, Tensor] = {}
    misshapen: list[str] = []
    for rule in rules:
        if any(name not in found for name in rule.theirs):
            continue
        try:
            tensors[rule.ours] = rule.read(*(found[name] for name in rule.theirs))
        except (RuntimeError, ValueError, IndexError, TypeError):
            misshapen += [f"{name} {tuple(found[name].shape)}" for name in rule.theirs]
    refuse(missing=missing, unexpected=left, misshapen=misshapen)
    return Taken(tensors=tensors, used=tuple(sorted(wanted)), dropped=dropped)


def give(rules: Sequence[Rule], ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Their tensors from ours, contiguous. Raises `BadData` for a tensor of ours that no rule takes, or none fills."""
    refuse(
        missing=sorted({rule.ours for rule in rules} - ours.keys()),
        unexpected=sorted(ours.keys() - {rule.ours for rule in rules}),
    )
    theirs: dict[str, Tensor] = {}
    for rule in rules:
        theirs |= {name: part.contiguous() for name, part in zip(rule.theirs, rule.write(ours[rule.ours]), strict=True)}
    return theirs


def refuse(*, missing: Sequence[str] = (), unexpected: Sequence[str] = (), misshapen: Sequence[str] = ()) -> None:
    """Raise `BadData` with three lists, unless all of them are empty."""
    lists = (("missing", missing), ("unexpected", unexpected), ("of the wrong shape", misshapen))
    wrong = [f"{what}: {', '.join(_short(names))}" for what, names in lists if names]
    if wrong:
        raise BadData(f"the tensors do not fit the model: {'; '.join(wrong)}.")


def _short(names: Sequence[str], most: int = 12) -> list[str]:
    """The first names, and how many more there are."""
    return [*names[:most], f"and {len(names) - most} more"] if len(names) > most else list(names)
