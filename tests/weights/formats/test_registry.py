from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from vitrine.errors import UsageError
from vitrine.weights import formats
from vitrine.weights.foreign import Raw
from vitrine.weights.formats import registry

FOLDER = Path(formats.__path__[0])


def modules_with_formats() -> set[str]:
    """Modules of the folder that define FORMAT or FORMATS."""
    found = set()
    for path in FOLDER.glob("*.py"):
        names = {getattr(target, "id", "") for node in ast.parse(path.read_text("utf-8")).body
                 if isinstance(node, ast.Assign) for target in node.targets}  # fmt: skip
        if names & {"FORMAT", "FORMATS"} and path.stem != "registry":
            found.add(path.stem)
    return found


def test_every_format_of_the_folder_is_listed() -> None:
    assert set(registry.FORMATS.values()) == modules_with_formats()


@pytest.mark.parametrize("module", sorted(set(registry.FORMATS.values())))
def test_the_names_are_those_of_the_formats(module: str) -> None:
    listed = [name for name, place in registry.FORMATS.items() if place == module]
    assert sorted(found.name for found in registry.held(module)) == sorted(listed)


def test_a_format_by_name() -> None:
    for name in registry.FORMATS:
        assert registry.format_named(name).name == name
    for name in registry.readable():
        assert registry.chosen(name).name == name
    assert registry.chosen("transformers").name == "hf"
    with pytest.raises(UsageError, match=r"--format googel: there is no such format. Did you mean 'google'\?"):
        registry.chosen("googel")
    for name in set(registry.FORMATS) - set(registry.readable()):  # recognised only to be refused
        with pytest.raises(UsageError, match="there is no such format") as refusal:
            registry.chosen(name)
        assert f", {name}" not in str(refusal.value)


def test_what_is_no_model_fits_no_format() -> None:
    for tensors in ({}, {"w": torch.ones(2)}, {"pos_embed": torch.ones(1, 5, 8)}, {"head.weight": torch.ones(3, 8)}):
        assert registry.fitting(Raw(path="x", kind="safetensors", tensors=tensors)) == []


def test_no_format_is_imported_before_it_is_asked_for() -> None:
    code = (
        "import sys, vitrine.weights.opening, vitrine.weights.exporting;"
        "print([m for m in sys.modules if m.startswith('vitrine.weights.formats.') and not m.endswith('registry')])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
