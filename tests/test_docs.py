"""What the documents say, held against what the code does."""

from __future__ import annotations

import inspect
import json
import re
import shlex
import tomllib
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from vitrine import errors
from vitrine.__main__ import main
from vitrine.config.architecture import ModelConfig
from vitrine.config.options import Config, DataConfig, PreprocessConfig
from vitrine.models.vit import VisionTransformer
from vitrine.results import Figure
from vitrine.weights import bundle, container

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
DECISIONS = sorted(ROOT.glob("docs/decisions/*.md"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(page: str, language: str) -> list[str]:
    """The code blocks of a page in one language ("" for none)."""
    found = re.findall(r"^```([a-z]*)\n(.*?)^```$", text(page), flags=re.DOTALL | re.MULTILINE)
    return [code for kind, code in found if kind == language]


# The model file


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small bundle of more than one chunk, with a quotation mark and a hash-like word in its facts."""
    config = ModelConfig(
        img_size=16, patch_size=8, in_chans=1, num_classes=2, embed_dim=192, depth=3, num_heads=3, weight_init="timm"
    )
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("docs") / "model.safetensors"
    made = bundle.Bundle(
        model=config,
        preprocess=PreprocessConfig(size=(16, 16), mean=(0.5,), std=(0.5,)),
        class_names=('"sha256":"', "Käse"),
        tensors=VisionTransformer(config).state_dict(),
        metrics={"test": {"top1": Figure(value=0.5, low=0.1, high=0.9, n=2)}},
    )
    bundle.save(made, path)
    assert path.stat().st_size > container.CHUNK
    return path


def reader() -> Any:
    """The function `read` of the page, after a look at its length and what it imports."""
    (code,) = blocks("docs/bundle-format.md", "python")
    lines = [line for line in code.splitlines() if line.strip()]
    assert lines[0] == "import hashlib, json, struct"
    assert len(lines) - 1 <= 12
    names: dict[str, Any] = {}
    exec(compile(code, "docs/bundle-format.md", "exec"), names)
    return names["read"]


def test_the_reader_on_the_page_reads_a_bundle(model_file: Path) -> None:
    facts, entries, data = reader()(model_file)
    tensors, known = container.read(model_file)
    assert facts == known
    assert list(entries) == sorted(tensors)  # all of one type, so by name
    for name, entry in entries.items():
        begin, end = entry["data_offsets"]
        assert entry["dtype"] == "F32"
        assert torch.equal(
            torch.frombuffer(data[begin:end], dtype=torch.float32).reshape(entry["shape"]), tensors[name]
        )


@pytest.mark.parametrize("place", [9, 40, 300, 5000, 60_000, container.CHUNK + 7, -1])
def test_the_reader_on_the_page_notices_a_flipped_bit(model_file: Path, tmp_path: Path, place: int) -> None:
    content = bytearray(model_file.read_bytes())
    content[place] ^= 1
    (tmp_path / "altered").write_bytes(content)
    with pytest.raises(ValueError):
        reader()(tmp_path / "altered")


def test_the_layout_is_as_the_page_says(model_file: Path) -> None:
    content = model_file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = content[8 : 8 + length]
    assert length % 8 == 0
    assert header.startswith(b'{"__metadata__":{"sha256":"')
    assert header.isascii()
    assert header.count(container.MARK) == 1
    parsed = json.loads(header)
    assert next(iter(parsed)) == "__metadata__"
    assert list(parsed["__metadata__"]) == ["sha256", "vitrine"]
    assert parsed["__metadata__"]["vitrine"] == json.dumps(
        json.loads(parsed["__metadata__"]["vitrine"]), sort_keys=True
    )
    ends = [entry["data_offsets"] for name, entry in parsed.items() if name != "__metadata__"]
    assert [begin for begin, _ in ends] == [0, *(end for _, end in ends)][:-1]
    assert 8 + length + ends[-1][1] == len(content)


def test_wider_types_come_first(tmp_path: Path) -> None:
    tensors = {"a": torch.zeros(3, dtype=torch.uint8), "b": torch.zeros(1), "c": torch.zeros(1, dtype=torch.float64)}
    container.write(tmp_path / "file", tensors, {})
    assert list(reader()(tmp_path / "file")[1]) == ["c", "b", "a"]


def test_every_type_and_limit_of_the_container_is_on_the_page() -> None:
    page = " ".join(text("docs/bundle-format.md").split())
    assert f"`dtype` is one of {', '.join(container.DTYPES.values())}." in page
    assert f"{container.CHUNK:,} bytes" in page
    assert f"a header above {container.MAX_HEADER >> 20} MiB" in page
    assert f"the number of this format, now {bundle.FORMAT} |" in page


def test_every_fact_is_on_the_page(model_file: Path) -> None:
    listed = re.findall(r"^\| `(\w+)` \|", text("docs/bundle-format.md"), flags=re.MULTILINE)
    assert listed == sorted(container.read_facts(model_file))


def rewritten(path: Path, to: Path, **changes: Any) -> Path:
    """A bundle with other facts and a hash that holds."""
    tensors, facts = container.read(path)
    container.write(to, tensors, facts | changes)
    return to


def test_other_versions_are_read_or_refused_as_the_page_says(model_file: Path, tmp_path: Path) -> None:
    facts = container.read_facts(model_file)
    newer = rewritten(model_file, tmp_path / "newer", format=bundle.FORMAT + 1)
    with pytest.raises(errors.BadData, match="Update"):
        bundle.open_bundle(newer)
    with pytest.raises(errors.BadData, match="state of a run"):
        bundle.open_bundle(rewritten(model_file, tmp_path / "state", kind="state"))
    with pytest.raises(errors.BadData, match=r"model\.unheard"):
        bundle.open_bundle(rewritten(model_file, tmp_path / "option", model=facts["model"] | {"unheard": 1}))
    without = {name: value for name, value in facts["model"].items() if name != "norm_eps"}
    older = rewritten(model_file, tmp_path / "older", format=bundle.FORMAT - 1, model=without)
    assert bundle.open_bundle(older).model.norm_eps == ModelConfig().norm_eps
    provenance = facts["provenance"] | {"unheard": 1}
    assert bundle.open_bundle(rewritten(model_file, tmp_path / "more", provenance=provenance, unheard=1)).finished


# Errors


def test_every_error_class_is_in_the_table_with_its_code() -> None:
    rows = re.findall(r"^\| (\d+) \| `(\w+)` \|", text("docs/errors.md"), flags=re.MULTILINE)
    classes = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if kind.__module__ == errors.__name__]
    assert sorted((int(code), name) for code, name in rows) == sorted((c.exit_code, c.__name__) for c in classes)


EXAMPLES = re.findall(r"^\$ vitrine (.*)\n(vitrine: .*)\nexit code (\d+)$", text("docs/errors.md"), flags=re.MULTILINE)


def test_there_are_examples() -> None:
    assert len(EXAMPLES) == text("docs/errors.md").count("$ vitrine ")


@pytest.mark.parametrize(("words", "message", "code"), EXAMPLES, ids=[words for words, _, _ in EXAMPLES])
def test_an_example_does_what_the_page_says(
    words: str,
    message: str,
    code: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("empty.safetensors", "cat.jpg", "notes/file.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert main(shlex.split(words)) == int(code)
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.strip() == message


# The other pages


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_and_named_files_exist(page: Path) -> None:
    content = page.read_text(encoding="utf-8")
    links = re.findall(r"\]\((?!https?:|#)([^)#\s]+)", content)
    assert [link for link in links if not (page.parent / link).exists()] == []
    named = re.findall(r"`((?:src|tests|docs|bench)/[\w./-]+|[A-Z]+\.md|[a-z]+\.txt)`", content)
    own = {"labels.txt", "classnames.txt"}
    assert [name for name in named if name not in own and not (ROOT / name).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_python_on_the_pages_compiles(page: Path) -> None:
    for code in blocks(page.relative_to(ROOT).as_posix(), "python"):
        compile(code, str(page), "exec")


@pytest.mark.parametrize("page", DECISIONS, ids=lambda page: page.stem)
def test_a_decision_has_its_parts(page: Path) -> None:
    content = page.read_text(encoding="utf-8")
    assert content.startswith(f"# {page.stem[:4]}: ")
    parts = re.findall(r"^\*\*(.+?)\.\*\*", content, flags=re.MULTILINE)
    assert [part for part in parts if part != "Price"] == ["Context", "Choice", "Rejected", "How to undo it"]
    for room, name in re.findall(r"`(\w+)/(\w+\.py)`", content):
        assert (ROOT / "src/vitrine" / room / name).is_file() or (ROOT / room / name).is_file()


def test_decisions_are_numbered_without_a_gap() -> None:
    assert [int(page.stem[:4]) for page in DECISIONS] == list(range(1, len(DECISIONS) + 1))


def test_make_targets_named_exist() -> None:
    targets = set(re.findall(r"^(\w+):", text("Makefile"), flags=re.MULTILINE))
    named = {word for page in PAGES for word in re.findall(r"(?:`|^)make (\w+)", page.read_text("utf-8"), re.MULTILINE)}
    assert named
    assert named - targets == set()


def test_limits_of_the_security_page_are_the_defaults() -> None:
    page, limits = text("SECURITY.md"), DataConfig()
    assert f"| {limits.max_pixels:,} | `--data.max-pixels` |" in page
    assert f"| {limits.max_bytes:,} | `--data.max-bytes` |" in page
    assert f"| {100 * limits.max_bad_share:g} % | `--data.max-bad-share` |" in page
    assert f"| {container.MAX_HEADER >> 20} MiB | none |" in page


def test_options_named_on_the_pages_exist() -> None:
    """Every dotted option in the pages, as it is typed, is one of `Config`."""
    groups = {f.name: f.default_factory for f in fields(Config) if callable(f.default_factory)}
    known = {f"{group}.{f.name}" for group, kind in groups.items() for f in fields(kind())}
    named = {word for page in PAGES for word in re.findall(r"--(\w+\.[\w-]+)", page.read_text(encoding="utf-8"))}
    assert {name for name in named if name.replace("-", "_") not in known} == set()


def test_the_citation_is_whole_and_of_this_version() -> None:
    cited = yaml.safe_load(text("CITATION.cff"))
    assert {"cff-version", "message", "title", "authors"} <= cited.keys()
    assert cited["cff-version"] == "1.2.0"
    assert str(cited["version"]) == PROJECT["version"]
    assert cited["license"] == PROJECT["license"]
    assert all("name" in author or "family-names" in author for author in cited["authors"])
    assert all({"type", "title", "authors"} <= reference.keys() for reference in cited["references"])


def test_the_changelog_knows_this_version() -> None:
    assert re.search(rf"^## \[{re.escape(PROJECT['version'])}\] - ", text("CHANGELOG.md"), flags=re.MULTILINE)
