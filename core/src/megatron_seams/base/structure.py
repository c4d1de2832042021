"""Parsed TOML as attrs values, through cattrs and without any conversion.

cattrs, left alone, makes ``True`` of ``"false"`` and ``"3"`` of ``3``, and lets unknown keys pass:
a manifest read like that says what its author did not write. Here a value has the declared type or
it is a fault, an unknown key is a fault, every fault is reported, and each names its key.
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

T = TypeVar("T")

#: The scalar types that a field may have, as messages name them.
_EXPECTED = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a string",
    datetime.date: "a date (YYYY-MM-DD, no time)",
}


@attrs.frozen
class KeyFault:
    """One key that does not fit.

    Attributes:
        key: Its dotted path, ``override[1].expires``; empty for the table as a whole.
        message: The expectation, and the value that was found.
    """

    key: str
    message: str


def key_of(field: str) -> str:
    """The spelling of a field in a TOML file: ``review_by`` is written ``review-by``."""
    return field.rstrip("_").replace("_", "-")


def structure(cls: type[T], data: Mapping[str, Any]) -> tuple[T | None, tuple[KeyFault, ...]]:
    """Make a ``cls`` of a parsed TOML table.

    Args:
        cls: A frozen attrs class; field ``review_by`` is read from the key ``review-by``.
        data: The table.

    Returns:
        The value and no fault, or None and every fault, sorted by key.
    """
    try:
        return _CONVERTER.structure(data, cls), ()
    except Exception as error:  # noqa: BLE001 - whatever a validator raises becomes a named fault
        faults = tuple(sorted(set(_faults(error, "")), key=lambda fault: fault.key))
        return None, faults


# --- the converter ----------------------------------------------------------------------------


class _WrongTypeError(ValueError):
    """A value of another type than the field's."""


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


def _attrs_class(cls: type, converter: cattrs.Converter) -> Any:
    """The hook for an attrs class: a table with dashed keys and no others."""
    renamed: dict[str, Any] = {
        field.name: override(rename=key_of(field.name), struct_hook=_validated(field, converter))
        for field in attrs.fields(cls)
    }
    made: Callable[[Any, Any], Any] = make_dict_structure_fn(
        cls, converter, _cattrs_forbid_extra_keys=True, **renamed
    )

    def hook(value: Any, kind: Any) -> Any:
        if not isinstance(value, Mapping):
            message = f"expected a table, found {_describe(value)}"
            raise _WrongTypeError(message)
        return made(value, kind)

    return hook


def _validated(field: "attrs.Attribute[Any]", converter: cattrs.Converter) -> Any:
    """The hook for one field, which also runs the field's validator.

    ``__init__`` would run validators only once every type is right, would stop at the first that
    fails, and its message would name the table and not the key.
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


def _tuple(kind: Any, converter: cattrs.Converter) -> Any:
    """The hook for ``tuple[T, ...]``: an array, with the faults of every item."""
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


def _dict(kind: Any, converter: cattrs.Converter) -> Any:
    """The hook for ``dict[str, T]``: a table of any keys, with the faults of every value."""
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


def _make_converter() -> cattrs.Converter:
    converter = cattrs.Converter()
    for kind in _EXPECTED:
        converter.register_structure_hook(kind, _exactly)
    converter.register_structure_hook_factory(attrs.has, _attrs_class)
    converter.register_structure_hook_factory(_is_generic(tuple), _tuple)
    converter.register_structure_hook_factory(_is_generic(dict), _dict)
    return converter


def _is_generic(origin: type) -> Callable[[Any], bool]:
    return lambda kind: getattr(kind, "__origin__", None) is origin


_CONVERTER = _make_converter()


# --- faults out of cattrs' errors -------------------------------------------------------------


def _faults(error: BaseException, path: str) -> Iterator[KeyFault]:
    if isinstance(error, cattrs.BaseValidationError):
        for part, inner in _parts(error):
            yield from _faults(part, f"{path}.{inner}".strip(".").replace(".[", "["))
    elif isinstance(error, ForbiddenExtraKeysError):
        known = ", ".join(key_of(field.name) for field in attrs.fields(error.cl))
        for key in sorted(error.extra_fields):
            yield KeyFault(f"{path}.{key}".strip("."), f"unknown key; known here: {known}")
    elif isinstance(error, KeyError):
        yield KeyFault(f"{path}.{error.args[0]}".strip("."), "required, and missing")
    else:
        yield KeyFault(path, str(error) or type(error).__name__)


def _parts(error: cattrs.BaseValidationError) -> Iterator[tuple[BaseException, str]]:
    """The errors inside one of cattrs', each with the key or index that it is about."""
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
