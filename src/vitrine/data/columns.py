"""Which column of a table holds the pictures and which their classes, from the schema that the table brings along."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vitrine.errors import BadData, NotFound, Unavailable, nearest

if TYPE_CHECKING:
    import pyarrow as pa

CHOOSE_PICTURE = "data.image_column (`vitrine evaluate`: --image-column)"
CHOOSE_LABEL = "data.label_column (`vitrine evaluate`: --label-column)"
INSTALL = "pip install 'vitrine[data]'"
LABEL_NAMES = (
    "label", "labels", "fine_label", "coarse_label", "class", "classes", "target", "category", "categories", "tags",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Columns:
    """`picture` is the column of encoded pictures, `nested` where it is Hugging Face's struct of bytes and path.

    `label` is the column of classes, None where none is needed and none was found; `names` are those of its numbers,
    None where the cells name the classes themselves; `several`: a cell is a list.
    """

    picture: str
    nested: bool
    label: str | None
    names: tuple[str, ...] | None
    several: bool


def require_pyarrow(name: str) -> Any:
    """The module pyarrow.parquet. Raises `Unavailable` where it is not installed."""
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise Unavailable(f"{name}: needs the package pyarrow. Install it: {INSTALL}") from error
    return parquet


def choose(where: str, schema: pa.Schema, picture: str, label: str | None, *, labelled: bool) -> Columns:
    """The columns of a table with this schema; `picture` and `label` are those asked for, "" where they are to
    be found; with None classes are not looked for.

    Pictures are plain bytes, or Hugging Face's struct. Of the columns that may hold classes (whole numbers, text, lists
    of these) those count that the schema calls class labels, else those named so, else the only other one. Raises
    `BadData` where there is none or more than one, naming them and the option that chooses, and `NotFound`.
    """
    features = _features(schema)
    found = _picture(where, schema, picture, features)
    wanted = None if label is None else _label(where, schema, label, features, found, labelled)
    kind = schema.field(found).type
    if wanted is None:
        return Columns(picture=found, nested=_is_struct(kind), label=None, names=None, several=False)
    several = _is_list(schema.field(wanted).type)
    names = _names(features.get(wanted), several)
    return Columns(picture=found, nested=_is_struct(kind), label=wanted, names=names, several=several)


def _features(schema: pa.Schema) -> Mapping[str, Any]:
    """What Hugging Face's metadata says of each column; nothing where there is none, or nothing sound."""
    try:
        told = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return {}
    return told if isinstance(told, dict) else {}


def _names(feature: Any, several: bool) -> tuple[str, ...] | None:
    """The class names of a column; that of a list stands inside it."""
    if several:
        if isinstance(feature, list) and feature:
            feature = feature[0]
        elif isinstance(feature, dict):
            feature = feature.get("feature")
    if not isinstance(feature, dict) or feature.get("_type") != "ClassLabel":
        return None
    names = feature.get("names")
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
        return None
    return tuple(names)


def _picture(where: str, schema: pa.Schema, asked: str, features: Mapping[str, Any]) -> str:
    if asked:
        _require(where, schema, asked, "data.image_column")
        if not _may_be_picture(schema.field(asked).type):
            raise BadData(
                f"{where}: data.image_column = {asked!r}: is a column of {schema.field(asked).type}; pictures are "
                "bytes, or Hugging Face's struct of bytes and path. Name another column."
            )
        return asked
    able = [name for name in dict.fromkeys(schema.names) if _may_be_picture(schema.field(name).type)]
    called = [name for name in able if isinstance(told := features.get(name), dict) and told.get("_type") == "Image"]
    found = called or able
    if len(found) > 1:
        # datasets and the hub call it so nearly always
        found = [name for name in found if name.lower() in ("image", "img")] or found
    if len(found) == 1:
        return found[0]
    if not found:
        raise BadData(
            f"{where}: no column holds pictures, as bytes or as Hugging Face's struct of bytes and path; columns "
            f"found: {_shown(schema)}. Write the pictures themselves into the file."
        )
    raise BadData(f"{where}: several columns hold pictures: {', '.join(found)}. Choose one by {CHOOSE_PICTURE}.")


def _label(
    where: str, schema: pa.Schema, asked: str, features: Mapping[str, Any], picture: str, labelled: bool
) -> str | None:
    if asked:
        _require(where, schema, asked, "data.label_column")
        if asked == picture or not _may_be_label(schema.field(asked).type):
            raise BadData(
                f"{where}: data.label_column = {asked!r}: is a column of {schema.field(asked).type}; classes are whole "
                "numbers, text, or lists of these. Name another column."
            )
        return asked
    able = [n for n in dict.fromkeys(schema.names) if n != picture and _may_be_label(schema.field(n).type)]
    called = [name for name in able if _names(features.get(name), _is_list(schema.field(name).type))]
    named = [name for name in able if name.lower() in LABEL_NAMES]
    found = called or named or (able if len(able) == 1 else [])
    if len(found) > 1:
        found = [name for name in found if name.lower() == "label"] or found
    if len(found) == 1:
        return found[0]
    if not labelled:
        return None
    if not found:
        raise BadData(
            f"{where}: no column is known to hold the classes; columns found: {_shown(schema)}. "
            f"Name it by {CHOOSE_LABEL}."
        )
    raise BadData(f"{where}: several columns may be the classes: {', '.join(found)}. Choose one by {CHOOSE_LABEL}.")


def _require(where: str, schema: pa.Schema, name: str, option: str) -> None:
    if schema.names.count(name) != 1:
        raise NotFound(
            f"{where}: {option} = {name!r}: there is no such column.{nearest(name, schema.names)} "
            f"Columns found: {_shown(schema)}."
        )


def _shown(schema: pa.Schema) -> str:
    told = [f"{name} ({kind})" for name, kind in zip(schema.names, schema.types, strict=True)]
    return ", ".join(told[:12]) + (", ..." if len(told) > 12 else "") if told else "none"


def _is_struct(kind: pa.DataType) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_struct(kind))


def _is_list(kind: pa.DataType) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _may_be_picture(kind: pa.DataType) -> bool:
    import pyarrow as pa

    if pa.types.is_struct(kind):
        at = kind.get_field_index("bytes")
        return at >= 0 and _is_bytes(kind.field(at).type)
    return _is_bytes(kind)


def _is_bytes(kind: pa.DataType) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def _may_be_label(kind: pa.DataType) -> bool:
    if _is_list(kind):
        return _may_be_one(kind.value_type)
    return _may_be_one(kind)


def _may_be_one(kind: pa.DataType) -> bool:
    import pyarrow as pa

    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    return bool(text or pa.types.is_integer(kind) or pa.types.is_boolean(kind))
