"""The names of a model's classes: from the user's file, the model's own, or a published list that it names.

They are never guessed from their number alone: of ImageNet-21k there are at least four lists of about that length,
in different orders. Where nothing says which classes they are, the index stands for the name.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vitrine.errors import BadData, NotFound
from vitrine.files import read_error
from vitrine.weights.foreign import numbered
from vitrine.weights.header import strict_json

MAX_LABELS = 16 << 20

LISTS = {
    ("in1k", 1000): "imagenet_synsets.txt",
    ("in12k", 11821): "imagenet12k_synsets.txt",
    ("in21k", 21843): "imagenet21k_goog_synsets.txt",
    ("in21k", 11221): "imagenet21k_miil_synsets.txt",
    ("in22k", 21841): "imagenet22k_synsets.txt",
    ("in22k", 21842): "imagenet22k_ms_synsets.txt",
}
"""Files of timm's package (timm/data/_info) by the data set at the end of a tag and the number of classes."""


def class_names(
    num_classes: int,
    config: Mapping[str, Any],
    *,
    own: tuple[str, ...] | None = None,
    labels: str | Path | None = None,
) -> tuple[tuple[str, ...], str]:
    """The names, and a sentence on where they come from.

    `labels`, the user's file, wins; then the names that the file brought (`own`), those in a `config` beside it,
    and those of the data set that the config's tag declares, where timm is installed. Raises `BadData` for a list
    of another length, `NotFound` for a file that is not there.
    """
    if num_classes == 0:
        return (), ""
    if labels is not None:
        return from_file(Path(labels), num_classes), f"class names: from {labels}"
    if own is not None and len(own) == num_classes:
        return own, "class names: from the file"
    for found in (_of_transformers(config), _of_timm(config)):
        if found is not None and len(found) == num_classes:
            return found, "class names: from its config.json"
    declared = _declared(config)
    if listed := _from_timm(LISTS.get((declared, num_classes), "")):
        return listed, f"class names: timm's list for the data set that config.json declares ({declared})"
    return numbered(num_classes), f"class names: unknown, so each of the {num_classes:,} is its index; --labels FILE"


def from_file(path: Path, num_classes: int) -> tuple[str, ...]:
    """The names in a file: one a line, a JSON list, or a JSON object from index to name (or to [id, name]).

    Raises `NotFound`, or `BadData` unless there are exactly `num_classes`, none of them empty.
    """
    try:
        if not path.is_file():
            what = "is a folder, where a file is needed" if path.is_dir() else "there is no such file"
            raise NotFound(f"--labels {path}: {what}.")
        data = path.read_bytes() if path.stat().st_size <= MAX_LABELS else b""
        text = data.decode("utf-8-sig").strip()
    except OSError as error:
        raise read_error(error, path) from error
    except UnicodeDecodeError as error:
        raise BadData(f"--labels {path}: is no text in UTF-8.") from error
    if text[:1] == "[":
        names = _listed(strict_json(f'{{"names":{text}}}'.encode(), f"--labels {path}", MAX_LABELS)["names"])
    elif text[:1] == "{":
        names = _by_index(strict_json(text.encode(), f"--labels {path}", MAX_LABELS))
    else:
        names = tuple(line.strip() for line in text.splitlines()) if text else ()
    if names is None:
        raise BadData(f"--labels {path}: it has no list of names. Give one a line, a JSON list, or index to name.")
    if not all(names):
        raise BadData(f"--labels {path}: name {names.index('') + 1} of {len(names):,} is empty. Every class needs one.")
    if len(names) != num_classes:
        raise BadData(f"--labels {path}: {len(names):,} names for a model of {num_classes:,} classes.")
    return names


def _listed(value: object) -> tuple[str, ...] | None:
    return tuple(value) if isinstance(value, list) and all(isinstance(name, str) for name in value) else None


def _by_index(value: object) -> tuple[str, ...] | None:
    """The names of an object from index to name; of Keras' kind, whose values are [id, name], the name."""
    if not isinstance(value, dict) or set(value) != set(map(str, range(len(value)))):
        return None
    found = [value[str(index)] for index in range(len(value))]
    found = [name[-1] if isinstance(name, list) and len(name) == 2 else name for name in found]
    return _listed(found)


def _of_transformers(config: Mapping[str, Any]) -> tuple[str, ...] | None:
    """`id2label` of a transformers config; its stand-ins LABEL_0, LABEL_1 are no names."""
    names = _by_index(config.get("id2label"))
    return None if names is None or all(name == f"LABEL_{i}" for i, name in enumerate(names)) else names


def _of_timm(config: Mapping[str, Any]) -> tuple[str, ...] | None:
    """`label_names` of a timm config, in words where `label_descriptions` has them."""
    cfg = config.get("pretrained_cfg")
    names = next((found for part in (config, cfg) if isinstance(part, dict)
                  and (found := _listed(part.get("label_names")))), None)  # fmt: skip
    if names is None:
        return None
    words: Mapping[str, Any] = next((part["label_descriptions"] for part in (config, cfg) if isinstance(part, dict)
                  and isinstance(part.get("label_descriptions"), dict)), {})  # fmt: skip
    return tuple(str(words.get(name, name)) for name in names)


def _declared(config: Mapping[str, Any]) -> str:
    """The data set that the weights were last trained on, by timm's tag: `augreg_in21k_ft_in1k` gives `in1k`."""
    cfg = config.get("pretrained_cfg")
    tag = cfg.get("tag") if isinstance(cfg, dict) else None
    return tag.rpartition("_")[2] if isinstance(tag, str) else ""


def _from_timm(file: str) -> tuple[str, ...] | None:
    """Words for the synsets in one of timm's lists; None where it is not installed. timm itself is not run."""
    spec = importlib.util.find_spec("timm") if file else None
    if spec is None or not spec.submodule_search_locations:
        return None
    folder = Path(spec.submodule_search_locations[0]) / "data" / "_info"
    try:
        synsets = (folder / file).read_text("utf-8").split()
        lines = (folder / "imagenet_synset_to_lemma.txt").read_text("utf-8").splitlines()
    except OSError:
        return None
    words = dict(line.split("\t", 1) for line in lines if "\t" in line)
    return tuple(words.get(synset, synset).strip('"') for synset in synsets)
