"""The recipes on stdout: all of them in a table, or one with every value and where it comes from."""

from __future__ import annotations

from typing import Any

from vitrine.cli import show
from vitrine.config.recipe import Case, Length, Recipe
from vitrine.config.recipes import CONVENTIONS, RECIPES, recipe
from vitrine.config.text import Nested, flatten

RULES = {"linear": "in proportion to it", "root": "with its root", "none": "not"}


def show_all(json: bool) -> None:
    """Print the name, stage, purpose and first published figure of every recipe."""
    if json:
        show.as_json({"recipes": [facts(found) for found in RECIPES.values()]})
        return
    show.table(("recipe", "stage", "for", "top-1, %"), map(row, RECIPES.values()))
    print("The figure is the first that was published with a recipe, mostly of B/16 on ImageNet.")
    print(
        "`vitrine info --recipes NAME` has every value, its source and what deviates; docs/recipes.md how to use them."
    )


def row(found: Recipe) -> tuple[str, str, str, str]:
    """Name, stage, purpose and the first published figure of a recipe."""
    return found.name, found.stage, found.title, f"{found.expects[0].value:g}" if found.expects else "-"


def show_one(name: str, json: bool) -> None:
    """Print all that is known of a recipe. Raises `NotFound` for a name that is none."""
    found = recipe(name)
    if json:
        show.as_json(facts(found))
        return
    print(f"{found.name}: {found.title}")
    print(f"from: {found.source}")
    model = f"{found.arch}, or another by --arch" if found.arch else "that of --init"
    print(f"stage: {found.stage}; model: {model}")
    print(f"published for {found.pictures:,} pictures and batch {found.batch_size:,}: {length(found, found.length)}")
    print(
        f"with another batch the learning rate changes {RULES[found.rate]}; on other data the length is as many ",
        end="",
    )
    print("passes, " if found.length.epochs else "pictures seen, ", end="")
    print("and the warm-up the same share of the run")
    show.table(("option", "value"), options(found))
    for group in found.choices:
        print("the first of these that holds, on top:")
        for case in group:
            print(f"  {case.name}: {_case(found, case)}")
    if found.expects:
        rows = [(expected.what, f"{expected.value:g}", expected.source) for expected in found.expects]
        show.table(("what it should reach", "% top-1", "from"), rows)
    else:
        print("no figure was published with it")
    for sentence in found.deviations:
        print(f"deviates: {sentence}")
    for sentence in CONVENTIONS:
        print(f"conventions: {sentence}")


def options(found: Recipe) -> list[tuple[str, str]]:
    """The options of a recipe for a table, by the names that they are typed with."""
    rows = [(_typed(name), _spelt(value)) for name, value in flatten(found.options)]
    return [*rows, ("--model.representation-size", "the width of the model")] if found.hidden_head else rows


def length(found: Recipe, of: Length) -> str:
    """A length in words."""
    steps, warmup = found.published(of)
    passes = f"{of.epochs} passes, " if of.epochs else ""
    return f"{passes}{steps:,} steps, {warmup:,} of them warm-up"


def _case(found: Recipe, case: Case) -> str:
    said = " ".join(f"{_typed(name)} {_spelt(value)}" for name, value in flatten(case.options or {}))
    return "; ".join(part for part in (said, length(found, case.length) if case.length else "") if part)


def _spelt(value: Any) -> str:
    """A value as it is typed."""
    if isinstance(value, list):
        return " ".join(map(_spelt, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _typed(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def facts(found: Recipe) -> Nested:
    """A recipe as plain data."""

    def cases(group: tuple[Case, ...]) -> list[dict[str, Any]]:
        return [
            {
                "name": case.name, "models": list(case.models), "pictures_below": case.pictures_below,
                "area_below": case.area_below, "options": case.options or {},
                "length": _length(found, case.length) if case.length else None,
            }
            for case in group
        ]  # fmt: skip

    return {
        "name": found.name, "title": found.title, "stage": found.stage, "source": found.source, "arch": found.arch,
        "options": found.options, "hidden_head": found.hidden_head, "length": _length(found, found.length),
        "batch_size": found.batch_size, "pictures": found.pictures, "rate": found.rate,
        "choices": [cases(group) for group in found.choices],
        "expects": [
            {"what": expected.what, "top1_percent": expected.value, "source": expected.source}
            for expected in found.expects
        ],
        "deviations": list(found.deviations), "conventions": list(CONVENTIONS),
    }  # fmt: skip


def _length(found: Recipe, of: Length) -> dict[str, int]:
    steps, warmup = found.published(of)
    return {"epochs": of.epochs, "steps": steps, "warmup_steps": warmup}
