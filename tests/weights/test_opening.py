from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests import made
from tests.models.toys import pictures
from tests.weights.strangers import entry, safetensors
from vitrine.config.options import PreprocessConfig
from vitrine.errors import BadData, NotFound, UsageError
from vitrine.models.positions import resize
from vitrine.results import Figure
from vitrine.weights import bundle as bundles
from vitrine.weights import hub
from vitrine.weights.foreign import Format, Raw, Reading, with_given
from vitrine.weights.formats import registry
from vitrine.weights.opening import open_model
from vitrine.weights.resample import COST


def reader(name: str, **changes: Any) -> Format:
    """A format of files that hold a bundle's tensors under the prefix `name.`, its config in the metadata."""

    def read(raw: Raw) -> Reading:
        if "broken" in raw.metadata:
            raise BadData("the tensors do not fit the model: missing: x.")
        config = made.small(**json.loads(raw.metadata["model"]))
        tensors = {key.removeprefix(f"{name}."): tensor for key, tensor in raw.tensors.items()}
        tensors |= changes.get("more", {})
        return Reading(
            model=with_given(config, raw.given),
            preprocess=PreprocessConfig(size=config.size, mean=(0.1,) * config.in_chans, std=(0.2,) * config.in_chans),
            tensors=tensors, used=tuple(raw.tensors), dropped={"x": "unused"}, fresh={"y": "zero"},
            said=("GELU: exact",), class_names=changes.get("names"),
        )  # fmt: skip

    return Format(name=name, title=f"files of {name}", fits=lambda raw: name in raw.metadata, read=read)


def _missing(raw: Raw) -> Reading:
    raise BadData("the tensors do not fit the model: missing: x.")


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> dict[str, Format]:
    """Two formats that only these tests know."""
    made_here = {
        "one": reader("one"),
        "two": reader("two"),
        "named": reader("named", names=("ape", "bee", "cat")),
        "more": reader("more", more={"extra": torch.ones(2)}),
        "whole": reader("whole", more={"head.bias": torch.zeros(3, dtype=torch.int64)}),
        "stumbles": replace(reader("stumbles"), read=lambda raw: raw.tensors["its own name"]),  # type: ignore[arg-type,return-value]
        "strict": replace(reader("strict"), read=_missing),
    }
    monkeypatch.setattr(registry, "FORMATS", dict.fromkeys(made_here, "made"))
    monkeypatch.setattr(registry, "held", lambda _: tuple(made_here.values()))
    return made_here


def foreign(path: Path, name: str = "one", kind: torch.dtype = torch.float32, **options: Any) -> Path:
    """A file of the format `name` with the tensors of the toy bundle."""
    tensors = {f"{name}.{key}": tensor.to(kind) for key, tensor in made.bundle(**options).tensors.items()}
    save_file(tensors, path, metadata={name: "", "model": json.dumps(options)})
    return path


def test_our_own_bundle(tmp_path: Path) -> None:
    bundles.save(made.bundle(), tmp_path / "model.safetensors")
    for path in (tmp_path, tmp_path / "model.safetensors", str(tmp_path)):
        found = open_model(path)
        assert (found.format, found.path, found.dropped, found.fresh, found.said) == ("vitrine", str(path), {}, {}, ())
        assert found.bundle.model == made.bundle().model
        assert found.used == tuple(found.bundle.tensors)
        assert all(torch.equal(tensor, made.bundle().tensors[name]) for name, tensor in found.bundle.tensors.items())


def test_our_own_bundle_with_other_names_and_size(tmp_path: Path) -> None:
    bundles.save(made.bundle(), tmp_path / "m")
    (tmp_path / "l").write_text("x\ny\nz")
    found = open_model(tmp_path / "m", labels=tmp_path / "l", given={"img_size": 32})
    assert found.bundle.class_names == ("x", "y", "z")
    assert found.bundle.model.size == found.bundle.preprocess.size == (32, 32)
    assert found.bundle.tensors["pos_embed"].shape[1] == 65
    assert any("positions: resized" in sentence for sentence in found.said)
    bundles.build(found.bundle)(pictures(1, 3, 32, 32))


