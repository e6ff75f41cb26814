"""What can be asked for, frozen: adding a verb or an option is a conscious act."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from vitrine import __version__, errors
from vitrine.__main__ import HELP, VERBS, main
from vitrine.cli import arguments, foreign
from vitrine.cli.train import _arguments
from vitrine.config.options import Config
from vitrine.config.text import flatten, given, to_dict
from vitrine.errors import UsageError

TRAIN = {
    "": "source out config max-time json quiet task arch init recipe mode seed epochs batch-size accumulate "
    "multi-label loss target-threshold class-weights label-smoothing ema-decay precision compile device num-workers "
    "threads tensorboard grad-checkpointing",
    "data": "val-share test-share split-seed max-bad-share max-pixels max-bytes image-column label-column streaming",
    "model": "family img-size patch-size in-chans num-classes embed-dim depth num-heads head-dim mlp-ratio mlp-layer "
    "qkv-bias qk-norm init-values act-layer norm-eps pre-norm final-norm class-token distilled reg-tokens global-pool "
    "pos-embed pos-at pos-clip rope-theta no-embed-class pos-interpolation pos-antialias pos-align-corners pos-offset "
    "drop-rate drop-path-rate drop-path-over representation-size representation-act weight-init head-bias",
    "model.resnet": "layers width-factor preact padding pool-padding conv-eps conv-eps-at norm-eps shortcut-norm",
    "preprocess": "size resize crop-pct interpolation mean std",
    "augment": "flip crop crop-min-area crop-max-ratio shift rotate-deg zoom jitter mixup cutmix mix-per policy "
    "convention erase repeats mix-off-share",
    "distill": "kind teacher alpha temperature",
    "optim": "name lr weight-decay momentum muon-momentum beta1 beta2 eps layer-decay clip-norm schedule warmup-steps "
    "warmup-lr timescale-steps step-at cooldown-steps min-lr",
    "lora": "rank alpha dropout targets",
    "save": "every-s every-steps keep-last keep-every-steps",
    "parallel": "mode tensor timeout-s",
}
OTHERS = {
    "predict": "file pictures top max-pixels max-bytes device json",
    "explain": "file picture out target max-pixels max-bytes device json",
    "evaluate": "file data part confusion image-column label-column max-pixels max-bytes device json",
    "export": "file to out accept-difference json",
    "info": "file models recipes json",
    "shards": "data out side quality shard-mb max-bad-share max-pixels max-bytes json quiet",
}
# Every verb that opens a model takes what its file may not tell.
FILE = {
    "": "labels format entry",
    "model": "img-size patch-size in-chans num-classes num-heads head-dim norm-eps act-layer global-pool "
    "representation-size pos-interpolation pos-antialias pos-align-corners pos-offset",
    "preprocess": TRAIN["preprocess"],
}


def python(*words: str, code: str = "") -> subprocess.CompletedProcess[str]:
    started = [sys.executable, "-c", code] if code else [sys.executable, "-m", "vitrine", *words]
    return subprocess.run(started, capture_output=True, text=True, check=False, timeout=60)


def typed(names: dict[str, str]) -> set[str]:
    """Options as they are typed, from words by group."""
    return {f"--{group}{'.' * bool(group)}{word}" for group, words in names.items() for word in words.split()}


def test_the_verbs_are_frozen() -> None:
    assert list(VERBS) == ["train", "predict", "explain", "evaluate", "export", "info", "shards"]


def test_the_options_are_frozen() -> None:
    assert set(arguments.option_names(_arguments())) == typed(TRAIN)
    from vitrine.cli.evaluate import Evaluate
    from vitrine.cli.explain import Explain
    from vitrine.cli.export import Export
    from vitrine.cli.info import Info
    from vitrine.cli.predict import Predict
    from vitrine.cli.shards import Shards

    assert set(arguments.option_names(Shards)) == typed({"": OTHERS["shards"]})
    for kind in (Predict, Explain, Evaluate, Export, Info):
        assert set(arguments.option_names(kind)) == typed({"": OTHERS[kind.__name__.lower()]})
        assert set(arguments.option_names(foreign.composed(kind))) == typed(
            {"": OTHERS[kind.__name__.lower()]}
        ) | typed(FILE)


def test_every_option_of_a_run_shows_in_the_help_of_train(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["train", "--help"])
    assert caught.value.code == 0
    said = capsys.readouterr().out
    left_open = {"model.head_dim", "model.init_values", "target_threshold"}
    names = {name for name, _ in flatten(to_dict(Config()))} | left_open
    for name in names - {"data.source", "max_time_s"}:
        assert re.search(rf"--{re.escape(name.replace('_', '-'))}\b", said), name
    assert "--max-time" in said and "DATA" in said
    assert "max-time-s" not in said and "data.source" not in said


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_without_torch(verb: str) -> None:
    code = (
        f"import sys; from vitrine.__main__ import main\n"
        f"try: main(['{verb}', '--help'])\n"
        f"except SystemExit as end: print('code', end.code, 'torch' in sys.modules, file=sys.stderr)"
    )
    done = python(code=code)
    assert done.stderr == "code 0 False\n"
    assert f"usage: vitrine {verb}" in done.stdout and "\x1b" not in done.stdout
    for name in OTHERS.get(verb, TRAIN[""]).replace("file", "model").split():
        assert name in done.stdout or name.upper() in done.stdout.upper()


@pytest.mark.skipif(os.name != "posix", reason="processor time of a child: needs POSIX")
def test_help_comes_at_once_and_without_torch() -> None:
    import resource

    times = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = python("--help")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert done.returncode == 0 and done.stderr == ""
    assert all(verb in done.stdout for verb in VERBS)
    assert min(times) < 0.3
    code = (
        "import sys; from vitrine.__main__ import main; main(['--help'])\nassert not {'torch', 'tyro'} & {*sys.modules}"
    )
    assert python(code=code).returncode == 0


def test_nothing_and_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    shown = []
    for words in ([], ["-h"], ["--help"], ["help"]):
        assert main(words) == 0
        shown.append(capsys.readouterr().out)
    assert len(set(shown)) == 1 and "Exit codes: 0 done, 2 usage" in shown[0]
    for word in ("--version", "-V"):
        assert main([word]) == 0
        assert capsys.readouterr().out == f"{__version__}\n"


def test_the_help_lists_every_exit_code() -> None:
    listed = set(map(int, re.findall(r"\b\d+\b", HELP.partition("Exit codes:")[2])))
    classes = [
        kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.VitrineError)
    ]
    assert listed == {kind.exit_code for kind in classes} | {0, 130, 143}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["trian"], "'trian': there is no such verb. Did you mean 'train'?"),
        (["xyz"], "'xyz': there is no such verb. `vitrine --help` lists them."),
        (
            ["train", "digits", "--out", "r", "--epoch", "3"],
            "--epoch: there is no such option or argument. Did you mean",
        ),
        (["train", "digits", "--out", "r", "--optim.lrr=1"], "--optim.lrr=1: there is no such option or argument. Did"),
        (["predict", "m", "p", "--topp", "3"], "Did you mean '--top'?"),
        (["explain", "m", "p", "q"], "q: there is no such option or argument."),
        (["explain", "m", "p", "--out", "x.jpg"], "--out x.jpg: the figure is a PNG; name it so, as x.png"),
        (["evaluate", "m", "d", "--confusion", "x.pdf"], "--confusion x.pdf: the picture is a PNG"),
        (["predict", "m"], "no picture was given. Try: vitrine predict m PICTURE"),
        (["predict", "m", "p", "--top", "0"], "--top 0: must be at least 1"),
        (["info"], "give either a MODEL or --models"),
        (["info", "m", "--models"], "give either a MODEL or --models"),
        (
            ["train", "digits", "--out", "r", "--max-time", "soon"],
            "--max-time soon: give a time such as 90s, 10m or 2h",
        ),
    ],
)
def test_what_is_typed_wrong_is_told_with_a_remedy(
    capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    assert main(words) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("vitrine: ") and said in told.err and told.err.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train", "digits"], "--out FOLDER is missing: where the run goes."),
        (["train", "digits", "--outt", "r"], "--outt: there is no such option or argument. Did you mean '--out'?"),
        (["train", "digits", "--out"], "--out: give a value."),
        (["train", "digits", "--out", "r", "--epochs", "many"], "--epochs many: give a whole number."),
        (["train", "digits", "--out", "r", "--epochs=1.5"], "--epochs 1.5: give a whole number."),
        (["train", "--epochs", "--out", "r"], "--epochs: give a whole number."),
        (["train", "digits", "--batch_size", "big", "--out", "r"], "--batch_size big: give a whole number."),
        (["train", "digits", "--out", "r", "--optim.lr", "-x"], "--optim.lr: give a number."),
        (["train", "digits", "--out", "r", "--optim.lr", "fast", "-q"], "--optim.lr fast: give a number."),
        (["train", "--out", "r", "--optim.name", "adam"], "--optim.name adam: give one of adamw, sgd, muon, lamb. Did"),
        (["train", "d", "--out", "r", "--augment.flip", "yes"], "--augment.flip yes: give True or False."),
        (["train", "--out", "r", "--model.img-size", "a"], "--model.img-size a: give a whole number or 2 whole"),
        (["train", "d", "--out", "r", "--preprocess.size", "8"], "--preprocess.size 8: give 2 whole numbers."),
        (["train", "d", "--out", "r", "--preprocess.mean", "x", "0.5"], "--preprocess.mean x: give numbers."),
        (["predict"], "MODEL is missing: run folder, bundle, a public weight file or folder, or hf://"),
        (["predict", "m", "p", "--top", "few"], "--top few: give a whole number."),
        (["train", "d", "--out", "r", "--model.img-size", "8", "8", "16"], "16: there is no such option or argument."),
        (["explain", "m", "--json"], "PICTURE is missing: a file."),
        (["evaluate", "m"], "DATA is missing: as for `vitrine train`."),
        (
            ["evaluate", "m", "d", "--part", "best"],
            "--part best: give one of auto, all, train, validation, test. Did you mean 'test'?",
        ),
    ],
)  # fmt: skip
def test_what_is_missing_or_of_the_wrong_type_is_one_line_too(
    capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    assert main(words) == 2
    told = capsys.readouterr()
    assert told.out == "" and told.err.startswith(f"vitrine: {said}") and told.err.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "taken"),
    [
        (["digits", "--model.img-size", "12", "8"], {"source": "digits", "model": {"img_size": [12, 8]}}),
        (["--model.img_size", "12", "--optim.lr=-3"], {"model": {"img_size": 12}, "optim": {"lr": -3.0}}),
        (["--preprocess.mean", "0.1", "0.2", "0.3", "-q"], {"preprocess": {"mean": [0.1, 0.2, 0.3]}, "quiet": True}),
        (["--augment.flip", "False", "--model.head-dim", "None"], {"augment": {"flip": False}}),
        (["--model.img-size", "12", "digits"], {"source": "digits", "model": {"img_size": 12}}),
        (["--model.img-size", "12", "8", "digits"], {"source": "digits", "model": {"img_size": [12, 8]}}),
        (["--preprocess.std", "0.1", "--quiet", "digits"], {"source": "digits", "preprocess": {"std": [0.1]}}),
        (["--preprocess.mean", "0.1", "digits"], {"source": "digits", "preprocess": {"mean": [0.1]}}),
    ],
)
def test_no_fault_is_found_with_words_that_are_taken(words: list[str], taken: dict[str, object]) -> None:
    words = [*words, "--out", "r"]
    found = given(arguments.parse(_arguments(), words, "train", ""))
    assert taken.items() <= found.items()
    assert arguments.fault(_arguments(), words, "train") == ""


def test_a_refusal_not_understood_is_told_in_the_words_of_the_parser(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arguments, "fault", lambda *_: "")
    assert main(["predict", "m", "p", "--top", "few"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("vitrine: ") and "--top" in said and "few" in said and said.count("\n") == 1
    assert not any(0x2500 <= ord(letter) < 0x2580 for letter in said)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("90", 90), ("90s", 90), ("1.5m", 90), ("10min", 600), ("2h", 7200), (" 3 s ", 3)],
)
def test_times(text: str, expected: float) -> None:
    assert arguments.seconds(text) == expected


@pytest.mark.parametrize("text", ["", "-3s", "0", "3d", "1h30", "nan"])
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(UsageError, match="give a time such as"):
        arguments.seconds(text)
