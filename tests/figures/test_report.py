"""The page of a run: whole, without network or script, whatever things are named."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vitrine.figures import markup, report, tables
from vitrine.figures.curves import Curve
from vitrine.figures.report import Answers, Mistake, Option, Report, page, thumbnail
from vitrine.figures.tables import ClassRow
from vitrine.results import Figure

HOSTILE = "</td><script>alert(\"1\")</script><img src=x onerror='f()'>\x00\u202e\ud800"
ALONE = {"meta", "img", "br"}


class Parsed(HTMLParser):
    """The elements of a page with their attributes, its text, and whether every element is closed in turn."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words, self._open = "", list[str]()
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.words += " "
        if tag not in ALONE:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data


def figure(value: float, n: int = 10) -> Figure:
    return Figure(value=value, low=max(0.0, value - 0.1), high=min(1.0, value + 0.1), n=n)


def made(K: int = 3, name: str = "cat", **changes: Any) -> Report:
    names = [f"{name}{i}" for i in range(K)]
    counts = np.eye(K, dtype=np.int64) * 8
    counts[0, 1] = 2
    rows = tuple(ClassRow(name=word, n=10, recall=figure(0.8), precision=figure(0.9)) for word in names)
    full = Report(
        title=f"Vision Transformer on {name}",
        lead=f"trained on {name}.",
        state="finished",
        charts={"loss": [Curve(name="training", points=((1, 2.0), (2, 1.0)))],
                "accuracy": [Curve(name="training", points=((1, 0.5), (2, 0.9)))]},
        kept=2,
        answers=Answers(part="test", top1=figure(0.8, 30), guess=0.34, confusion=counts, classes=rows),
        warnings={"Stuck": f"nothing is learnt of {name}"},
        notes=[f"a note on {name}"],
        mistakes=[Mistake(id=name, picture=Image.new("RGB", (300, 200), "red"), true=name, said=name, probability=0.9)],
        mistakes_of="of validation",
        facts={"command": f"vitrine train {name}", "nothing": ""},
        options=(Option(name="lr", value=name, default="1"), Option(name="seed", value="0", default="0")),
    )  # fmt: skip
    return replace(full, **changes)


def test_a_page_is_sound_and_says_the_headline() -> None:
    parsed = Parsed(page(made()))
    words = " ".join(parsed.words.split())
    assert "80.0 % of 30 test pictures named rightly" in words
    assert "95 % interval 70.0 to 90.0 %" in words and "alone would reach 34.0 %" in words
    assert "cat0 called cat1 2 of 10" in words
    assert "Dotted: epoch 2" in words and "Nothing is learnt of cat" in words and "A note on cat" in words
    assert "Chosen or given (1)" in words and "At their default (1)" in words
    assert [tag for tag, _ in parsed.elements].count("dt") == 1  # what is empty is left out


def test_nothing_is_loaded_and_nothing_runs() -> None:
    text = page(made())
    parsed = Parsed(text)
    assert not {"script", "link", "iframe", "object", "base"} & {tag for tag, _ in parsed.elements}
    sources = [value for _, given in parsed.elements for key, value in given.items() if key in ("src", "href")]
    assert sources and all(str(value).startswith("data:image/") for value in sources)
    assert not re.search(r"https?:|@import|url\(", text)
    policy = next(given["content"] for tag, given in parsed.elements if given.get("http-equiv"))
    assert policy is not None and policy.startswith("default-src 'none'") and "script" not in policy


def test_whatever_things_are_named_is_text() -> None:
    plain, hostile = Parsed(page(made(name="cat"))), Parsed(page(made(name=HOSTILE)))
    assert [tag for tag, _ in plain.elements] == [tag for tag, _ in hostile.elements]
    titled = [set(given) - {"title"} for _, given in plain.elements]
    assert titled == [set(given) - {"title"} for _, given in hostile.elements]
    assert '<script>alert("1")</script>' in hostile.words
    assert "\x00" not in hostile.words and "\ud800" not in hostile.words
    page(made(name=HOSTILE)).encode()


def test_the_same_report_is_the_same_page() -> None:
    assert page(made()) == page(made())


