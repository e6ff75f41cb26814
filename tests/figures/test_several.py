"""The parts of a run's page where a picture may have several classes."""

from __future__ import annotations

from dataclasses import replace

import pytest
from PIL import Image

from tests.figures.test_report import HOSTILE, Parsed, figure, made
from vitrine.figures import tables
from vitrine.figures.report import Mistake, Report, page
from vitrine.figures.several import WORDS, Several
from vitrine.results import ClassFigures


def answers(name: str = "cat", K: int = 3) -> Several:
    rows = tuple(
        ClassFigures(
            name=f"{name}{k}",
            n=10,
            recall=figure(0.7),
            precision=0.9,
            average_precision=figure(0.9 - k / 2 / K),
            f1=0.8,
        )
        for k in range(K)
    )
    figures = {"map": figure(0.8, 30), **{key: figure(0.6, 30) for key in WORDS}}
    return Several(part="test", figures=figures, guess=0.21, threshold=0.375, classes=rows)


def report(name: str = "cat", K: int = 3) -> Report:
    picture = Image.new("RGB", (30, 20), "red")
    wrong = [
        Mistake(id=name, picture=picture, true=f"{name}, dog", said=name, of="dog", probability=0.02),
        Mistake(id=name, picture=picture, true="", said=name, of=name, probability=0.97),
        Mistake(id=name, picture=picture, true=name, said="", of=name, probability=0.01),
    ]
    return made(name=name, answers=answers(name, K), mistakes=wrong)


def words(text: str) -> str:
    return " ".join(Parsed(text).words.split())


def test_the_page_has_average_precision_and_no_matrix() -> None:
    found = words(page(report()))
    assert "80.0 % mean average precision on 30 test pictures" in found
    assert "95 % interval 70.0 to 90.0 %; a guess that looks at nothing would reach 21.0 %" in found
    assert "called from the probability 0.375 on" in found and "F1, mean of the classes 60.0 %" in found
    assert found.index("cat2 10") < found.index("cat1 10") < found.index("cat0 10 90.0 % 80.0 % 90.0 % 70.0 %")
    assert "Largest confusions" not in found and "taken for what" not in found


def test_a_mistake_names_what_was_said_what_there_is_and_which_is_wrong() -> None:
    found = words(page(report()))
    assert "said cat is cat, dog dog 2 %" in found
    assert "said cat is no class cat 97 %" in found and "said no class is cat cat 1 %" in found


def test_what_is_not_known_of_a_class_is_said_and_stands_last() -> None:
    rows = answers().classes
    bare = replace(rows[0], name="unseen", n=0, precision=None, average_precision=None, f1=0.0, recall=figure(0, 0))
    found = words(page(made(answers=replace(answers(), classes=(bare, *rows)))))
    assert "unseen 0 no picture of it – – –" in found and found.index("unseen") > found.index("cat0")


@pytest.mark.parametrize("K", [2, tables.ROWS, tables.ROWS + 1, 1000])
def test_many_classes_open_on_a_click(K: int) -> None:
    text = page(report(K=K))
    assert (f"{K - tables.ROWS:,} more classes" in text) == (K > tables.ROWS)
    assert all(f"cat{k}<" in text for k in range(K))


def test_whatever_things_are_named_is_text() -> None:
    plain, hostile = Parsed(page(report())), Parsed(page(report(HOSTILE)))
    assert [tag for tag, _ in plain.elements] == [tag for tag, _ in hostile.elements]
    assert '<script>alert("1")</script>' in hostile.words and "\x00" not in hostile.words
