from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import vitrine

ROOT = Path(__file__).parents[1]


def python(code: str) -> str:
    """What a fresh interpreter prints."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_the_public_names_are_frozen() -> None:
    """Adding one is a promise to keep it."""
    assert sorted(vitrine.__all__) == [
        "Classifier", "Config", "Figure", "MODEL_NAMES", "Metrics", "ModelConfig", "Prediction", "PreprocessConfig",
        "VisionTransformer", "VitrineError", "create", "load", "named", "train",
    ]  # fmt: skip


def test_every_public_name_resolves() -> None:
    for name in vitrine.__all__:
        assert name in dir(vitrine)
        found = getattr(vitrine, name)
        assert callable(found) or name == "MODEL_NAMES"
    assert "vit_base_patch16_224" in vitrine.MODEL_NAMES
    with pytest.raises(AttributeError, match="has no attribute 'trian'"):
        _ = vitrine.trian  # type: ignore[attr-defined]


def test_importing_the_package_imports_no_torch() -> None:
    assert python("import sys, vitrine; print([m for m in ('torch', 'numpy', 'PIL', 'tyro') if m in sys.modules])") == (
        "[]\n"
    )


def test_options_and_errors_import_no_torch() -> None:
    assert python("import sys, vitrine; vitrine.Config, vitrine.named; print('torch' in sys.modules)") == "False\n"


def test_train_is_the_function_whatever_was_imported_before() -> None:
    """A room of the package has the same name, and Python would put it there as it is imported."""
    asked = (
        "import vitrine, vitrine.train.watch; from vitrine import train; from vitrine.train import run;"
        "print(vitrine.train is train is run.train, vitrine.train is vitrine.train, callable(train))"
    )
    assert python(asked) == "True True True\n"
    assert python("import vitrine; vitrine.train; print(callable(vitrine.train))") == "True\n"
    asked = "import vitrine; f = vitrine.train; import vitrine.train.run as r; print(vitrine.train is f is r.train)"
    assert python(asked) == "True\n"


@pytest.mark.parametrize("before", ["", "vitrine.train; ", "from vitrine import train; ", "vitrine.load; "])
def test_the_modules_of_the_room_are_found_too(before: str) -> None:
    after = "import vitrine.train.run as r, vitrine.train.watch as w; print(r.__name__, w.__name__)"
    asked = f"import vitrine; {before}{after}"
    assert python(asked) == "vitrine.train.run vitrine.train.watch\n"


def test_the_version_is_that_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert vitrine.__version__ == project["version"]


def test_the_package_says_that_it_is_typed() -> None:
    assert (Path(str(vitrine.__file__)).parent / "py.typed").is_file()
