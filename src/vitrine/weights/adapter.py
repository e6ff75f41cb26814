"""Low-rank adapters (arXiv:2106.09685) in the layout of the library peft: a folder of two files beside their base.

`adapter_config.json` says what the factors are multiplied by and where the base is; `adapter_model.safetensors` has
for a layer M of the base `base_model.model.M.lora_A.weight` (r, in) and `...lora_B.weight` (out, r), and layers that
were learnt whole, such as the head, under their names. The layer's weight is W + scale * B A, scale being alpha / r.

Of a fused qkv some slices are adapted, each with factors of its own. For peft that is one layer of out = 3 w: the
A of the slices one below the other, rank r a slice, and a B that has for each slice its own block of rows and columns
and zeros elsewhere. B A is then exactly the factors of each slice in its rows.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from vitrine.config.architecture import ModelConfig
from vitrine.config.options import PreprocessConfig
from vitrine.config.text import Nested, from_dict, to_dict
from vitrine.errors import BadConfig, BadData, NotFound
from vitrine.files import read_error, whole, write_text
from vitrine.models.networks import network
from vitrine.weights import hub
from vitrine.weights.bundle import MODEL_FILE, Bundle, check_tensors
from vitrine.weights.header import bytes_of, in_order, laid_out, read_header, strict_json, tensors_of
from vitrine.weights.labels import class_names, from_file
from vitrine.weights.reading import opened
from vitrine.weights.start import initialise

CONFIG_FILE, TENSORS_FILE = "adapter_config.json", "adapter_model.safetensors"
TITLE = "a low-rank adapter in peft's layout"
FACTS = "vitrine_adapter"
"""The entry of the header's metadata with what the adapter does not need and the model does: config and classes."""

PREFIX = "base_model.model."
MOST = 8
"""Adapters that may stand on one another."""