def test_mistake_13_a_smaller_size_is_warned_of(tmp_path: Path) -> None:
    bundles.save(made.bundle(), tmp_path / "m")
    for path in (tmp_path / "m", foreign(tmp_path / "a")):
        found = open_model(path, given={"img_size": 8})
        assert f"warning: {COST}" in found.said
        assert f"warning: {COST}" in found.bundle.notes
        assert not any("warning" in sentence for sentence in open_model(path, given={"img_size": 32}).said)


def test_our_own_bundle_is_resized_by_the_way_that_is_asked_for(tmp_path: Path) -> None:
    bundles.save(made.bundle(), tmp_path / "m")
    ways = {"pos_interpolation": "bilinear", "pos_align_corners": True}
    bundle = open_model(tmp_path / "m", given={"img_size": 24, **ways}).bundle
    table = made.bundle().tensors["pos_embed"]
    expected = resize(table, (4, 4), (6, 6), interpolation="bilinear", align_corners=True)
    assert torch.equal(bundle.tensors["pos_embed"], expected)
    assert (bundle.model.pos_interpolation, bundle.model.pos_align_corners) == ("bilinear", True)


def test_figures_are_those_of_the_model_that_was_measured(tmp_path: Path) -> None:
    figures = {"test": {"accuracy": Figure(value=0.5, low=0.4, high=0.6, n=100)}}
    bundles.save(replace(made.bundle(), metrics=figures), tmp_path / "m")
    assert open_model(tmp_path / "m").bundle.metrics == figures
    assert open_model(tmp_path / "m", given={"img_size": 32}).bundle.metrics == {}


def test_grey_constants_are_the_means_of_three(tmp_path: Path) -> None:
    bundle = made.bundle()
    settings = replace(bundle.preprocess, mean=(0.1, 0.2, 0.6), std=(0.2, 0.3, 0.4))
    bundles.save(replace(bundle, preprocess=settings), tmp_path / "m")
    grey = open_model(tmp_path / "m", given={"in_chans": 1}).bundle.preprocess
    assert (grey.mean, grey.std) == (pytest.approx((0.3,)), pytest.approx((0.3,)))


def test_a_damaged_bundle_is_not_taken_for_a_strangers(tmp_path: Path) -> None:
    bundles.save(made.bundle(), tmp_path / "m")
    whole = (tmp_path / "m").read_bytes()
    for bit in [*range(0, 8 * 220, 7), 8 * (len(whole) - 1)]:
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        (tmp_path / "m").write_bytes(flipped)
        with pytest.raises(BadData):
            open_model(tmp_path / "m")
    for length in (8, 20, 60, 100, 200, 300, len(whole) - 1):
        (tmp_path / "m").write_bytes(whole[:length])
        with pytest.raises(BadData):
            open_model(tmp_path / "m")


def test_a_format_asked_of_our_bundle(tmp_path: Path) -> None:
    bundles.save(made.bundle(), tmp_path / "m")
    with pytest.raises(UsageError, match="is a bundle of Vitrine, not of the format one"):
        open_model(tmp_path / "m", format="one")
    assert open_model(tmp_path / "m", format="vitrine").format == "vitrine"
    with pytest.raises(BadData, match="is not a bundle of Vitrine"):
        open_model(foreign(tmp_path / "f"), format="vitrine")


