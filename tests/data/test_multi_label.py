"""Several classes a picture, from the list to the parts: what is read, refused, drawn and noticed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.data.pictures import save, settings
from vitrine.config.options import AugmentConfig, PreprocessConfig
from vitrine.data import loader
from vitrine.data.checks import report
from vitrine.data.scan import scan
from vitrine.data.sources import Source, open_source
from vitrine.data.splits import split
from vitrine.data.store import store
from vitrine.data.stratify import stratified
from vitrine.errors import BadData

ROWS = 'path,labels\na.png,dog|cat\nb.png,\nc.png, cat \nd.png,"bird | dog"\n'
LINES = (
    '{"path": "a.png", "labels": ["dog", "cat"]}\n\n{"path": "b.png", "labels": []}\n'
    '{"path": "c.png", "labels": ["cat"]}\n{"path": "d.png", "labels": ["bird", "dog"]}\n'
)


def written(folder: Path, text: str, name: str = "set.csv") -> Path:
    (folder / name).write_text(text)
    return folder / name


def made(labels: Any, given: list[str] | None = None, side: int = 4) -> Source:
    """A source of random pictures with these rows of labels."""
    rows = np.asarray(labels, np.uint8)
    n = len(rows)
    return Source(
        name="made",
        class_names=tuple(f"class{k}" for k in range(rows.shape[1])),
        labels=rows,
        ids=tuple(f"made/{i}" for i in range(n)),
        given=np.array(given if given is not None else [""] * n, np.str_),
        arrays=np.random.default_rng(0).integers(0, 256, (n, side, side, 1), dtype=np.uint8),
    )


def drawn_rows(n: int, shares: list[float], seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).random((n, len(shares))) < shares).astype(np.uint8)


@pytest.mark.parametrize(
    ("text", "name"), [(ROWS, "set.csv"), (ROWS.replace(",", ";"), "set.csv"), (LINES, "set.jsonl")]
)
def test_lists_of_several_classes(tmp_path: Path, text: str, name: str) -> None:
    source = open_source(settings(written(tmp_path, text, name)))
    assert source.multi_label and source.class_names == ("bird", "cat", "dog")
    assert source.labels.tolist() == [[0, 1, 1], [0, 0, 0], [0, 1, 0], [1, 0, 1]] and source.labels.dtype == np.uint8
    assert source.ids == ("a.png", "b.png", "c.png", "d.png") and len(source) == 4
    assert [source.classes_of(i) for i in range(4)] == [("cat", "dog"), (), ("cat",), ("bird", "dog")]
    assert source.counts(np.array([0, 2])).tolist() == [0, 2, 1]


def test_one_class_a_line_of_json_is_as_one_class_a_row(tmp_path: Path) -> None:
    lines = '{"path": "a.png", "label": "x", "split": "train"}\n{"path": "b.png", "label": "y", "split": "Valid"}\n'
    one = open_source(settings(written(tmp_path, lines, "set.jsonl")))
    other = open_source(settings(written(tmp_path, "path,label,split\na.png,x,train\nb.png,y,val\n")))
    assert not one.multi_label and one.labels.tolist() == other.labels.tolist() == [0, 1]
    assert one.given.tolist() == other.given.tolist() == ["train", "val"] and one.paths == other.paths
    assert one.counts(np.array([1, 1])).tolist() == [0, 2] and one.classes_of(0) == ("x",)


def test_a_single_class_that_not_every_picture_has_will_do(tmp_path: Path) -> None:
    source = open_source(settings(written(tmp_path, "path,labels\na.png,smile\nb.png,\n")))
    assert source.labels.tolist() == [[1], [0]]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("path,label\na.png,x|y\nb.png,z\n", ["line 2", "'x|y'", "name the column labels"]),
        ("path,label,labels\na.png,x,y\n", ["both a column label and a column labels", "Keep label"]),
        ("path|labels\na.png|x\n", ["parted by |", "comma"]),
        ("path,labels\na.png,x|y|x\n", ["line 2", "x is there twice"]),
        ("path,labels\na.png,x\nb.png,x||y\n", ["line 3", "one of the names is empty"]),
        ("path,labels\na.png,|\n", ["line 2", "one of the names is empty"]),
        ("path,labels\na.png\n", ["line 2", "no cell for labels"]),
        ("path,labels\n,x\n", ["line 2", "path is empty"]),
        ("path,labels\na.png,\nb.png,\n", ["no picture has a class", "Fill in"]),
        ("path,labels\n", ["lists no pictures"]),
        ("labels,name\nx,y\n", ["no column path"]),
    ],
)
def test_what_a_table_is_refused_for(tmp_path: Path, text: str, words: list[str]) -> None:
    with pytest.raises(BadData) as caught:
        open_source(settings(written(tmp_path, text)))
    assert all(word in str(caught.value) for word in ["set.csv", *words])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"path": "a", "labels": ["x"]}\n{"path": "b", "label": "x"}\n', ["labels in line 1 and label in line 2"]),
        ('{"path": "a", "labels": "x"}\n', ["line 1", "list of names"]),
        ('{"path": "a", "labels": [1]}\n', ["line 1", "list of names"]),
        ('{"path": "a", "labels": ["x|y"]}\n', ["line 1", "has a | in it"]),
        ('{"path": "a", "labels": ["x", " x"]}\n', ["line 1", "twice"]),
        ('{"path": "a", "labels": [""]}\n', ["line 1", "empty"]),
        ('{"path": "a", "label": "x", "labels": []}\n', ["line 1", "both label and labels"]),
        ('{"path": "a"}\n', ["line 1", "label = None"]),
        ('{"path": "", "labels": []}\n', ["line 1", "path = ''"]),
        ('{"path": "a", "labels": [], "box": 1}\n', ["line 1", "box: there is no such key"]),
        ('{"path": "a", "labels": [], "split": "dev"}\n', ["line 1", "'dev'"]),
        ('{"path": "a", "labels": []\n', ["line 1", "not valid JSON"]),
        ("[" * 100_000, ["line 1", "not valid JSON"]),
        ("[1]\n", ["line 1", "no JSON object"]),
        ("\n", ["lists no pictures"]),
    ],
)
def test_what_lines_are_refused_for(tmp_path: Path, text: str, words: list[str]) -> None:
    with pytest.raises(BadData) as caught:
        open_source(settings(written(tmp_path, text, "set.jsonl")))
    assert all(word in str(caught.value) for word in ["set.jsonl", *words])


def test_classes_are_counted_as_a_model_does(tmp_path: Path) -> None:
    path = written(tmp_path, ROWS)
    source = open_source(settings(path), ("dog", "fish", "cat", "bird"))
    assert source.labels.tolist() == [[1, 0, 1, 0], [0, 0, 0, 0], [0, 0, 1, 0], [1, 0, 0, 1]]
    with pytest.raises(BadData, match="does not know 1 of 3 classes: bird"):
        open_source(settings(path), ("dog", "cat"))


def test_the_fingerprint_knows_the_classes_of_each_picture(tmp_path: Path) -> None:
    for i, name in enumerate("abcd"):
        save(tmp_path / f"{name}.png", i)

    def print_of(text: str) -> str:
        source = open_source(settings(written(tmp_path, text)))
        return scan(source, settings()).fingerprint

    assert print_of(ROWS) == print_of(ROWS.replace("dog|cat", "cat|dog"))
    assert print_of(ROWS) != print_of(ROWS.replace("b.png,", "b.png,cat"))


@pytest.mark.parametrize("seed", [0, 1, 2**40, -3])
@pytest.mark.parametrize("share", [0.1, 0.2, 0.5])
def test_every_class_has_near_its_share_of_each_part(seed: int, share: float) -> None:
    rows = drawn_rows(600, [0.5, 0.3, 0.1, 0.02, 0.01], seed=seed % 100)
    drawn = stratified(rows, round(600 * share), seed)
    assert np.array_equal(drawn, stratified(rows, round(600 * share), seed))
    assert np.array_equal(drawn, np.unique(drawn)) and abs(len(drawn) - 600 * share) <= 1
    found, wanted = rows[drawn].sum(axis=0, dtype=int), share * rows.sum(axis=0, dtype=int)
    assert (np.abs(found - wanted) <= 2).all(), (found, wanted)
    none = ~rows.any(axis=1)
    assert abs(none[drawn].sum() - share * none.sum()) <= 8  # they make up for what the others could not
    plain = np.random.default_rng(0).permutation(600)[: len(drawn)]
    assert np.abs(rows[plain].sum(axis=0, dtype=int) - wanted).sum() > np.abs(found - wanted).sum()


def test_the_seed_of_the_draw_matters() -> None:
    rows = drawn_rows(200, [0.4, 0.4])
    assert not np.array_equal(stratified(rows, 40, 0), stratified(rows, 40, 1))


def test_a_class_always_keeps_a_picture_to_train_on() -> None:
    rows = np.zeros((100, 3), np.uint8)
    rows[:50, 0], rows[7, 1], rows[[8, 9], 2] = 1, 1, 1
    for count in (20, 50, 90):
        drawn = stratified(rows, count, 0)
        assert np.delete(rows, drawn, axis=0).any(axis=0).all()
    assert len(stratified(rows, 0, 0)) == len(stratified(rows, 100, 0)) == 0


def test_parts_of_several_classes() -> None:
    source = made(drawn_rows(300, [0.5, 0.2, 0.05]))
    parts = split(source, {3, 4}, settings())
    everything = np.concatenate([parts.train, parts.validation, parts.test])
    assert sorted(everything.tolist()) == [i for i in range(300) if i not in (3, 4)]
    shares = source.counts(everything) / 298
    for part, size in ((parts.train, 178), (parts.validation, 60), (parts.test, 60)):
        assert abs(len(part) - size) <= 3 and (np.diff(part) > 0).all() and part.dtype == np.int64
        assert (np.abs(source.counts(part) - len(part) * shares) <= 2).all()


def test_parts_without_any_class() -> None:
    rows = np.zeros((60, 1), np.uint8)
    rows[:2] = 1
    parts = split(made(rows), (), settings())
    assert len(parts.train) == 60 and len(parts.notes) == 2
    given = ["train"] * 30 + ["test"] * 30
    with pytest.raises(BadData, match="no picture of its test part has a class"):
        split(made(rows, given=given), (), settings())
    rows[:2], rows[40:] = 0, 1
    with pytest.raises(BadData, match="no picture of its train part"):
        split(made(rows, given=given), (), settings())


def test_a_class_only_in_the_test_part() -> None:
    rows = np.ones((60, 2), np.uint8)
    rows[:30, 1] = rows[:5, 0] = 0
    with pytest.raises(BadData, match=r"1 of its classes: class1\."):
        split(made(rows, given=["train"] * 30 + ["test"] * 30), (), settings())


def test_what_is_noticed(tmp_path: Path) -> None:
    lines = ["path,labels,split"]
    for i in range(60):
        save(tmp_path / f"{i}.png", i % 59)  # the last is the first again, in another part and under other classes
        names = ["all", *(["odd"] if i % 2 else []), *(["rare"] if i == 1 else [])]
        lines.append(f"{i}.png,{'|'.join(names)},{'test' if i >= 40 else 'train'}")
    source = open_source(settings(written(tmp_path, "\n".join(lines))))
    scanned = scan(source, settings())
    found = report(source, scanned, split(source, scanned.bad, settings()))
    assert (found.classes, found.most, found.least) == (3, ("all", 60), ("rare", 1))
    assert (found.without, found.everywhere) == (0, ("all",)) and found.a_picture == pytest.approx(91 / 60)
    assert found.conflicts == (("0.png", "all", "59.png", "all|odd"),)
    assert found.missing["test"] == ("rare",) and found.leaks[0][0] == "0.png"
    said = " ".join(found.lines())
    assert "Several classes a picture: 1.5 in the mean; 0 pictures with none." in said
    assert "Every picture is of the class all" in said


def test_batches_have_the_rows_of_their_pictures() -> None:
    source = made(drawn_rows(10, [0.5, 0.5]))
    kept = store(source, scan(source, settings()), channels=1, keep_side=None, budget_bytes=1 << 20)
    batches = loader.training(
        kept, source, np.arange(10), size=(4, 4), batch_size=4, seed=0, augment=AugmentConfig(), first_step=0,
        last_step=2, num_workers=0, on_bad=lambda *_: None,
    )  # fmt: skip
    for batch in batches:
        assert torch.equal(batch.labels, torch.from_numpy(source.labels)[batch.index])
    preprocess = PreprocessConfig(size=(4, 4), mean=(0.5,), std=(0.5,))
    told = [
        labels
        for _, labels in loader.evaluation(
            source, np.arange(10), preprocess, settings(), batch_size=4, on_bad=lambda *_: None
        )
    ]
    assert torch.equal(torch.cat(told), torch.from_numpy(source.labels))
