"""What a stranger's file is before anyone says what it means, and what a format makes of it.

A format is one module of `weights/formats/` with one `Format`: whether a file is of it, how it is read, and how
it is written. Reading ends in a `Bundle`, so that everything after knows one kind of model only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from torch import Tensor

from vitrine.config.architecture import ModelConfig
from vitrine.config.models import SIZES
from vitrine.config.options import PreprocessConfig
from vitrine.errors import BadData, UsageError
from vitrine.weights.bundle import Bundle

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class Raw:
    """A file, or a folder with its facts, as read: `tensors` by their own names, nothing interpreted.

    `path` is what the user wrote. `config` and `preprocessor` are the JSON of a folder (config.json,
    preprocessor_config.json), `metadata` that of a safetensors header. `given` are options of `ModelConfig` by
    name that the user has set, for facts that no file of this kind holds. `wrapper` names the entry of a
    training file that the tensors stood in, such as `model_ema`. `said` tells what was chosen while reading.
    """

    path: str
    kind: Literal["npz", "safetensors", "torch"]
    tensors: Mapping[str, Tensor]
    config: Mapping[str, Any] = field(default_factory=dict)
    preprocessor: Mapping[str, Any] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    given: Mapping[str, Any] = field(default_factory=dict)
    wrapper: str = ""
    said: tuple[str, ...] = ()

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor; empty where there is none of that name."""
        return tuple(self.tensors[name].shape) if name in self.tensors else ()

    def depth(self, prefix: str) -> int:
        """How many blocks there are: one more than the largest number after `prefix` in a name."""
        heads = (name.removeprefix(prefix) for name in self.tensors if name.startswith(prefix))
        numbers = [head.split(".")[0].split("/")[0] for head in heads]
        return max((int(number) + 1 for number in numbers if number.isdigit()), default=0)

    def ask(self, option: str, why: str) -> Any:
        """The value the user gave for a model option that the file cannot tell. Raises `UsageError` asking for it."""
        if option not in self.given:
            raise UsageError(f"{self.path}: {why}. Give it: --model.{option.replace('_', '-')} VALUE.")
        return self.given[option]


@dataclass(frozen=True, kw_only=True)
class Reading:
    """A stranger's model in our terms: everything of a `Bundle`, and the account of how it came about.

    `used` are their tensors that became ours, `dropped` those left out and why, `fresh` ours that no tensor of
    theirs fills and what fills them. `said` are sentences on conventions that came with the source and on what
    was assumed. `class_names` is None where the file does not hold them. `multi_label` is as in `Bundle`.
    """

    model: ModelConfig
    preprocess: PreprocessConfig
    tensors: Mapping[str, Tensor]
    used: tuple[str, ...]
    dropped: Mapping[str, str] = field(default_factory=dict)
    fresh: Mapping[str, str] = field(default_factory=dict)
    said: tuple[str, ...] = ()
    class_names: tuple[str, ...] | None = None
    multi_label: bool = False


@dataclass(frozen=True, kw_only=True)
class Writing:
    """A model in a stranger's terms: `tensors` under their names and `files` beside them, JSON by file name.

    `kind` npz is one file without more; safetensors is a folder with model.safetensors and the files.
    """

    kind: Literal["npz", "safetensors"]
    tensors: Mapping[str, Tensor]
    files: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    said: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Format:
    """One public format: `name` as `--format` and `--to` have it, `title` in words.

    `fits` looks at names and shapes alone and must be true for no other format's files. `read` raises `BadData`
    for tensors that do not fit, and `UsageError` for a fact that is missing or a model that has no equal here.
    `write` raises `UsageError` naming the option that the format cannot express; it is None where none writes it.
    """

    name: str
    title: str
    fits: Callable[[Raw], bool]
    read: Callable[[Raw], Reading]
    write: Callable[[Bundle], Writing] | None = None


def num_heads(raw: Raw, embed_dim: int, depth: int) -> tuple[int, tuple[str, ...]]:
    """The number of heads where a file does not hold it, and a sentence on where it comes from.

    What the user gave; else that of the published size of this very width and depth. Raises `UsageError`.
    """
    if "num_heads" in raw.given:
        return int(raw.given["num_heads"]), ()
    for name, size in SIZES.items():
        if (size.embed_dim, size.depth) == (embed_dim, depth) and name not in ("micro", "nano", "mini"):
            return size.num_heads, (f"heads: {size.num_heads}, as in the published {name} of this width and depth",)
    raise UsageError(
        f"{raw.path}: the number of attention heads is not in the file, and width {embed_dim} with {depth} blocks is "
        "no published size. Give it: --model.num-heads N."
    )


def side(positions: int, prefix: int, raw: Raw) -> int:
    """The side of a square grid of `positions` less `prefix` rows. Raises `UsageError` where it is no square."""
    patches = positions - prefix
    root = round(max(0, patches) ** 0.5)
    if patches < 1 or root * root != patches:
        raise UsageError(
            f"{raw.path}: {patches} positions of patches are no square grid. Give its size in pixels: "
            "--model.img-size HEIGHT WIDTH."
        )
    return root


def numbered(num_classes: int) -> tuple[str, ...]:
    """Stand-ins for class names that nobody knows: the index alone."""
    return tuple(str(index) for index in range(num_classes))


def number(facts: Mapping[str, Any], name: str, default: float, path: str) -> float:
    """The number called `name` in the JSON beside a file; `default` where it is missing or null. Raises `BadData`."""
    value = facts.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadData(f"{path}: {name} = {value!r} in the config beside it is no number.")
    return value


def require_agreement(raw: Raw, facts: Mapping[str, Any], held: Mapping[str, int]) -> None:
    """Raise `BadData` where the `facts` of config.json have another number than what the tensors `held` shows.

    A fact that is missing or null agrees, and so does a list of one number again and again.
    """
    for name, value in held.items():
        said = facts.get(name)
        if said not in (None, value) and said != [value, value]:
            raise BadData(
                f"{raw.path}: config.json says {name} = {said!r}, and the tensors have {value}. "
                "Take both from one place."
            )


def sides(facts: Mapping[str, Any], name: str, path: str) -> tuple[int, int] | None:
    """Height and width: one number for both or a list of two, in the JSON beside a file. Raises `BadData`."""
    value = facts.get(name)
    if value is None:
        return None
    listed = list(value) if isinstance(value, list | tuple) else [value, value]
    if len(listed) != 2 or not all(type(side) is int and side > 0 for side in listed):
        raise BadData(f"{path}: {name} = {value!r} in the config beside it is neither a number nor two of pixels.")
    return listed[0], listed[1]


def with_given(config: ModelConfig, given: Mapping[str, Any]) -> ModelConfig:
    """`config` with the options that the user gave laid over it, but for those that resizing sees to."""
    kept = {name: value for name, value in given.items() if name not in ("img_size", "patch_size", "in_chans")}
    return replace(config, **kept)
