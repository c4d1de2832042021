"""The JSON Schemas of recipes and manifests, made from the classes that read them.

An editor checks a TOML file by one as it is typed. The classes check more: what one key says
against another, and whether a family or a Megatron has what is named.
"""

import datetime
import inspect
import re
import types
from collections.abc import Mapping
from typing import Any, Union, get_args, get_origin

import attrs

from megatron_seams.base.structure import key_of
from megatron_seams.recipes.recipe import Recipe
from megatron_seams.seams.manifest import Manifest

_PLAIN = {
    str: {"type": "string"},
    int: {"type": "integer"},
    float: {"type": "number"},
    bool: {"type": "boolean"},
    # As editors hand it over; TOML has dates of its own.
    datetime.date: {"type": "string", "format": "date"},
    Any: {},
}
#: Key of a class -> the words that its validator accepts.
_WORDS = {
    "About.status": ("seam", "experiment"),
    "Upstream.fallback": ("native", "refuse"),
    "Carrier.part": ("mixer", "layer"),
    "Placement.placement": ("embedding", "residual"),
}


def schemas() -> Mapping[str, dict[str, Any]]:
    """File name -> schema."""
    return {
        "manifest.schema.json": _document(Manifest, "manifest", "A manifest, seam.toml"),
        "recipe.schema.json": _document(Recipe, "recipe", "A recipe of a model"),
    }


def _document(cls: type, name: str, title: str) -> dict[str, Any]:
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"{name}.schema.json",
        "title": title,
        **_table(cls, named=True),
    }


def _table(cls: type, *, named: bool = False) -> dict[str, Any]:
    """The schema of a class; ``named`` leaves its own description to the caller."""
    fields = attrs.fields(attrs.resolve_types(cls))
    told = descriptions(cls)
    properties = {}
    for field in fields:
        made = _kind(field.type)
        if field.name == "schema":
            made = {"const": 1}
        if words := _WORDS.get(f"{cls.__name__}.{field.name}"):
            made = {"enum": list(words)}
        if text := told.get(field.name):
            made = {**made, "description": text}
        properties[key_of(field.name)] = made
    required = sorted(key_of(field.name) for field in fields if field.default is attrs.NOTHING)
    summary = (
        {} if named else {"description": plain(cls.__doc__ or "").partition(" Attributes:")[0]}
    )
    return {
        "type": "object",
        **summary,
        "properties": properties,
        **({"required": required} if required else {}),
        "additionalProperties": False,
    }


def _kind(kind: Any) -> dict[str, Any]:
    if isinstance(kind, type) and attrs.has(kind):
        return _table(kind)
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        made = [_kind(part) for part in inner if part is not types.NoneType]
        return made[0] if len(made) == 1 else {"anyOf": made}
    if origin is tuple:
        return {"type": "array", "items": _kind(inner[0])}
    if origin is dict:
        return {"type": "object", "additionalProperties": _kind(inner[1])}
    return dict(_PLAIN[kind])


def descriptions(cls: type) -> dict[str, str]:
    """Attribute -> its description in the class's docstring."""
    _, _, listed = inspect.cleandoc(cls.__doc__ or "").partition("Attributes:\n")
    entries = re.findall(r"^    (\w+): (.*(?:\n        .*)*)", listed, re.MULTILINE)
    return {name: plain(text) for name, text in entries}


def plain(text: str) -> str:
    """A docstring's text in one line, without Sphinx's markup."""
    return re.sub(r":\w+:(?=`)", "", " ".join(text.split()).replace("``", "`"))