@pytest.mark.parametrize("K", [2, tables.MATRIX, tables.MATRIX + 1, 1000])
def test_many_classes_have_no_matrix_but_their_largest_confusions(K: int) -> None:
    text = page(made(K))
    parsed = Parsed(text)
    assert ("confusion" in " ".join(str(given.get("class")) for _, given in parsed.elements)) == (K <= tables.MATRIX)
    assert "Largest confusions" in parsed.words
    assert len(text) < 5_000_000
    assert (f"{K - tables.ROWS:,} more classes" in parsed.words) == (K > tables.ROWS)


def test_a_run_that_did_not_end_has_a_page_too() -> None:
    empty = made(charts={"loss": []}, kept=0, answers=None, warnings={}, notes=(), mistakes=())
    words = Parsed(page(empty)).words
    assert "No epoch has ended yet" in words and "Nothing to warn of" in words and "Worst mistakes" not in words


def test_a_cell_is_as_deep_as_its_share_of_its_row() -> None:
    html = tables.matrix(np.array([[9, 1], [0, 0]]), ["a", "b"])
    assert re.findall(r'class="(\w+)(?: deep)?" style="--s:([\d.]+)">(\d+)<', html) == [
        ("right", "0.91", "9"), ("wrong", "0.23", "1")
    ]  # fmt: skip
    assert html.count("<td></td>") == 2


def test_the_largest_confusions_come_first_and_none_is_of_no_picture() -> None:
    counts = np.array([[5, 1, 0], [4, 5, 2], [0, 0, 9]])
    found = re.findall(
        r"<bdi>(\w)</bdi> called <bdi>(\w)</bdi>.*?(\d+) of (\d+)", tables.pairs(counts, ["a", "b", "c"])
    )
    assert found == [("b", "a", "4", "11"), ("b", "c", "2", "11"), ("a", "b", "1", "6")]
    assert tables.pairs(np.eye(3, dtype=np.int64), ["a", "b", "c"]) == ""


def test_classes_stand_by_recall_and_what_is_unknown_is_said() -> None:
    rows = [
        ClassRow(name="good", n=9, recall=figure(0.9), precision=figure(0.9)),
        ClassRow(name="bad", n=9, recall=figure(0.1), precision=None),
        ClassRow(name="none", n=0, recall=figure(0.5, 0), precision=figure(0.5)),
    ]
    html = tables.classes(rows)
    assert re.findall(r"<bdi>(\w+)</bdi>", html) == ["bad", "none", "good"]
    assert "never the answer" in html and "unknown" in html


@pytest.mark.parametrize(
    ("size", "kind", "shown"),
    [((300, 200), "JPEG", (128, 85)), ((8, 8), "PNG", (8, 8)), ((100, 90), "JPEG", (100, 90))],
)
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_thumbnail_is_small_and_small_pictures_keep_their_pixels(
    size: tuple[int, int], kind: str, shown: tuple[int, int], mode: str
) -> None:
    html = thumbnail(Image.new(mode, size, "gray"))
    found = Image.open(io.BytesIO(base64.b64decode(re.search(r"base64,([^\"]+)", html)[1])))  # type: ignore[index]
    assert (found.format, found.size, found.mode) == (kind, shown, mode)
    assert ('class="small"' in html) == (kind == "PNG")


@pytest.mark.parametrize(
    ("value", "words"),
    [(0, "0"), (0.25, "0.25"), (12345.6, "12,346"), (0.00025, "0.00025"), (2.5e-6, "2.5e-6"), (-3.0, "-3")],
)
def test_numbers_are_short(value: float, words: str) -> None:
    assert markup.number(value) == words


def test_a_long_name_is_cut_and_told_in_full() -> None:
    assert markup.name("a" * 50, 10) == f'<bdi title="{"a" * 50}">{"a" * 9}…</bdi>'
    assert markup.escaped("'\"<>&") == "&#x27;&quot;&lt;&gt;&amp;"


def test_the_page_names_where_its_figures_are_explained() -> None:
    assert "docs/watching.md" in report.FOOTER
