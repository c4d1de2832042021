"""Values of TOML read as Python types, exactly: nothing is converted, and every item is checked.

A type that no value of TOML can have (a path, a function) accepts none, and says so.
"""

import collections.abc
import datetime
import enum
import sys
import types
from collections.abc import Callable, Mapping
from typing import (
    Annotated,
    Any,
    Final,
    Literal,
    NewType,
    Union,
    get_args,
    get_origin,
)

import attrs
from cattrs.errors import (
    AttributeValidationNote,
    ClassValidationError,
    IterableValidationError,
    IterableValidationNote,
)

#: Gives the value of a declared type for a value of TOML, or raises.
Reader = Callable[[Any], Any]
#: Reads a table as an attrs class.
TableReader = Callable[[Any, type], Any]

#: The scalar types, as messages name them.
_SCALARS: Final[Mapping[Any, str]] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a string",
    datetime.date: "a date (YYYY-MM-DD, no time)",
    datetime.datetime: "a date with a time",
    datetime.time: "a time",
}
_FOUND: Final[Mapping[Any, str]] = {
    bool: "a boolean",
    int: "a whole number",
    float: "a number",
    str: "a string",
    list: "an array",
    dict: "a table",
    datetime.datetime: "a date with a time",
    datetime.date: "a date",
    datetime.time: "a time",
}
#: Types of items -> how messages name several.
_PLURALS: Final[Mapping[Any, str]] = {str: "strings", int: "whole numbers", float: "numbers"}
#: Types of arrays -> what is made of the items.
_ARRAYS: Final[Mapping[Any, Callable[[list[Any]], Any]]] = {
    tuple: tuple,
    list: list,
    collections.abc.Sequence: tuple,
    set: set,
    frozenset: frozenset,
}
_TABLES: Final = (dict, collections.abc.Mapping)


class WrongTypeError(ValueError):
    """A value of another type than the declared one."""


class KeyNote(AttributeValidationNote):
    """The key of a table with keys of any name, as it is written."""


def described(value: Any) -> str:
    """A value with its type, as messages name what was found."""
    try:
        text = f"{value!r:.60}"
    except ValueError:
        text = "of more digits than Python writes"
    return f"{_FOUND.get(type(value), type(value).__name__)}: {text}"


def reader_of(kind: Any, table: TableReader) -> Reader:
    """How values of a type are read.

    Args:
        kind: The type, as an annotation gives it.
        table: Reads attrs classes.
    """
    origin, arguments = get_origin(kind), get_args(kind)
    meant = _meant(kind)
    if meant is not kind:
        return reader_of(meant, table)
    if kind is Any or kind is None or kind is object:
        return _anything
    if kind in _SCALARS:
        return lambda value: _scalar(value, kind)
    if origin is Literal:
        return lambda value: _one_of(value, arguments)
    if origin in (Union, types.UnionType):
        return _union(kind, arguments, table)
    if (origin or kind) in _ARRAYS:
        return _array(origin or kind, None if origin is None else arguments, table)
    if (origin or kind) in _TABLES:
        return _open_table(arguments, table)
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return lambda value: kind(_one_of(value, tuple(member.value for member in kind)))
    if attrs.has(kind):
        return lambda value: table(value, kind)
    return lambda value: _never(value, kind)


def expected(kind: Any) -> str:
    """A type as messages name it."""
    origin, arguments = get_origin(kind), get_args(kind)
    meant = _meant(kind)
    if meant is not kind:
        return expected(meant)
    if origin is Literal:
        return f"one of {', '.join(map(repr, arguments))}"
    if origin in (Union, types.UnionType):
        return " or ".join(expected(part) for part in arguments if part is not types.NoneType)
    if (origin or kind) in _ARRAYS:
        return f"an array of {_PLURALS[arguments[0]]}" if _of_one(arguments) else "an array"
    if (origin or kind) in _TABLES or attrs.has(kind):
        return "a table"
    return _SCALARS.get(kind, str(getattr(kind, "__name__", kind)))


def _of_one(items: tuple[Any, ...]) -> bool:
    """Whether an array's items are all of one type that a plural names."""
    return bool(items) and items[0] in _PLURALS and set(items[1:]) <= {Ellipsis}


