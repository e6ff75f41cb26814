from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from vitrine.errors import BadData, NotFound
from vitrine.weights.labels import class_names, from_file

HF = {"id2label": {"0": "ape", "1": "bee", "2": "cat"}}


def test_the_users_file_wins(tmp_path: Path) -> None:
    (tmp_path / "l.txt").write_text("x\ny\nz\n")
    names, said = class_names(3, HF, own=("a", "b", "c"), labels=tmp_path / "l.txt")
    assert names == ("x", "y", "z")
    assert str(tmp_path / "l.txt") in said


def test_then_what_the_file_brings_then_its_config() -> None:
    assert class_names(3, HF, own=("a", "b", "c")) == (("a", "b", "c"), "class names: from the file")
    assert class_names(3, HF)[0] == ("ape", "bee", "cat")
    timm = {"pretrained_cfg": {"label_names": ["n1", "n2"], "label_descriptions": {"n1": "ape"}}}
    assert class_names(2, timm)[0] == ("ape", "n2")
    assert class_names(2, {"label_names": ["n1", "n2"]})[0] == ("n1", "n2")


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"id2label": {"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"}},
        {"id2label": {"0": "a", "1": "b"}},
        {"id2label": {"0": "a", "1": "b", "3": "c"}},
        {"id2label": {"0": "a", "1": 5, "2": "c"}},
        {"id2label": ["a", "b", "c"]},
        {"pretrained_cfg": {"label_names": ["n1"]}},
        {"pretrained_cfg": None},
        {"pretrained_cfg": {"tag": 5}},
    ],
)
def test_names_that_do_not_fit_are_no_names(config: dict[str, Any]) -> None:
    names, said = class_names(3, config)
    assert names == ("0", "1", "2")
    assert said == "class names: unknown, so each of the 3 is its index; --labels FILE"


@pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="needs timm's lists")
@pytest.mark.parametrize(
    ("tag", "count", "first", "last"),
    [
        ("augreg_in21k_ft_in1k", 1000, "tench, Tinca tinca", "toilet tissue, toilet paper, bathroom tissue"),
        ("augreg_in21k", 21843, "organism, being", "knothole"),
        ("openai_ft_in12k", 11821, None, None),
        ("in21k", 11221, None, None),
    ],
)
def test_timms_lists_for_a_declared_data_set(tag: str, count: int, first: str | None, last: str | None) -> None:
    names, said = class_names(count, {"pretrained_cfg": {"tag": tag}})
    assert len(names) == count
    assert first is None or (names[0], names[-1]) == (first, last)
    assert names != tuple(map(str, range(count)))
    assert tag.rpartition("_")[2] in said


@pytest.mark.parametrize(
    ("tag", "count"), [("", 1000), ("augreg_in1k", 21843), ("augreg_in21k", 1000), ("mine", 21841)]
)
def test_mistake_14_the_number_of_classes_alone_names_none(tag: str, count: int) -> None:
    names, _ = class_names(count, {"pretrained_cfg": {"tag": tag}})
    assert names == tuple(map(str, range(count)))


def test_no_head_no_names() -> None:
    assert class_names(0, HF) == ((), "")


@pytest.mark.parametrize(
    "text",
    ["ape\nbee\ncat", "ape\r\nbee\r\ncat\r\n", " ape \nbee\ncat\n\n", "\ufeffape\nbee\ncat", '["ape", "bee", "cat"]',
     '{"0": "ape", "2": "cat", "1": "bee"}', '{"0": ["n1", "ape"], "1": ["n2", "bee"], "2": ["n3", "cat"]}'],
)  # fmt: skip
def test_files_of_names(tmp_path: Path, text: str) -> None:
    (tmp_path / "l").write_bytes(text.encode())
    assert from_file(tmp_path / "l", 3) == ("ape", "bee", "cat")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"ape\nbee", "2 names for a model of 3 classes"),
        (b"ape\nbee\ncat\nowl", "4 names for a model of 3 classes"),
        (b"a\n\nb\nc", "name 2 of 4 is empty"),
        (b'["a", "b", ""]', "name 3 of 3 is empty"),
        (b"", "0 names"),
        (b"\xff\xfe", "no text in UTF-8"),
        (b"[1, 2, 3]", "no list of names"),
        (b'["a", "b"', "is not JSON"),
        (json.dumps({"a": 0, "b": 1, "c": 2}).encode(), "no list of names"),
        (b'{"0": "a", "0": "b"}', "stands twice"),
        (b"[" * 200_000, "nested|parts|JSON"),
    ],
)
def test_files_that_are_no_list_of_names(tmp_path: Path, data: bytes, said: str) -> None:
    (tmp_path / "l").write_bytes(data)
    with pytest.raises(BadData, match=said):
        from_file(tmp_path / "l", 3)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="is a folder, where a file is needed"):
        from_file(tmp_path, 3)
    with pytest.raises(NotFound, match="there is no such file"):
        from_file(tmp_path / "x", 3)
