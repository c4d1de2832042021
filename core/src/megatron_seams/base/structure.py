"""Parsed TOML as attrs values, through cattrs and without any conversion.

cattrs, left alone, makes ``True`` of ``"false"`` and ``"3"`` of ``3``, and lets unknown keys pass:
a manifest read like that says what its author did not write. Here a value has the declared type or
it is a fault, an unknown key is a fault, every fault is reported, and each names its key.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, TypeVar, get_type_hints

import attrs
import cattrs
from cattrs.errors import (
    AttributeValidationNote,
    ForbiddenExtraKeysError,
    IterableValidationNote,
)
from cattrs.gen import make_dict_structure_fn, override

from megatron_seams.base.value_types import KeyNote, WrongTypeError, described, reader_of

T = TypeVar("T")

#: The faults of one table that are named, and the length of a message: whoever wrote the table may
#: have made thousands.
_MOST: Final = 50
_LONGEST: Final = 600


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
        return None, faults_of(error, "")


# --- the converter ----------------------------------------------------------------------------


def _attrs_class(cls: type, converter: cattrs.Converter) -> Any:
    """The hook for an attrs class: a table with dashed keys and no others."""
    types = types_of(cls)
    renamed: dict[str, Any] = {
        field.name: override(
            rename=key_of(field.name),
            struct_hook=_validated(field, types.get(field.name, field.type), converter),
        )
        for field in attrs.fields(cls)
    }
    made: Callable[[Any, Any], Any] = make_dict_structure_fn(
        cls, converter, _cattrs_forbid_extra_keys=True, **renamed
    )

    def hook(value: Any, kind: Any) -> Any:
        if not isinstance(value, Mapping):
            message = f"expected a table, found {described(value)}"
            raise WrongTypeError(message)
        return made(value, kind)

    return hook


def types_of(cls: type) -> dict[str, Any]:
    """The types of a class's fields, those of postponed annotations too.

    Raises:
        WrongTypeError: An annotation is no type that the class's module has.
    """
    try:
        return get_type_hints(cls, include_extras=True)
    except (NameError, SyntaxError, TypeError) as error:
        message = f"the types of {cls.__qualname__} cannot be read: {error}"
        raise WrongTypeError(message) from error


def _validated(field: "attrs.Attribute[Any]", kind: Any, converter: cattrs.Converter) -> Any:
    """The hook for one field, which also runs the field's validator.

    ``__init__`` would run validators only once every type is right, would stop at the first that
    fails, and its message would name the table and not the key.
    """
    reader = reader_of(kind, converter.structure)
    validator = field.validator

    def hook(value: Any, _: Any) -> Any:
        made = reader(value)
        if validator is not None:
            validator(None, field, made)
        return made

    return hook


def _make_converter() -> cattrs.Converter:
    converter = cattrs.Converter()
    converter.register_structure_hook_factory(attrs.has, _attrs_class)
    return converter


_CONVERTER = _make_converter()


# --- faults out of cattrs' errors -------------------------------------------------------------


def faults_of(error: BaseException, path: str) -> tuple[KeyFault, ...]:
    """The faults that an error of reading stands for, sorted by key.

    Args:
        error: What was raised.
        path: The dotted key of the value that was read; empty for a whole table.
    """
    found = sorted(set(_faults(error, path)), key=lambda fault: fault.key)
    if len(found) > _MOST:
        left = f"{len(found) - _MOST} further keys do not fit, {found[_MOST].key:.60} the first"
        found = [*found[:_MOST], KeyFault(path, left)]
    return tuple(found)


def _shown(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _faults(error: BaseException, path: str) -> Iterator[KeyFault]:
    if isinstance(error, cattrs.BaseValidationError):
        for part, inner in _parts(error):
            yield from _faults(part, f"{path}.{inner}".strip(".").replace(".[", "["))
    elif isinstance(error, ForbiddenExtraKeysError):
        known = ", ".join(key_of(field.name) for field in attrs.fields(error.cl))
        for key in sorted(error.extra_fields):
            yield KeyFault(_shown(f"{path}.{key}".strip(".")), f"unknown key; known here: {known}")
    elif isinstance(error, KeyError):
        yield KeyFault(f"{path}.{error.args[0]}".strip("."), "required, and missing")
    else:
        yield KeyFault(_shown(path), _shown(str(error) or type(error).__name__))


def _parts(error: cattrs.BaseValidationError) -> Iterator[tuple[BaseException, str]]:
    """The errors inside one of cattrs', each with the key or index that it is about."""
    for part in error.exceptions:
        notes = getattr(part, "__notes__", [])
        name = ""
        for note in notes:
            if isinstance(note, KeyNote):
                name = note.name
            elif isinstance(note, AttributeValidationNote):
                name = key_of(note.name)
            elif isinstance(note, IterableValidationNote):
                name = f"[{note.index}]"
        # A missing key names itself; the note would name it a second time.
        yield part, "" if isinstance(part, KeyError) else name