# What peft can do beside plain LoRA changes what the factors mean.
PLAIN: Mapping[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",), "bias": (None, "none"), "use_dora": (None, False), "fan_in_fan_out": (None, False),
    "layer_replication": (None,), "use_qalora": (None, False), "trainable_token_indices": (None,),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Factors:
    """A (r, in) and B (out, r) of one layer, of a convolution with its further axes, and what B A is multiplied by."""

    a: Tensor
    b: Tensor
    scale: float


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """What an adapter folder holds: `factors` by layer, `saved` tensors that were learnt whole, by name.

    `base` is the model it stands on, a path or a hub id; `model`, `preprocess`, `class_names` and `multi_label` are
    None where the file is not ours. The last and `threshold` are as in `Bundle`.
    """

    base: str
    factors: Mapping[str, Factors]
    saved: Mapping[str, Tensor] = field(default_factory=dict)
    model: ModelConfig | None = None
    preprocess: PreprocessConfig | None = None
    class_names: tuple[str, ...] | None = None
    multi_label: bool | None = None
    threshold: float = 0.5


def spread(b: Float[Tensor, "Sw r"], slices: Sequence[int], of: int) -> Float[Tensor, "ow Sr"]:
    """The B of `slices` of a layer of `of` equal ones, one below the other, as one B in blocks, with gradients.

    Each slice has its own rows of the layer and its own columns; all else is zero.
    """
    if (of, len(slices)) == (1, 1):
        return b
    width, rank = b.shape[0] // len(slices), b.shape[1]
    blocks = b.new_zeros(of, width, len(slices), rank)
    for place, (number, part) in enumerate(zip(slices, b.chunk(len(slices)), strict=True)):
        blocks[number, :, place] = part
    return blocks.reshape(of * width, len(slices) * rank)


def merged(weight: Tensor, factors: Factors) -> Tensor:
    """W + scale * B A, of the shape and type of W; computed in 64 bits and rounded once."""
    product = factors.b.detach().double().cpu().flatten(1) @ factors.a.detach().double().cpu().flatten(1)
    whole = weight.detach().double().cpu() + factors.scale * product.reshape(weight.shape)
    return whole.to(weight.dtype)


def is_adapter(path: Path) -> bool:
    """Whether `path` is an adapter folder, or the file of tensors in one, and no model stands there."""
    folder = folder_of(path)
    return (folder / CONFIG_FILE).is_file() and not (folder / MODEL_FILE).exists()


def folder_of(path: Path) -> Path:
    """The folder of an adapter that is named by its folder or by its file of tensors."""
    return path.parent if path.name == TENSORS_FILE else path


def save(adapter: Adapter, folder: Path, *, rank: int, alpha: float, dropout: float) -> None:
    """Write `adapter` into `folder`, each file whole or not at all. Raises `DiskError` or `CannotCreate`.

    `rank` and `alpha` are those of a single matrix: layers of several slices are listed as having more of both.
    """
    ranks = {name.split(".", 2)[2]: len(one.a) for name, one in adapter.factors.items()}  # attn.qkv, in every block
    wider = {part: number for part, number in ranks.items() if number != rank}
    config = {
        "peft_type": "LORA", "task_type": None, "base_model_name_or_path": adapter.base, "inference_mode": True,
        "r": rank, "lora_alpha": _whole(alpha), "lora_dropout": dropout, "bias": "none", "fan_in_fan_out": False,
        "rank_pattern": wider,
        "alpha_pattern": {part: _whole(alpha * number / rank) for part, number in wider.items()},
        "target_modules": rf"blocks\.\d+\.({'|'.join(map(re.escape, sorted(ranks)))})",
        "modules_to_save": sorted({name.rpartition(".")[0] for name in adapter.saved}),
    }  # fmt: skip
    tensors = {f"{PREFIX}{name}": tensor for name, tensor in adapter.saved.items()}
    for name, one in adapter.factors.items():
        tensors |= {f"{PREFIX}{name}.lora_A.weight": one.a, f"{PREFIX}{name}.lora_B.weight": one.b}
    facts = {
        "model": to_dict(adapter.model), "preprocess": to_dict(adapter.preprocess),
        "class_names": list(adapter.class_names or ()),
        **({"multi_label": True, "threshold": adapter.threshold} if adapter.multi_label else {}),
    }  # fmt: skip
    ordered = in_order(tensors)
    metadata = {"format": "pt", FACTS: json.dumps(facts, sort_keys=True)}
    with whole(folder / TENSORS_FILE) as file:
        file.write(laid_out(ordered, metadata, str(folder / TENSORS_FILE)))
        for _, tensor in ordered:
            file.write(bytes_of(tensor))
    write_text(folder / CONFIG_FILE, json.dumps(config, indent=2, sort_keys=True) + "\n")


def _whole(number: float) -> int | float:
    return int(number) if number == int(number) else number


def read(path: Path) -> Adapter:
    """The adapter in a folder. Raises `BadData` for more than plain LoRA on layers, or for damage, `NotFound`."""
    folder = folder_of(path)
    try:
        config = strict_json((folder / CONFIG_FILE).read_bytes(), str(folder / CONFIG_FILE))
    except OSError as error:
        raise read_error(error, folder / CONFIG_FILE) from error
    for name, plain in PLAIN.items():
        if config.get(name) not in plain:
            raise BadData(f"{folder / CONFIG_FILE}: {name} = {config.get(name)!r}: only plain LoRA on layers is read.")
    file = folder / TENSORS_FILE
    if not file.is_file():
        raise NotFound(f"{folder}: there is no {TENSORS_FILE}, the one kind of file that adapters are read from.")
    with opened(file) as content:
        header = read_header(content, str(file))
        tensors = tensors_of(content, header)
    strange = [name for name in tensors if not name.startswith(PREFIX)]
    if strange:
        raise BadData(f"{file}: names that peft does not write: {', '.join(strange[:4])}.")
    tensors = {name.removeprefix(PREFIX): tensor.float() for name, tensor in tensors.items()}
    layers = [name.removesuffix(".lora_A.weight") for name in tensors if name.endswith(".lora_A.weight")]
    factors = {name: _factors(name, tensors, config, file) for name in layers}
    saved = {name: tensor for name, tensor in tensors.items() if ".lora_" not in name}
    if not factors or len(tensors) != len(saved) + 2 * len(factors):
        raise BadData(f"{file}: must hold lora_A.weight and lora_B.weight of each layer, and nothing else of LoRA.")
    base = config.get("base_model_name_or_path")
    return replace(
        _ours(header.metadata.get(FACTS), file),
        base=base if isinstance(base, str) else "", factors=factors, saved=saved,
    )  # fmt: skip


def _factors(name: str, tensors: Mapping[str, Tensor], config: Nested, file: Path) -> Factors:
    a, b = (tensors.get(f"{name}.lora_{which}.weight") for which in "AB")
    rank = _of_layer(config.get("rank_pattern"), name, config.get("r"), file)
    alpha = _of_layer(config.get("alpha_pattern"), name, config.get("lora_alpha"), file)
    if a is None or b is None or min(a.ndim, b.ndim) < 2 or not len(a) == b.shape[1] == rank or b[0, 0].numel() != 1:
        raise BadData(f"{file}: lora_A and lora_B of {name} are not of the rank that {CONFIG_FILE} says.")
    return Factors(a=a, b=b, scale=alpha / (math.sqrt(rank) if config.get("use_rslora") else rank))


def _of_layer(pattern: object, name: str, usual: object, file: Path) -> float:
    """The number of a layer in a table by ends of names, or else the usual one."""
    table = pattern if isinstance(pattern, dict) else {}
    found = next((value for key, value in table.items() if name == key or name.endswith(f".{key}")), usual)
    if isinstance(found, bool) or not isinstance(found, int | float) or not found > 0:
        raise BadData(f"{file.with_name(CONFIG_FILE)}: rank and alpha of {name} must be numbers above 0: {found!r}.")
    return found


def _ours(text: str | None, file: Path) -> Adapter:
    """What the metadata of our own files say."""
    if text is None:
        return Adapter(base="", factors={})
    try:
        facts = strict_json(text.encode(), f"{file}: {FACTS}")
        return Adapter(
            base="", factors={}, model=from_dict(ModelConfig, facts["model"], "model."),
            preprocess=from_dict(PreprocessConfig, facts["preprocess"], "preprocess."),
            class_names=tuple(map(str, facts["class_names"])), multi_label=facts.get("multi_label", False) is True,
            threshold=float(facts.get("threshold", 0.5)),
        )  # fmt: skip
    except (KeyError, TypeError, ValueError, BadConfig) as error:
        raise BadData(f"{file}: its facts are incomplete ({error}). Take another copy.") from error


def chain(path: Path) -> tuple[list[Adapter], str]:
    """The adapters from the one at `path` down to that on a model, and the path or hub id of that model.

    Raises `NotFound` for a base that is not named or not there, `BadData` for too many on one another.
    """
    found: list[Adapter] = []
    while True:
        adapter = read(path)
        found.append(adapter)
        base = _base(adapter.base, folder_of(path))
        if hub.is_id(base) or not is_adapter(Path(base)):
            return found, base
        if len(found) == MOST:
            raise BadData(f"{path}: stands on more than {MOST} adapters, or on itself.")
        path = Path(base)


def _base(named: str, folder: Path) -> str:
    """The base as it can be opened: a hub id, or a path that is there, from here or from the folder."""
    if hub.is_id(named):
        return named
    for place in (Path(named), folder / named):
        if named and place.exists():
            return str(place)
    what = f"its base {named!r} is not there" if named else "it names no base"
    raise NotFound(
        f"{folder}: is {TITLE}, and {what}. Write where the base is, a path or hf://ORGANISATION/NAME, into "
        f"base_model_name_or_path of {folder / CONFIG_FILE}."
    )


def applied(base: Bundle, adapter: Adapter, path: Path, labels: str | Path | None = None) -> tuple[Bundle, list[str]]:
    """`base` with the adapter merged into its weights, and sentences on the classes.

    A model of another size or other classes than the base begins as training began it. Raises `BadData` for layers
    that the base does not have.
    """
    config, names, said = _classes(base, adapter, labels)
    if config == base.model and names == base.class_names:
        tensors = dict(base.tensors)
    else:
        with torch.random.fork_rng(devices=[]):
            tensors = dict(initialise(config, names, base)[0].state_dict())
    unknown = [name for name in adapter.factors if f"{name}.weight" not in tensors]
    unknown += [name for name in adapter.saved if name not in tensors]
    if unknown:
        raise BadData(f"{path}: the base has no {', '.join(unknown[:4])}: layers must have timm's names.")
    for name, factors in adapter.factors.items():
        try:
            tensors[f"{name}.weight"] = merged(tensors[f"{name}.weight"], factors)
        except RuntimeError as error:
            raise BadData(f"{path}: the factors of {name} do not fit the base ({error}).") from error
    tensors |= adapter.saved
    with torch.device("meta"):
        check_tensors(network(config).state_dict(), tensors)
    preprocess = adapter.preprocess or base.preprocess
    made = replace(
        base, model=config, class_names=names, tensors=tensors, preprocess=preprocess, metrics={}, run={}
    )  # fmt: skip
    if adapter.multi_label is not None:
        made = replace(made, multi_label=adapter.multi_label, threshold=adapter.threshold)
    return made, said


def _classes(
    base: Bundle, adapter: Adapter, labels: str | Path | None
) -> tuple[ModelConfig, tuple[str, ...], list[str]]:
    """The architecture and the classes of the adapted model: its own facts, or what its head tells."""
    if adapter.model is not None and adapter.class_names is not None:
        own = adapter.class_names if labels is None else from_file(Path(labels), adapter.model.num_classes)
        return adapter.model, own, []
    head = adapter.saved.get("head.weight")
    number = base.model.num_classes if head is None else len(head)
    own_names = base.class_names if number == base.model.num_classes else None
    names, said = class_names(number, {}, own=own_names, labels=labels)
    return replace(base.model, num_classes=number), names, [said] if said and own_names is None else []