def test_a_run_without_a_model_yet(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("")
    with pytest.raises(NotFound, match="has not finished its first epoch"):
        open_model(tmp_path)


def test_a_strangers_file(tmp_path: Path) -> None:
    path = foreign(tmp_path / "a.bin")
    found = open_model(path)
    assert (found.format, found.title, found.dropped, found.fresh) == (
        "one", "files of one", {"x": "unused"}, {"y": "zero"},
    )  # fmt: skip
    assert found.said[0] == "GELU: exact"
    assert found.bundle.notes == found.said
    assert found.bundle.class_names == ("0", "1", "2")
    assert found.said[-1].startswith("class names: unknown")
    assert found.bundle.preprocess.mean == (0.1, 0.1, 0.1)
    assert found.bundle.provenance.init == f"{path} (files of one)"
    images = pictures(2, 3, 16, 16)
    with torch.inference_mode():
        wanted = bundles.build(made.bundle())(images)
        assert torch.equal(bundles.build(found.bundle)(images), wanted)


def test_names_that_come_with_the_file(tmp_path: Path) -> None:
    assert open_model(foreign(tmp_path / "a", "named")).bundle.class_names == ("ape", "bee", "cat")
    (tmp_path / "l").write_text('["x", "y", "z"]')
    assert open_model(foreign(tmp_path / "a", "named"), labels=tmp_path / "l").bundle.class_names == ("x", "y", "z")


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_other_float_types_are_computed_in_float32(tmp_path: Path, kind: torch.dtype) -> None:
    found = open_model(foreign(tmp_path / "a", kind=kind))
    assert {tensor.dtype for tensor in found.bundle.tensors.values()} == {torch.float32}
    assert f"weights: stored as {str(kind)[6:]}, computed in float32" in found.said


def test_weights_that_are_not_finite_are_said(tmp_path: Path) -> None:
    bundle = made.bundle()
    tensors = {f"one.{name}": tensor.clone() for name, tensor in bundle.tensors.items()}
    tensors["one.head.bias"][1] = float("nan")
    tensors["one.norm.weight"][:2] = float("inf")
    tensors["one.norm.bias"][:] = 3e38  # finite, though their sum is not
    save_file(tensors, tmp_path / "a", metadata={"one": "", "model": "{}"})
    (warning,) = [sentence for sentence in open_model(tmp_path / "a").said if sentence.startswith("warning")]
    assert "1 of head.bias" in warning
    assert "2 of norm.weight" in warning
    assert "norm.bias" not in warning


def test_another_size_patch_and_channels(tmp_path: Path) -> None:
    path = foreign(tmp_path / "a")
    found = open_model(path, given={"img_size": (24, 32), "patch_size": 8, "in_chans": 1})
    config = found.bundle.model
    assert (config.size, config.patch_size, config.in_chans) == ((24, 32), 8, 1)
    assert found.bundle.preprocess.size == (24, 32)
    assert found.bundle.preprocess.mean == pytest.approx((0.1,))
    for word in ("positions: resized", "patch filter: 4 to 8", "first filter: summed"):
        assert any(word in sentence for sentence in found.said), found.said
    bundles.build(found.bundle)(pictures(1, 1, 24, 32))


def test_grey_to_colour(tmp_path: Path) -> None:
    found = open_model(foreign(tmp_path / "a", in_chans=1), given={"in_chans": 3})
    assert found.bundle.preprocess.std == (0.2, 0.2, 0.2)
    bundles.build(found.bundle)(pictures(1, 3, 16, 16))


def test_given_facts_reach_the_format(tmp_path: Path) -> None:
    assert open_model(foreign(tmp_path / "a"), given={"num_heads": 4}).bundle.model.num_heads == 4


def test_no_format_fits(tmp_path: Path) -> None:
    save_file({"w": torch.ones(2, 3), "v": torch.ones(1)}, tmp_path / "a")
    with pytest.raises(BadData) as caught:
        open_model(tmp_path / "a")
    assert str(caught.value) == (
        f"{tmp_path / 'a'}: 2 tensors of no known format: v [1], w [2, 3]. Known are vitrine, one, two, named, more, "
        "whole, stumbles, strict; --format NAME tries one and says what is missing."
    )


def test_several_formats_fit(tmp_path: Path) -> None:
    tensors = {f"one.{name}": tensor for name, tensor in made.bundle().tensors.items()}
    save_file(tensors, tmp_path / "a", metadata={"one": "", "two": "", "model": "{}"})
    with pytest.raises(UsageError, match=r"Choose one by --format NAME: one: files of one; two: files of two\."):
        open_model(tmp_path / "a")
    assert open_model(tmp_path / "a", format="one").format == "one"


def test_a_format_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--format twoo: there is no such format. Did you mean 'two'\?"):
        open_model(tmp_path / "nothing", format="twoo")


def test_tensors_that_are_not_the_models(tmp_path: Path) -> None:
    with pytest.raises(BadData, match=r"/a: as files of more: the tensors do not fit the model: unexpected: extra"):
        open_model(foreign(tmp_path / "a", "more"))
    with pytest.raises(BadData, match=r"no floating point numbers: head\.bias \(torch\.int64\)"):
        open_model(foreign(tmp_path / "a", "whole"))
    save_file({"one.w": torch.ones(1)}, tmp_path / "a", metadata={"one": "", "broken": ""})
    with pytest.raises(BadData, match=r"/a: as files of one: the tensors do not fit the model: missing: x"):
        open_model(tmp_path / "a")


def test_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    foreign(tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"id2label": {"0": "a", "1": "b", "2": "c"}}))
    monkeypatch.setattr(hub, "fetch", lambda name: (tmp_path, (f"hub: {name}",)))
    found = open_model("hf://me/mine@v1")
    assert found.path == "hf://me/mine@v1"
    assert found.said[0] == "hub: hf://me/mine@v1"
    assert found.bundle.class_names == ("a", "b", "c")
    assert found.bundle.provenance.init == "hf://me/mine@v1 (files of one)"
    bundles.save(made.bundle(), tmp_path / "model.safetensors")
    assert open_model("hf-hub:me/mine").format == "vitrine"


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no such file"):
        open_model(tmp_path / "none.pt")
    with pytest.raises(NotFound, match="no weights here"):
        open_model(tmp_path)


