"""The house rules of ARCHITECTURE.md, each as a test: floors, limits, names, dependencies, and the map."""

from __future__ import annotations

import ast
import pkgutil
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import grimp
import pytest

import vitrine

ROOT = Path(__file__).parents[1]
HOUSE = ROOT / "src/vitrine"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
FILES = sorted(HOUSE.rglob("*.py"))
TREES = {path.relative_to(HOUSE).as_posix(): ast.parse(path.read_text(encoding="utf-8")) for path in FILES}

FILE_LINES, FUNCTION_LINES, CONSTRUCTOR_ARGUMENTS = 400, 60, 6
LONGER_FUNCTIONS = {("train/fit.py", "fit"): 100}
GENERAL_NAMES = {"utils", "util", "common", "helpers", "helper", "misc", "base", "core"}

# Why each run-time dependency is there. One more is a decision, with a page in docs/decisions.
DEPENDENCIES = {
    "torch": "tensors, autograd, training",
    "numpy": "arrays; the counter-based random numbers of augmentation and order",
    "pillow": "decoding, and the resize behind every answer",
    "huggingface-hub": "models and data sets by hub id, in the cache that others share",
    "tyro": "the command line from the option classes",
    "tomli-w": "writing TOML, which the standard library only reads",
    "rich": "progress and tables in the terminal",
    "jaxtyping": "shapes in signatures",
    "scikit-learn": "stratified splits, the built-in digits",
    "scipy": "exact intervals",
    "matplotlib": "figures and plots",
}

PUBLIC_NAMES = (
    "MODEL_NAMES", "Classifier", "Config", "Figure", "Metrics", "ModelConfig", "Prediction", "PreprocessConfig",
    "VisionTransformer", "VitrineError", "create", "load", "named", "train",
)  # fmt: skip

FORBIDDEN = {
    "pickle": r"pickle",
    "weights_only": r"weights_only\s*=\s*False",
    "torch.load": r"\btorch\.load\b",
    "torch.hub": r"\btorch\.hub\b",
    "joblib": r"joblib",
    "eval": r"(?<![\w.])eval\(",
    "exec": r"(?<![\w.])exec\(",
}

# The child process that reads strangers' archives has the one call of torch's loader, for tensors alone.
ALLOWED = {"weights/unpack.py": ["pickle", "torch.load"]}

# The command line joins `Run` with the options of `Config` in a class that it makes for tyro.
COMPOSED_FOR_THE_COMMAND_LINE = {"cli/train.py: Run"}


def layers() -> list[set[str]]:
    """The declared floors, the lowest first."""
    (contract,) = (c for c in PROJECT["tool"]["importlinter"]["contracts"] if c["type"] == "layers")
    return [{name.strip() for name in layer.split("|")} for layer in reversed(contract["layers"])]


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    return grimp.build_graph("vitrine", exclude_type_checking_imports=True, cache_dir=None)


# Floors


