from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.data.pictures import class_folder, in_memory, save, settings
from vitrine.data import scan as scan_module
from vitrine.data.checks import Report, report
from vitrine.data.scan import scan
from vitrine.data.sources import Source, open_source
from vitrine.data.splits import Parts, split


def check(source: Source, parts: Parts | None = None) -> Report:
    found = scan(source, settings(max_bad_share=0.5))
    return report(source, found, parts or split(source, found.bad, settings()))


def test_nothing_to_say_of_sound_data() -> None:
    found = check(in_memory([60, 60], side=6))
    assert found.lines() == [
        "made: 120 pictures in 2 classes.",
        "Parts: 72 for training, 24 for validation, 24 for test.",
    ]
    assert not (found.leaks or found.conflicts or found.damaged or found.missing)


def test_leaks() -> None:
    source = in_memory([60, 60], side=6)
    parts = split(source, (), settings())
    assert source.arrays is not None
    same = [i for part in (parts.train, parts.validation, parts.test) for i in part if source.labels[i] == 0]
    in_train, in_test = same[0], same[-1]
    source.arrays[in_test] = source.arrays[in_train]
    source.arrays[same[1]] = source.arrays[in_train]  # twice in one part is no leak
    found = check(source, parts)
    assert found.leaks == ((f"made/{in_train}", "train", f"made/{in_test}", "test"),)
    assert not found.conflicts
    line = next(line for line in found.lines() if "two parts" in line)
    assert line.startswith("1 picture stands in two parts") and f"made/{in_test} (test)" in line


def test_conflicts() -> None:
    source = in_memory([60, 60], side=6)
    assert source.arrays is not None
    for i in range(5):
        source.arrays[60 + i] = source.arrays[i]
    found = check(source)
    assert len(found.conflicts) == 5
    assert found.conflicts[0] == ("made/0", "class0", "made/60", "class1")
    line = next(line for line in found.lines() if "under two classes" in line)
    assert "5 pictures stand" in line and "and 2 more" in line


def test_imbalance() -> None:
    found = check(in_memory([100, 33, 70], side=6))
    assert found.most == ("class0", 100) and found.least == ("class1", 33)
    assert any("uneven: class0 has 100 pictures, class1 only 33" in line for line in found.lines())
    assert not any("uneven" in line for line in check(in_memory([99, 33], side=6)).lines())


def test_missing_classes() -> None:
    source = in_memory([30, 30, 30], side=6)
    parts = Parts(train=np.arange(0, 90), validation=np.arange(0), test=np.arange(10, 40))
    found = check(source, parts)
    assert found.missing == {"test": ("class2",)}
    assert any("The test part has no picture of 1 class: class2." in line for line in found.lines())


def test_damaged_and_left_out(tmp_path: Path) -> None:
    class_folder(tmp_path, {"a": 8, "b": 8})
    (tmp_path / "notes.txt").write_text("x")
    for i in range(7):
        (tmp_path / "a" / f"{i}.png").write_bytes(b"")
    found = check(open_source(settings(tmp_path)))
    assert [name for name, _ in found.damaged] == [f"a/{i}.png" for i in range(7)]
    text = "\n".join(found.lines())
    assert "1 file left out" in text
    assert "7 damaged pictures left out:" in text
    for name, why in found.damaged:
        assert why and found.lines().count(f"  {name}: {why}") == 1 == text.count(name)
    assert "There is no validation part" in text and "There is no test part" in text


def test_headers_alone_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class_folder(tmp_path, {"a": 2, "b": 2})
    save(tmp_path / "b" / "twin.png", 0)
    source = open_source(settings(tmp_path))
    assert not any("only headers" in line for line in check(source).lines())
    monkeypatch.setattr(scan_module, "DECODE_LIMIT_BYTES", 100)
    found = check(source)
    assert any("only headers were read" in line for line in found.lines())
    assert found.conflicts == (("a/0.png", "a", "b/twin.png", "b"),)
