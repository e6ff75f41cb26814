"""Every verb as it is typed: results on stdout, everything else on stderr, an exit code for each kind of failure."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tests.made import WORDS, bundle, photo, photos
from vitrine.__main__ import main
from vitrine.errors import UsageError
from vitrine.train import pace
from vitrine.weights import container
from vitrine.weights.bundle import open_bundle, save

Told = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(pace, "LONGEST_S", 0.05)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def picture(tmp_path: Path) -> str:
    return str(photo(tmp_path / "p.png"))


def answer(told: Told) -> Any:
    """The one JSON object on stdout."""
    out = told.readouterr().out
    assert out.endswith("}\n") and out.count("\n") == 1
    found = json.loads(out)
    assert next(iter(found)) == "schema_version" and found["schema_version"] == 1
    return found


def is_figure(found: dict[str, Any]) -> bool:
    return set(found) == {"value", "low", "high", "n"} and found["low"] <= found["value"] <= found["high"]


def test_train_tells_its_plan_on_stderr_and_its_figures_on_stdout(tmp_path: Path, capsys: Told) -> None:
    out = str(tmp_path / "r")
    assert main(["train", "digits", "--out", out, "--epochs", "1", *WORDS]) == 0
    told = capsys.readouterr()
    assert told.out.startswith("top-1 accuracy ") and "n = 360)" in told.out.splitlines()[0]
    assert told.out.endswith(
        f"model: {out}/model.safetensors\nlook:  {out}/report.html\nnext:  vitrine predict {out} PICTURE\n"
    )
    assert "length: 1 epochs" in told.err and "top-1" not in told.err
    assert open_bundle(out).provenance.command == f"vitrine train digits --out {out} --epochs 1 {' '.join(WORDS)}"
    assert main(["train", "digits", "--out", out, "--epochs", "1", *WORDS]) == 73
    assert "a finished run stands here" in capsys.readouterr().err


def test_train_as_json_quietly(tmp_path: Path, capsys: Told) -> None:
    words = ["train", "digits", "--out", str(tmp_path / "r"), "--epochs", "1", "--json", "-q", *WORDS]
    assert main(words) == 0
    assert capsys.readouterr().err == ""
    assert main(["info", str(tmp_path / "r"), "--json"]) == 0
    found = answer(capsys)
    assert all(is_figure(figure) for part in found["metrics"].values() for figure in part.values())


def test_train_as_json_is_one_object(tmp_path: Path, capsys: Told) -> None:
    assert main(["train", "digits", "--out", str(tmp_path / "r"), "--epochs", "1", "--json", *WORDS]) == 0
    found = answer(capsys)
    assert set(found) == {"schema_version", "out", "metrics", "notes", "report"}
    assert Path(found["report"]) == tmp_path / "r" / "report.html" and Path(found["report"]).is_file()
    assert set(found["metrics"]) == {"validation", "test"}
    assert all(is_figure(figure) for part in found["metrics"].values() for figure in part.values())


def test_train_takes_a_file_of_options_under_those_typed(tmp_path: Path, capsys: Told) -> None:
    file = tmp_path / "o.toml"
    file.write_text('epochs = 5\nseed = 4\n[data]\nsource = "digits"\n[optim]\nlr = 0.125\nname = "sgd"\n')
    words = ["--config", str(file), "--out", str(tmp_path / "r"), "--epochs", "1", "--optim.name", "adamw"]
    assert main(["train", *words, "--model.img-size", "12", "8", *WORDS]) == 0
    capsys.readouterr()
    made = open_bundle(tmp_path / "r")
    assert made.run["epochs"] == 1 and made.run["seed"] == 4
    assert made.run["optim"]["lr"] == 0.125 and made.run["optim"]["name"] == "adamw"
    assert made.model.img_size == made.preprocess.size == (12, 8)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("epoch = 3", "epoch: there is no such option. Did you mean 'epochs'"),
        ("epochs = '3'", "epochs = '3'"),
        ("data = 'digits'", "data = 'digits'"),
        ("optim = 3", "optim = 3"),
        ("device = 'gpu'", "device = 'gpu'"),
        ("epochs = ", "not valid TOML"),
        ("optim = {lrr = 1}", "o.toml: optim.lrr: there is no such option. Did you mean 'lr'"),
        *((f"{name} = 'x'", f"o.toml: {name}: there is no such option") for name in ("out", "watch", "command")),
        *((f"{name} = 'x'", f"o.toml: {name}: there is no such option") for name in ("source", "config", "optim__lr")),
    ],
)
def test_a_file_of_options_is_checked_strictly(tmp_path: Path, capsys: Told, text: str, said: str) -> None:
    (tmp_path / "o.toml").write_text(text)
    words = [] if text.startswith("data") else ["digits"]
    assert main(["train", *words, "--config", str(tmp_path / "o.toml"), "--out", str(tmp_path / "r")]) == 78
    assert said in capsys.readouterr().err
    assert not (tmp_path / "r").exists()


def test_predict(run: Path, picture: str, capsys: Told) -> None:
    assert main(["predict", str(run), picture, "--top", "2", "--device", "cpu"]) == 0
    told = capsys.readouterr()
    assert told.err == ""
    assert told.out.startswith(f"{picture}: ") and told.out.count("%") == told.out.count(" %") == 2
    assert main(["predict", str(run), picture, picture, "--json", "--device", "cpu"]) == 0
    found = answer(capsys)
    assert [result["picture"] for result in found["results"]] == [picture, picture]
    first = found["results"][0]["predictions"]
    assert len(first) == 5 and set(first[0]) == {"label", "index", "probability"}
    assert told.out.split(": ")[1].split()[0] == first[0]["label"]


@pytest.mark.parametrize("json_too", [False, True])
def test_a_bad_picture_does_not_keep_a_good_one_from_its_answer(
    run: Path, picture: str, tmp_path: Path, capsys: Told, json_too: bool
) -> None:
    (tmp_path / "bad.png").write_bytes(b"no picture")
    words = [str(tmp_path / "bad.png"), picture, *["--json"] * json_too]
    assert main(["predict", str(run), *words]) == 65
    told = capsys.readouterr()
    assert told.err.startswith(f"vitrine: {tmp_path / 'bad.png'}: ") and told.err.count("\n") == 1
    if json_too:
        bad, good = json.loads(told.out)["results"]
        assert bad["error"] == told.err.strip().removeprefix("vitrine: ") and good["predictions"]
    else:
        assert told.out.startswith(f"{picture}: ") and told.out.count("\n") == 1
    assert main(["predict", str(run), str(tmp_path / "none.png"), str(tmp_path / "bad.png")]) == 66


def test_evaluate(run: Path, tmp_path: Path, capsys: Told) -> None:
    png = tmp_path / "c.png"
    assert main(["evaluate", str(run), "digits", "--confusion", str(png)]) == 0
    told = capsys.readouterr()
    assert told.out.startswith("top-1 accuracy ") and told.out.endswith(f"{png}\n")
    assert told.err == "measured on: test (the model was trained on the rest of this data)\n"
    with Image.open(png) as drawn:
        assert drawn.format == "PNG"
    assert main(["evaluate", str(run), "digits", "--part", "validation", "--json"]) == 0
    found = answer(capsys)
    assert found["part"] == "validation" and found["left_out"] == {}
    assert all(is_figure(found[name]) and found[name]["n"] == 360 for name in ("top1", "top5", "loss", "ece"))
    assert len(found["classes"]) == 10 and is_figure(found["classes"][0]["recall"])


def test_explain(run: Path, picture: str, tmp_path: Path, capsys: Told) -> None:
    png = str(tmp_path / "e.png")
    assert main(["explain", str(run), picture, "--out", png]) == 0
    told = capsys.readouterr()
    assert told.err == "" and told.out.startswith(f"{picture}: ") and told.out.endswith(f"{png}\n")
    assert told.out.splitlines()[0].endswith(" %")
    assert "\x1b" not in told.out
    assert main(["explain", str(run), picture, "--json"]) == 0
    found = answer(capsys)
    assert set(found) == {"schema_version", "picture", "predictions", "box", "rollout", "figure"}
    assert found["figure"] is None and found["box"] == [0, 0, 40, 30]
    assert len(found["rollout"]) == len(found["rollout"][0]) == 4


def test_the_limits_of_a_picture_may_be_set_anew(run: Path, picture: str, capsys: Told) -> None:
    for verb in ("predict", "explain"):
        assert main([verb, str(run), picture, "--max-pixels", "1199"]) == 65
        assert "40 x 30 pixels are more than the limit of 1,199" in capsys.readouterr().err
        assert main([verb, str(run), picture, "--max-bytes", "100"]) == 65
        assert "more than the limit of 100" in capsys.readouterr().err
        assert main([verb, str(run), picture, "--max-pixels", "1200"]) == 0
        assert main([verb, str(run), picture, "--max-pixels", "0"]) == 78
        assert "max_pixels = 0: must be at least 1" in capsys.readouterr().err
    folder = str(Path(picture).parent / "data")
    photo(Path(folder) / "3" / "a.png")
    photo(Path(folder) / "4" / "b.png", size=(41, 30))
    words = ["evaluate", str(run), folder, "--max-pixels", "1200", "--json"]
    assert main(words) == 65
    assert "1 of 2 pictures cannot be read" in capsys.readouterr().err
    assert main(["evaluate", str(run), folder, "--json"]) == 0
    assert answer(capsys)["left_out"] == {}


def test_a_very_large_picture_costs_little_to_show(
    run: Path, tmp_path: Path, capsys: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    large = tmp_path / "large.png"
    Image.linear_gradient("L").resize((3000, 4000)).convert("RGB").save(large)
    tracemalloc.start()
    assert main(["explain", str(run), str(large), "--device", "cpu", "--out", str(tmp_path / "e.png")]) == 0
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "\x1b[38;2;" in capsys.readouterr().out
    assert peak < 400_000_000  # as floating-point numbers the picture alone has 288 million bytes, and more are needed


def test_info_of_a_file(run: Path, capsys: Told) -> None:
    assert main(["info", str(run)]) == 0
    told = capsys.readouterr()
    assert told.err == "" and "whole, its SHA-256 holds\n" in told.out and "10 classes: 0, 1, 2" in told.out
    assert "test: top-1 " in told.out and "n = 360)" in told.out
    assert main(["info", str(run / "model.safetensors"), "--json"]) == 0
    found = answer(capsys)
    sizes = sum(tensor.numel() for tensor in open_bundle(run).tensors.values())
    assert found["parameters"] == sizes and found["flop"] == 2 * found["macs"]
    assert found["finished"] is True and found["class_names"] == list("0123456789")


def test_info_of_a_model_of_its_own(tmp_path: Path, capsys: Told) -> None:
    """Without figures, provenance and names of classes there is still something to say."""
    save(bundle(num_classes=0, class_names=()), tmp_path / "m")
    assert main(["info", str(tmp_path / "m")]) == 0
    assert "no head: it gives features" in capsys.readouterr().out


def test_info_of_the_named_models(capsys: Told) -> None:
    assert main(["info", "--models", "--json"]) == 0
    found = {row["name"]: row for row in answer(capsys)["models"]}
    base = found["vit_base_patch16_224"]
    assert base["alias"] == "vit-b/16" and base["parameters"] == 86_567_656 and base["flop"] == 2 * base["macs"]
    assert main(["info", "--models"]) == 0
    told = capsys.readouterr().out
    assert "86.57" in told and max(map(len, told.splitlines())) < 120


def one_class(folder: Path) -> Path:
    return photos(folder / "one", {"a": 3})


def empty(folder: Path) -> Path:
    (folder / "empty").mkdir()
    return folder / "empty"


def damaged(folder: Path) -> Path:
    save(bundle(), folder / "m.safetensors")
    data = bytearray((folder / "m.safetensors").read_bytes())
    data[-5] ^= 1
    (folder / "m.safetensors").write_bytes(data)
    return folder / "m.safetensors"


def state(folder: Path) -> Path:
    container.write(folder / "state.safetensors", {}, {"kind": "state"})
    return folder / "state.safetensors"


@pytest.mark.parametrize(
    ("words", "make", "code", "said"),
    [
        (["train", "{}/none", "--out", "{}/r"], None, 66, "there is no such path or built-in name"),
        (["train", "{}", "--out", "{}/../r"], empty, 65, "empty"),
        (["train", "{}", "--out", "{}/../r"], one_class, 65, "class"),
        (["train", "digits", "--out", "{}"], one_class, 73, "exists and is not a run"),
        (["train", "--out", "{}/r"], None, 2, "give DATA to begin one"),
        (["train", "digits", "--out", "{}/r", "--init", "{}/none"], None, 66, "no such file or run folder"),
        (["train", "digits", "--out", "{}/r", "--arch", "vit-x/16"], None, 66, "there is no such model"),
        (["train", "digits", "--out", "{}/r", "--model.in-chans", "4"], None, 2, "--model.in-chans 4"),
        (["train", "digits", "--out", "{}/r", "--epochs", "0"], None, 78, "epochs = 0"),
        (["train", "digits", "--out", "{}/r", "--config", "{}/none.toml"], None, 66, "none.toml"),
        (["predict", "{}/none", "p"], None, 66, "no such file or run folder"),
        (["predict", "{}", "p"], empty, 66, "there are no weights here"),
        (["predict", "{}", "p"], damaged, 65, "does not match its own SHA-256"),
        (["explain", "{}", "p"], damaged, 65, "m.safetensors"),
        (["evaluate", "{}", "digits"], state, 65, "holds the state of a run, not a model"),
        (["info", "{}"], damaged, 65, "m.safetensors"),
        (["info", "{}/none"], None, 66, "no such file"),
    ],
)
def test_each_failure_has_its_code_and_one_line(
    tmp_path: Path, capsys: Told, words: list[str], make: Any, code: int, said: str
) -> None:
    place = tmp_path if make is None else make(tmp_path)
    assert main([word.replace("{}", str(place)) for word in words]) == code
    told = capsys.readouterr()
    assert told.out == ""
    last = told.err.splitlines()[-1]
    assert last.startswith("vitrine: ") and said in last
    assert "Traceback" not in told.err


def test_failures_of_an_open_model(run: Path, tmp_path: Path, capsys: Told) -> None:
    assert main(["predict", str(run), str(tmp_path / "none.png")]) == 66
    assert main(["explain", str(run), str(tmp_path / "none.png")]) == 66
    assert main(["evaluate", str(run), str(tmp_path / "none")]) == 66
    assert main(["evaluate", str(run), str(empty(tmp_path))]) == 65
    if not torch.cuda.is_available():
        assert main(["predict", str(run), "p", "--device", "cuda"]) == 69
    assert "Traceback" not in capsys.readouterr().err


def test_debug_shows_the_traceback() -> None:
    with pytest.raises(UsageError, match="there is no such verb"):
        main(["trian", "--debug"])


def test_a_failure_nobody_foresaw_is_one_line_too(capsys: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    errors: list[tuple[Exception, int, str]] = [
        (RuntimeError("two\nlines"), 1, "an unexpected RuntimeError: two lines. --debug shows where."),
        (MemoryError(), 69, "there is not enough memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes"), 69, "there is not enough memory"),
        (OSError(5, "Input/output error", "/x"), 74, "/x: Input/output error"),
    ]
    for error, code, said in errors:

        def fail(words: list[str], error: Exception = error) -> int:
            raise error

        monkeypatch.setattr("vitrine.__main__._run", fail)
        assert main(["info"]) == code
        told = capsys.readouterr().err
        assert told.startswith(f"vitrine: {said}") and told.count("\n") == 1
        with pytest.raises(type(error)):
            main(["info", "--debug"])


def test_fine_tuning_is_training_with_init(run: Path, tmp_path: Path, capsys: Told) -> None:
    data = photos(tmp_path / "data", {"x": 6, "y": 6}, size=(16, 16))
    words = ["--init", str(run), "--epochs", "1", "--batch-size", "4", "--device", "cpu", "--threads", "1"]
    assert main(["train", str(data), "--out", str(tmp_path / "r"), *words, "--json"]) == 0
    told = capsys.readouterr()
    assert "head: fresh and zero, for 2 classes" in told.err
    assert open_bundle(tmp_path / "r").provenance.init == str(run)
    assert any("there was no validation part" in note for note in json.loads(told.out)["notes"])