def test_the_import_contract_holds() -> None:
    command = Path(sys.executable).with_name("lint-imports")
    found = subprocess.run([command, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr


def test_every_room_has_one_floor() -> None:
    rooms = {path.stem for path in HOUSE.glob("*.py")} - {"__init__"}
    rooms |= {path.parent.name for path in HOUSE.glob("*/__init__.py")}
    declared = [name for floor in layers() for name in floor]
    assert sorted(declared) == sorted(rooms)
    (contract,) = PROJECT["tool"]["importlinter"]["contracts"]
    assert contract["exhaustive"] is True
    assert contract.get("ignore_imports", []) == []


def cycles(graph: grimp.ImportGraph) -> list[str]:
    """One module of each import that leads back to where it started."""
    return sorted(
        f"{module} and {other}"
        for module in graph.modules
        for other in graph.find_modules_directly_imported_by(module)
        if module != "vitrine" != other and graph.chain_exists(other, module)
    )


def test_no_import_cycle(graph: grimp.ImportGraph) -> None:
    assert cycles(graph) == []


def test_a_cycle_inside_a_room_is_found() -> None:
    made = grimp.ImportGraph()
    for importer, imported in (("vitrine.a.x", "vitrine.a.y"), ("vitrine.a.y", "vitrine.a.x")):
        made.add_import(importer=importer, imported=imported)
    assert cycles(made) == ["vitrine.a.x and vitrine.a.y", "vitrine.a.y and vitrine.a.x"]


def test_the_model_knows_nothing_of_those_that_use_it(graph: grimp.ImportGraph) -> None:
    known = graph.find_upstream_modules("vitrine.models", as_package=True)
    rooms = {module.split(".")[1] for module in known}
    assert rooms <= {"config", "errors", "files"}


@pytest.mark.parametrize(
    "modules",
    [
        ["vitrine", "vitrine.__main__", "vitrine.errors", "vitrine.files", "vitrine.results"],
        ["vitrine.config.options", "vitrine.config.text", "vitrine.config.models"],
        ["vitrine.images.decode", "vitrine.images.preprocess"],
        [f"vitrine.figures.{path.stem}" for path in sorted((HOUSE / "figures").glob("[a-z]*.py"))],
    ],
    ids=["ground floor", "config", "pictures", "figures"],
)
def test_torch_is_not_needed(modules: list[str]) -> None:
    code = f"import sys, {', '.join(modules)}; print('torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"


# Limits


def test_files_are_short() -> None:
    lengths = {path.relative_to(HOUSE).as_posix(): len(path.read_text("utf-8").splitlines()) for path in FILES}
    assert {name: length for name, length in lengths.items() if length > FILE_LINES} == {}


def too_long(name: str, tree: ast.AST) -> Iterator[str]:
    """The functions of a file that are above their limit."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > LONGER_FUNCTIONS.get((name, node.name), FUNCTION_LINES):
                yield f"{name}: {node.name} has {length} lines"


def test_functions_are_short() -> None:
    assert [found for name, tree in TREES.items() for found in too_long(name, tree)] == []


def test_a_long_function_is_found() -> None:
    body = "\n".join(["    x = 1"] * FUNCTION_LINES)
    assert list(too_long("made.py", ast.parse(f"def f():\n{body}\n"))) == ["made.py: f has 61 lines"]


def wide_constructors(name: str, tree: ast.AST) -> Iterator[str]:
    """The classes of a file whose own `__init__` takes too many arguments by place, self left out."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            for part in node.body:
                if isinstance(part, ast.FunctionDef) and part.name == "__init__":
                    count = len(part.args.posonlyargs) + len(part.args.args) - 1
                    if count > CONSTRUCTOR_ARGUMENTS or part.args.vararg is not None:
                        yield f"{name}: {node.name} takes {count} arguments"


def test_constructors_are_narrow() -> None:
    assert [found for name, tree in TREES.items() for found in wide_constructors(name, tree)] == []


def test_a_wide_constructor_is_found() -> None:
    made = ast.parse("class A:\n    def __init__(self, a, b, c, d, e, f, g): ...\n")
    assert list(wide_constructors("made.py", made)) == ["made.py: A takes 7 arguments"]


# Names and habits


def test_modules_are_named_for_what_they_know() -> None:
    names = {path.stem for path in FILES} | {path.parent.name for path in FILES}
    assert names & GENERAL_NAMES == set()


def test_the_init_of_every_room_is_empty() -> None:
    rooms = sorted({path.parent for path in FILES} - {HOUSE})
    assert [room.name for room in rooms if not (room / "__init__.py").is_file()] == []
    assert [room.name for room in rooms if (room / "__init__.py").stat().st_size] == []


def own_classes() -> set[str]:
    """Names of the classes that no other class may derive from: all of ours but errors."""
    return {
        node.name
        for name, tree in TREES.items()
        if name != "errors.py"
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
    }


def subclasses(name: str, tree: ast.AST, own: set[str]) -> Iterator[str]:
    """Where a file derives from one of `own`, by a class statement or by `make_dataclass(bases=...)`."""
    for node in ast.walk(tree):
        bases: list[ast.expr] = []
        if isinstance(node, ast.ClassDef):
            bases = node.bases
        elif isinstance(node, ast.Call):
            bases = [part for word in node.keywords if word.arg == "bases" for part in ast.walk(word.value)]  # type: ignore[misc]
        words = {base.attr if isinstance(base, ast.Attribute) else getattr(base, "id", "") for base in bases}
        yield from (f"{name}: {word}" for word in sorted(words & own))


def test_our_classes_are_final() -> None:
    own = own_classes()
    found = {one for name, tree in TREES.items() for one in subclasses(name, tree, own)}
    assert found == COMPOSED_FOR_THE_COMMAND_LINE


def test_a_subclass_is_found() -> None:
    made = ast.parse("class Mine(vit.Block): ...\nmake_dataclass('X', [], bases=(Store,))\n")
    assert list(subclasses("made.py", made, {"Block", "Store"})) == ["made.py: Block", "made.py: Store"]


def forbidden(text: str) -> list[str]:
    """Which forbidden words stand in a source."""
    return [word for word, pattern in FORBIDDEN.items() if re.search(pattern, text)]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(HOUSE).as_posix())
def test_nothing_that_runs_foreign_code(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert forbidden(text) == ALLOWED.get(path.relative_to(HOUSE).as_posix(), [])
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "load_state_dict":
            strict = [word.value for word in node.keywords if word.arg == "strict"]
            assert all(isinstance(value, ast.Constant) and value.value is True for value in strict)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("import pickle", ["pickle"]),
        ("torch.load(f, weights_only = False)", ["weights_only", "torch.load"]),
        ("torch.hub.load(x)", ["torch.hub"]),
        ("from joblib import dump", ["joblib"]),
        ("y = eval(text)", ["eval"]),
        ("exec(text)", ["exec"]),
        ("model.eval()\nretrieval(x)\nregexec(x)", []),
    ],
)
def test_forbidden_words_are_found(text: str, words: list[str]) -> None:
    assert forbidden(text) == words


