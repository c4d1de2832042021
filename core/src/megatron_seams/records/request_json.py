"""A recipe as the JSON values of a receipt, and back, with what JSON has no word for.

A number that is none or has no end, a date or a time is a table with one key that says what it is:
``{"$float": "inf"}``, ``{"$date": "2026-12-01"}``. A table of the recipe's own that looks like one
is put into another, ``{"$table": {...}}``.
"""

import datetime
import math
from collections.abc import Mapping
from typing import Any, Final

import attrs

from megatron_seams.base.structure import KeyFault, key_of, structure
from megatron_seams.errors import RecipeInvalid
from megatron_seams.recipes.recipe import Recipe

_FLOAT: Final = "$float"
_TABLE: Final = "$table"
#: Each type of TOML's that JSON has not -> its key.
_TIMES: Final[Mapping[type[datetime.date] | type[datetime.time], str]] = {
    datetime.datetime: "$datetime",
    datetime.date: "$date",
    datetime.time: "$time",
}
_TAGS: Final = frozenset({_FLOAT, _TABLE, *_TIMES.values()})


def request_of(recipe: Recipe) -> dict[str, Any]:
    """A recipe as JSON values, with the keys that its TOML file has.

    Raises:
        RecipeInvalid: It holds a value that no recipe file can hold.
    """
    made: dict[str, Any] = _plain(recipe, "")
    return made


def recipe_of(
    request: Mapping[str, Any], *, tagged: bool
) -> tuple[Recipe | None, tuple[KeyFault, ...]]:
    """The recipe in a receipt, or what is wrong with it.

    Args:
        request: As :func:`request_of` gives it.
        tagged: Whether values that JSON has not are tables; before schema 2 they were text.

    Raises:
        ValueError: A table that is to be such a value is none.
        KeyError: An override or a justification has no date.
        TypeError, AttributeError: A table of the request is something else.
    """
    read = _read(request) if tagged else dict(request)
    # A recipe's own keys are typed, and say a date as text.
    dated = {
        table: [{**entry, key: datetime.date.fromisoformat(entry[key])} for entry in read[table]]
        for table, key in (("override", "expires"), ("justify", "review-by"))
        if table in read
    }
    return structure(Recipe, {**read, **dated})


def _plain(value: Any, path: str) -> Any:
    if attrs.has(type(value)):
        fields = attrs.fields(type(value))
        parts = {it.name: getattr(value, it.name) for it in fields}
        return {
            key_of(name): part.isoformat()
            if isinstance(part, datetime.date)
            else _plain(part, f"{path}.{key_of(name)}".lstrip("."))
            for name, part in parts.items()
            if part is not None
        }
    kind = type(value)
    if isinstance(value, Mapping):
        table = {_text(key, path): _plain(part, f"{path}.{key}") for key, part in value.items()}
        return {_TABLE: table} if len(table) == 1 and _TAGS.issuperset(table) else table
    if kind in (list, tuple):
        return [_plain(part, f"{path}[{number}]") for number, part in enumerate(value)]
    if kind in _TIMES:
        return {_TIMES[kind]: value.isoformat()}
    if kind is float and not math.isfinite(value):
        return {_FLOAT: repr(value)}
    if kind is str:
        return _text(value, path)
    if kind in (bool, int, float) or value is None:
        return value
    raise _unkept(path, f"{value!r:.60} is {kind.__name__}")


def _text(value: Any, path: str) -> str:
    if type(value) is not str:
        raise _unkept(path, f"a table's key is {type(value).__name__}: {value!r:.60}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise _unkept(path, f"{value!r:.60} is no text that UTF-8 can hold") from error
    return value


def _unkept(path: str, found: str) -> RecipeInvalid:
    return RecipeInvalid(
        asked="a recipe that a receipt can hold",
        found=found,
        next="give the key a value that a recipe file can have: text, a number, true or false, a "
        "date, an array, a table",
        key=path.lstrip("."),
    )


def _read(value: Any) -> Any:
    if isinstance(value, list):
        return [_read(part) for part in value]
    if not isinstance(value, dict):
        return value
    if len(value) == 1 and _TAGS.issuperset(value):
        ((tag, part),) = value.items()
        if tag == _TABLE:
            return {key: _read(inner) for key, inner in part.items()}
        if tag == _FLOAT:
            return float(part)
        kinds = {tag: kind for kind, tag in _TIMES.items()}
        return kinds[tag].fromisoformat(part)
    return {key: _read(part) for key, part in value.items()}