def _meant(kind: Any) -> Any:
    """The type that another name, or a note beside it, stands for; else the type itself."""
    if get_origin(kind) is Annotated:
        return get_args(kind)[0]
    if isinstance(kind, NewType):
        return kind.__supertype__
    if type(kind).__name__ == "TypeAliasType":  # of `type X = ...`, since Python 3.12
        return kind.__value__
    return kind


def _anything(value: Any) -> Any:
    """Any value that can be written again: in messages, receipts and arguments.

    Python limits the digits of a decimal number when it reads one, and those of another base only
    when it writes one.
    """
    try:
        repr(value)
    except ValueError as error:
        message = f"a number in it has more than {sys.get_int_max_str_digits():,} decimal digits"
        raise WrongTypeError(message) from error
    return value


def _scalar(value: Any, kind: Any) -> Any:
    # `type() is`, not isinstance: True is an int and a datetime is a date, and neither was meant.
    if kind is float and type(value) is int:
        return float(value)  # TOML writes 1 for 1.0; no information is lost
    if type(value) is not kind:
        message = f"expected {expected(kind)}, found {described(value)}"
        raise WrongTypeError(message)
    return _anything(value) if kind is int else value


def _one_of(value: Any, choices: tuple[Any, ...]) -> Any:
    if not any(type(value) is type(choice) and value == choice for choice in choices):
        message = f"expected one of {', '.join(map(repr, choices))}; found {described(value)}"
        raise WrongTypeError(message)
    return value


def _union(kind: Any, members: tuple[Any, ...], table: TableReader) -> Reader:
    """Reads a value as the one member whose type it has; a whole number rather whole than not."""
    optional = types.NoneType in members
    parts = sorted((it for it in members if it is not types.NoneType), key=lambda it: it is float)
    readers = [reader_of(part, table) for part in parts]

    def read(value: Any) -> Any:
        if value is None and optional:
            return None
        if len(readers) == 1:
            return readers[0](value)
        for reader in readers:
            try:
                return reader(value)
            except Exception:  # noqa: BLE001, S112 - another member may fit
                continue
        message = f"expected {expected(kind)}, found {described(value)}"
        raise WrongTypeError(message)

    return read


def _array(origin: Any, arguments: tuple[Any, ...] | None, table: TableReader) -> Reader:
    """Reads an array, with the faults of every item.

    Args:
        origin: The type without its arguments.
        arguments: The types of the items; None where the type is bare, and takes any.
        table: Reads attrs classes.
    """
    fixed = origin is tuple and arguments is not None and Ellipsis not in arguments
    kinds = (Any,) if arguments is None else arguments
    readers = [reader_of(part, table) for part in kinds if part is not Ellipsis]

    def read(value: Any) -> Any:
        if type(value) is not list:
            message = f"expected an array, found {described(value)}"
            raise WrongTypeError(message)
        if fixed and len(value) != len(readers):
            message = f"expected an array of {len(readers)}, found {len(value)} items"
            raise WrongTypeError(message)
        faults, items = [], []
        for index, part in enumerate(value):
            try:
                items.append(readers[index if fixed else 0](part))
            except Exception as error:  # noqa: BLE001 - collected, so that no item hides the next
                error.__notes__ = [IterableValidationNote(f"item {index}", index, origin)]
                faults.append(error)
        if faults:
            raise IterableValidationError("array", faults, origin)
        made = _ARRAYS[origin](items)
        if len(made) != len(items):
            message = f"expected an array without an item twice, found {described(value)}"
            raise WrongTypeError(message)
        return made

    return read


def _open_table(arguments: tuple[Any, ...], table: TableReader) -> Reader:
    """Reads a table with keys of any name, with the faults of every value."""
    key, item = arguments or (str, Any)
    if key is not str:
        return lambda value: _never(value, f"dict[{expected(key)}, ...]")
    reader = reader_of(item, table)

    def read(value: Any) -> Any:
        if not isinstance(value, Mapping):
            message = f"expected a table, found {described(value)}"
            raise WrongTypeError(message)
        faults, made = [], {}
        for name, part in value.items():
            try:
                made[name] = reader(part)
            except Exception as error:  # noqa: BLE001 - collected, so that no key hides the next
                error.__notes__ = [KeyNote(f"key {name}", name, item)]
                faults.append(error)
        if faults:
            raise ClassValidationError("table", faults, dict)
        return made

    return read


def _never(value: Any, kind: Any) -> Any:
    message = f"its type, {expected(kind)}, is none that a value here can have: {described(value)}"
    raise WrongTypeError(message)