def bare(tree: ast.Module) -> Iterator[str]:
    """Public classes, functions and methods without a docstring, and the module if it has none.

    The methods of a Protocol are excused: they belong to whatever fits it.
    """
    if not ast.get_docstring(tree):
        yield "the module"
    for node in tree.body:
        if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) or node.name.startswith("_"):
            continue
        if not ast.get_docstring(node):
            yield node.name
        if isinstance(node, ast.ClassDef) and any(getattr(base, "id", "") == "Protocol" for base in node.bases):
            continue
        for part in node.body if isinstance(node, ast.ClassDef) else ():
            if isinstance(part, ast.FunctionDef) and not part.name.startswith("_") and not ast.get_docstring(part):
                yield f"{node.name}.{part.name}"


def test_everything_public_has_a_docstring() -> None:
    found = {name: list(bare(tree)) for name, tree in TREES.items() if tree.body}
    assert {name: missing for name, missing in found.items() if missing} == {}


def test_a_missing_docstring_is_found() -> None:
    made = ast.parse(
        '"""Doc."""\nclass A:\n    """Doc."""\n    def f(self): ...\n    def _g(self): ...\ndef h(): ...\n'
    )
    assert list(bare(made)) == ["A.f", "h"]


# What is frozen


def test_dependencies_are_those_with_a_reason() -> None:
    required = [re.split(r"[<>=!~ ;\[]", line, maxsplit=1)[0] for line in PROJECT["project"]["dependencies"]]
    assert sorted(required) == sorted(DEPENDENCIES)
    assert all(DEPENDENCIES.values())


