"""What is wrong with a table that does not fit its attrs class: every fault, each with its key.

cattrs, left alone, makes ``True`` of ``"false"``, ``"3"`` of ``3``, and lets unknown keys pass; it
is told here not to. :mod:`megatron_seams.base.structure` takes what plainly fits without asking.
"""

import datetime
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import attrs
import cattrs
from cattrs.errors import (
    AttributeValidationNote,
    ClassValidationError,
    ForbiddenExtraKeysError,
    IterableValidationError,
    IterableValidationNote,
)
from cattrs.gen import make_dict_structure_fn, override

from megatron_seams.base.structure import key_of

T = TypeVar("T")

_EXPECTED = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a string",
    datetime.date: "a date (YYYY-MM-DD, no time)",
}


@attrs.frozen
class KeyFault:
    """One key that does not fit: its dotted path, and what was expected and found there."""

    key: str
    message: str


class _WrongTypeError(ValueError):
    """A value of another type than the field's, seen before any conversion."""


def _exactly(value: Any, kind: type) -> Any:
    # `type() is`, not isinstance: True is an int and a datetime is a date, and neither was meant.
    if kind is float and type(value) is int:
        return float(value)  # TOML writes 1 for 1.0; no information is lost
    if type(value) is not kind:
        message = f"expected {_EXPECTED[kind]}, found {_describe(value)}"
        raise _WrongTypeError(message)
    return value


def _describe(value: Any) -> str:
    names: dict[type, str] = {
        bool: "a boolean",
        int: "a whole number",
        float: "a number",
        str: "a string",
        list: "an array",
        dict: "a table",
        datetime.datetime: "a date with a time",
        datetime.date: "a date",
    }
    return f"{names.get(type(value), type(value).__name__)}: {value!r:.60}"


def _dashed(cls: type, converter: cattrs.Converter) -> Any:
    """Structure an attrs class from a table whose keys use dashes and hold nothing else."""
    renamed: dict[str, Any] = {
        field.name: override(rename=key_of(field.name), struct_hook=_validated(field, converter))
        for field in attrs.fields(cls)
    }
    structure: Callable[[Any, Any], Any] = make_dict_structure_fn(
        cls, converter, _cattrs_forbid_extra_keys=True, **renamed
    )

    def checked(value: Any, kind: Any) -> Any:
        if not isinstance(value, Mapping):
            message = f"expected a table, found {_describe(value)}"
            raise _WrongTypeError(message)
        return structure(value, kind)

    return checked


def _validated(field: "attrs.Attribute[Any]", converter: cattrs.Converter) -> Any:
    """Structure one field and run its validator at once.

    Left to ``__init__``, a validator speaks only when every type is right, only the first of them
    speaks, and what it says names the table and not the key.
    """
    structured = converter.get_structure_hook(field.type)
    validator = field.validator
    if validator is None:
        return structured

    def hook(value: Any, kind: Any) -> Any:
        made = structured(value, kind)
        validator(None, field, made)
        return made

    return hook


def _sequence(kind: Any, converter: cattrs.Converter) -> Any:
    (item,) = (arg for arg in kind.__args__ if arg is not Ellipsis)
    structured = converter.get_structure_hook(item)

    def hook(value: Any, _: Any) -> Any:
        if type(value) is not list:
            message = f"expected an array, found {_describe(value)}"
            raise _WrongTypeError(message)
        faults = []
        items = []
        for index, part in enumerate(value):
            try:
                items.append(structured(part, item))
            except Exception as error:  # noqa: BLE001 - collected, so that no item hides the next
                error.__notes__ = [IterableValidationNote(f"item {index}", index, item)]
                faults.append(error)
        if faults:
            raise IterableValidationError("array", faults, tuple)
        return tuple(items)

    return hook


def _table(kind: Any, converter: cattrs.Converter) -> Any:
    item = kind.__args__[1]
    structured = None if item is Any else converter.get_structure_hook(item)

    def hook(value: Any, _: Any) -> dict[str, Any]:
        if not isinstance(value, Mapping):
            message = f"expected a table, found {_describe(value)}"
            raise _WrongTypeError(message)
        faults = []
        table = {}
        for key, part in value.items():
            try:
                table[key] = structured(part, item) if structured else part
            except Exception as error:  # noqa: BLE001 - collected, so that no key hides the next
                error.__notes__ = [AttributeValidationNote(f"key {key}", key, item)]
                faults.append(error)
        if faults:
            raise ClassValidationError("table", faults, dict)
        return table

    return hook


def _make() -> cattrs.Converter:
    converter = cattrs.Converter()
    for kind in _EXPECTED:
        converter.register_structure_hook(kind, _exactly)
    converter.register_structure_hook_factory(
        lambda kind: attrs.has(kind) and isinstance(kind, type),
        lambda kind: _dashed(kind, converter),
    )
    for origin, factory in ((tuple, _sequence), (dict, _table)):
        converter.register_structure_hook_factory(
            lambda kind, origin=origin: getattr(kind, "__origin__", None) is origin,  # type: ignore[misc]
            lambda kind, factory=factory: factory(kind, converter),
        )
    return converter


def fit(cls: type[T], data: Mapping[str, Any]) -> tuple[T | None, tuple[KeyFault, ...]]:
    """Structure ``data`` as ``cls``: the value and no fault, or None and every fault found."""
    try:
        return _CONVERTER.structure(data, cls), ()
    except Exception as error:  # noqa: BLE001 - whatever a validator raises becomes a named fault
        faults = tuple(sorted(set(_faults(error, "")), key=lambda fault: fault.key))
        return None, faults


def _faults(error: BaseException, path: str) -> Iterator[KeyFault]:
    if isinstance(error, cattrs.BaseValidationError):
        for part, inner in _with_notes(error):
            yield from _faults(part, f"{path}.{inner}".strip(".").replace(".[", "["))
    elif isinstance(error, ForbiddenExtraKeysError):
        known = ", ".join(key_of(field.name) for field in attrs.fields(error.cl))
        for key in sorted(error.extra_fields):
            yield KeyFault(f"{path}.{key}".strip("."), f"unknown key; known here: {known}")
    elif isinstance(error, KeyError):
        yield KeyFault(f"{path}.{error.args[0]}".strip("."), "required, and missing")
    else:
        yield KeyFault(path, str(error) or type(error).__name__)


def _with_notes(error: cattrs.BaseValidationError) -> Iterator[tuple[BaseException, str]]:
    for part in error.exceptions:
        notes = getattr(part, "__notes__", [])
        name = ""
        for note in notes:
            if isinstance(note, AttributeValidationNote):
                name = key_of(note.name)
            elif isinstance(note, IterableValidationNote):
                name = f"[{note.index}]"
        # A missing key names itself; the note would name it a second time.
        yield part, "" if isinstance(part, KeyError) else name


_CONVERTER = _make()