def test_each_sentence_is_said_once(tmp_path: Path) -> None:
    said = open_model(foreign(tmp_path / "a"), given={"img_size": 32}).said
    assert len(said) == len(set(said))


def test_a_header_of_ours_in_a_file_of_no_tensors(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(safetensors({"__metadata__": {"vitrine": "{}"}, "w": entry(0, 4)}, bytes(4)))
    with pytest.raises(BadData):
        open_model(tmp_path / "a")


def test_a_format_that_the_file_is_not_of_is_refused_in_one_sentence(tmp_path: Path) -> None:
    path = foreign(tmp_path / "a")
    with pytest.raises(BadData, match=r"a: as files of stumbles: .*It fits one: leave --format out\.$"):
        open_model(path, format="stumbles")
    with pytest.raises(BadData, match=r"missing: x\. It fits one: leave --format out\.$"):
        open_model(path, format="strict")
    with pytest.raises(KeyError):  # a fault of the reader's own is not blamed on the file
        open_model(foreign(tmp_path / "b", "stumbles"))


def test_a_part_of_our_bundle_is_not_to_be_had(tmp_path: Path) -> None:
    bundles.save(made.bundle(), tmp_path / "m")
    with pytest.raises(UsageError, match=r"--entry model: .* has no parts"):
        open_model(tmp_path / "m", entry="model")


def test_what_was_given_is_said_to_go_before_the_file(tmp_path: Path) -> None:
    said = open_model(foreign(tmp_path / "a"), given={"norm_eps": 1e-3, "img_size": 16}).said
    assert "as given, before what the file says: norm_eps = 0.001" in said


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("google/vit-base", r"If a model of the hub is meant: hf://google/vit-base\.$"),
        ("https://hub.example/google/vit", r"^https://hub\.example/google/vit: addresses .* hf://ORGANISATION/NAME"),
        ("vit.pth", r"makes one\.$"),
    ],
)
def test_a_model_of_the_hub_without_its_sign(path: str, said: str) -> None:
    with pytest.raises(NotFound, match=said):
        open_model(path)