def test_only_dependencies_are_imported() -> None:
    """Every foreign module that the source imports is a dependency, an optional one or the standard library's."""
    modules = {"PIL": "pillow", "sklearn": "scikit-learn", "tomli_w": "tomli-w", "huggingface_hub": "huggingface-hub"}
    found: set[str] = set()
    for tree in TREES.values():
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                found.add(str(node.module).partition(".")[0])
    foreign = {modules.get(name, name) for name in found - sys.stdlib_module_names - {"vitrine"}}
    assert foreign - {"simplejpeg", "tensorboardX", "pyarrow", "datasets"} == set(DEPENDENCIES)


def test_public_names_are_frozen() -> None:
    assert sorted(vitrine.__all__) == sorted(PUBLIC_NAMES)
    assert [name for name in PUBLIC_NAMES if not hasattr(vitrine, name)] == []


# The map

PLAN = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")


def block(begin: str) -> list[str]:
    """The lines of the code block of ARCHITECTURE.md whose first line begins so."""
    blocks = re.findall(r"^```[a-z]*\n(.*?)^```$", PLAN, flags=re.DOTALL | re.MULTILINE)
    (found,) = (text for text in blocks if text.startswith(begin))
    return found.splitlines()


def drawn() -> tuple[set[str], dict[str, int]]:
    """The modules in the map, as paths below src/vitrine, and the floor of each room in it."""
    modules: set[str] = set()
    floors: dict[str, int] = {}
    room = ""
    for line in block("src/vitrine/")[1:]:
        entry = re.match(r"  (\w+)(/|\.py)(?=\s)", line)
        if entry is None:
            names = re.match(r"    ((?:[\w/]+\.py(?:\s+|$))+)", line)
            assert names is not None, f"this line of the map is neither a room nor a module: {line}"
            modules |= {f"{room}/{name}" for name in names[1].split()}
            continue
        room = entry[1]
        if entry[2] == ".py":
            modules.add(f"{room}.py")
        if floor := re.search(r"\s{2,}(\d+)$", line):
            floors[room] = int(floor[1])
    return modules, floors


def test_the_map_shows_the_tree() -> None:
    real = {name for name in TREES if name == "__init__.py" or not name.endswith("__init__.py")}
    modules, _ = drawn()
    assert sorted(modules - real) == []
    assert sorted(real - modules) == []


def test_the_floors_on_the_map_are_the_declared_ones() -> None:
    _, floors = drawn()
    assert floors == {name: number for number, floor in enumerate(layers()) for name in floor}


@pytest.mark.parametrize("begin", ["__main__.main → cli.train", "__main__.main → cli.predict"])
def test_the_ways_through_the_house_exist(begin: str) -> None:
    steps = [step for step in re.split(r"[\s→]+", "\n".join(block(begin))) if step]
    assert len(steps) > 8
    assert [step for step in steps if not callable(pkgutil.resolve_name(f"vitrine.{step}"))] == []


def test_a_step_that_does_not_exist_is_found() -> None:
    with pytest.raises(AttributeError):
        pkgutil.resolve_name("vitrine.train.fit.nothing")


@pytest.mark.parametrize("name", re.findall(r"^\| `(\w+)` \| `([\w./]+)` \|", PLAN, flags=re.MULTILINE))
def test_the_types_live_where_the_table_says(name: tuple[str, str]) -> None:
    kind, path = name
    assert kind in {node.name for node in ast.walk(TREES[path]) if isinstance(node, ast.ClassDef)}


def test_the_limits_are_those_of_the_page() -> None:
    stated = re.search(r"a file (\d+) lines, a function (\d+) \(`train\.fit\.fit` (\d+)\), a constructor (\d+)", PLAN)
    assert stated is not None
    limits = FILE_LINES, FUNCTION_LINES, LONGER_FUNCTIONS["train/fit.py", "fit"], CONSTRUCTOR_ARGUMENTS
    assert tuple(map(int, stated.groups())) == limits
    assert len(PLAN.splitlines()) <= 135
