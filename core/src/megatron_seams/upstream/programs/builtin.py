"""Python's own functions and methods that upstream's programs call on known values."""

import builtins
import math
import operator
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final

from megatron_seams.upstream.config_fields import UNREAD
from megatron_seams.upstream.programs.values import (
    LONGEST,
    Defined,
    Member,
    Outside,
    Record,
    Table,
    every,
    is_long,
    known,
    some,
    truth,
)

#: Functions of values that are known as a whole.
_PLAIN: Final[Mapping[str, Callable[..., Any]]] = MappingProxyType(
    {
        **{
            name: getattr(builtins, name)
            for name in ("abs", "float", "int", "list", "max", "min", "range", "round", "set")
        },
        **{name: getattr(builtins, name) for name in ("sorted", "str", "sum", "tuple")},
        "enumerate": lambda *given: list(enumerate(*given)),
        "zip": lambda *given: list(zip(*given, strict=False)),
        "math.ceil": math.ceil,
        "math.floor": math.floor,
        "math.prod": math.prod,
        "numpy.prod": math.prod,
    }
)

#: Methods that change nothing.
_METHODS: Final[Mapping[type, frozenset[str]]] = MappingProxyType(
    {
        str: frozenset(
            {"count", "endswith", "format", "join", "lower", "replace", "split", "startswith"}
            | {"strip", "lstrip", "rstrip", "title", "upper", "isdigit", "find", "index"}
        ),
        list: frozenset({"copy"}),
        set: frozenset({"copy", "difference", "intersection", "issubset", "union"}),
    }
)

#: Methods that change what they are called on.
CHANGING: Final = frozenset(
    {"add", "append", "clear", "discard", "extend", "insert", "pop", "remove", "setdefault", "sort"}
    | {"update"}
)

_TYPES: Final[Mapping[str, type]] = MappingProxyType(
    {kind.__name__: kind for kind in (bool, dict, float, int, list, set, str, tuple)}
)

BINARY: Final[Mapping[str, Callable[[Any, Any], Any]]] = MappingProxyType(
    {
        "Add": operator.add,
        "BitAnd": operator.and_,
        "BitOr": operator.or_,
        "Div": operator.truediv,
        "FloorDiv": operator.floordiv,
        "Mod": operator.mod,
        "Mult": operator.mul,
        "Pow": operator.pow,
        "Sub": operator.sub,
    }
)
ORDERED: Final[Mapping[str, Callable[[Any, Any], Any]]] = MappingProxyType(
    {"Gt": operator.gt, "GtE": operator.ge, "Lt": operator.lt, "LtE": operator.le}
)
UNARY: Final[Mapping[str, Callable[[Any], Any]]] = MappingProxyType(
    {"UAdd": operator.pos, "USub": operator.neg}
)


def computed(function: Callable[..., Any], *given: Any) -> Any:
    """The result of a function of plain values; UNREAD where it is unknown, or raises."""
    if not all(map(_plain, given)):
        return UNREAD
    if function is operator.mul and not _small(*given):
        return UNREAD
    if function is operator.pow and not _small_power(*given):
        return UNREAD
    try:
        return function(*given)
    except Exception:  # noqa: BLE001  # whatever the program would have raised here
        return UNREAD


def call(name: str, given: list[Any]) -> Any:
    """The result of the function of this full name for positional arguments; UNREAD if unknown."""
    match name, given:
        case "len", [Table(values=values, closed=True)]:
            return len(values)
        case "len", [str() | list() | tuple() | set() as sized]:
            return len(sized)
        case "len", [range() as numbers]:
            return computed(len, numbers)
        case "bool", [value]:
            return truth(value)
        case "all", [list() | tuple() as values]:
            return every(values)
        case "any", [list() | tuple() as values]:
            return some(values)
        case "isinstance", [value, kind]:
            return _is_instance(value, kind)
        case (("list" | "set" | "tuple" | "sorted"), [Table(values=values, closed=True)]):
            return computed(_PLAIN[name], list(values))
        case (("list" | "dict" | "set" | "tuple"), []):
            return Table({}) if name == "dict" else _PLAIN[name]()
    return computed(_PLAIN[name], *given) if name in _PLAIN else UNREAD


def method(owner: Any, name: str, given: list[Any]) -> Any:
    """The result of a method that does not change its known value; UNREAD if unknown."""
    match owner, name, given:
        case Table(closed=True), "keys", []:
            return list(owner.values)
        case Table(closed=True), "values", []:
            return [value.value for value in owner.values.values()]
        case Table(closed=True), "items", []:
            return [(key, value.value) for key, value in owner.values.items()]
        case Table(closed=True), "get", [key, *default] if known(key):
            return owner.values[key].value if key in owner.values else [*default, None][0]
    allowed = _METHODS.get(type(owner), frozenset())
    return computed(getattr(owner, name), *given) if name in allowed else UNREAD


def _is_instance(value: Any, kind: Any) -> Any:
    if isinstance(kind, tuple):
        return some(_is_instance(value, each) for each in kind)
    match value, kind:
        case Member(enum=enum), Defined():
            return True if enum == kind else UNREAD
        case Outside(name=name), Outside(name="torch.dtype"):
            return name.startswith("torch.")
        case ((Outside() | Defined()), _):
            return UNREAD
        case _, Outside(name=name) if name in _TYPES:
            if value is UNREAD:
                return UNREAD
            if isinstance(value, Record):
                return isinstance(value, Table) and name == "dict"
            if isinstance(value, Member):
                return name == "str" and value.text is not None
            return isinstance(value, _TYPES[name])
        case _, (Outside(name="torch.dtype") | Defined()):
            return UNREAD if value is UNREAD or isinstance(value, Record) else False
    return UNREAD


def _plain(value: Any) -> bool:
    if isinstance(value, list | tuple | set | frozenset):
        return all(isinstance(each, Member | Outside | Defined) or _plain(each) for each in value)
    if isinstance(value, range):
        return not is_long(value)
    return value is None or isinstance(value, str | int | float)


def _small_power(base: Any, exponent: Any) -> bool:
    """Whether a power has a float's size, or fewer bits than :data:`LONGEST`."""
    if not isinstance(base, int) or not isinstance(exponent, int):
        return True
    return base.bit_length() * max(exponent, 0) < LONGEST


def _small(*given: Any) -> bool:
    sizes = [len(value) if isinstance(value, str | list | tuple) else value for value in given]
    return all(isinstance(size, int | float) and abs(size) < LONGEST for size in sizes) or all(
        isinstance(value, int | float) for value in given
    )
