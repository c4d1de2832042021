"""Turning parsed TOML into attrs values without ever coercing.

A manifest or recipe that is read with conversions says something its author did not write. Here a
value has the declared type or it is a fault, every fault is reported at once, and each names its
key.

What plainly fits is taken as it is, in one pass. Only what does not is given to cattrs
(:mod:`megatron_seams.base.fitting`), whose word is the last: loading it takes longer than reading a
hundred manifests.
"""

import datetime
import functools
import types
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar, Union, get_args, get_origin

import attrs

if TYPE_CHECKING:
    from megatron_seams.base.fitting import KeyFault

T = TypeVar("T")

_PLAIN = (bool, int, str, datetime.date)


class _NotPlain(Exception):
    """A value or a type that is not plainly right."""


def key_of(field: str) -> str:
    """The spelling of a field in a TOML file: ``review_by`` is written ``review-by``."""
    return field.rstrip("_").replace("_", "-")


def structure(cls: type[T], data: Mapping[str, Any]) -> "tuple[T | None, tuple[KeyFault, ...]]":
    """Structure ``data`` as ``cls``.

    Args:
        cls: A frozen attrs class; field ``review_by`` is read from the key ``review-by``.
        data: A parsed TOML table.

    Returns:
        The value and no fault, or None and every fault found.
    """
    try:
        made: T = _reader(cls)(data)  # type: ignore[arg-type] # mypy: a type[T] has no hash
    except Exception:  # noqa: BLE001 - a validator may raise anything, and is asked again below
        from megatron_seams.base.fitting import fit

        return fit(cls, data)
    return made, ()


_Reader = Callable[[Any], Any]


@functools.cache
def _reader(kind: Any) -> _Reader:
    """What takes a value of a declared type, and raises if it is not plainly one."""
    if isinstance(kind, type) and attrs.has(kind):
        return _table_of(kind)
    match get_origin(kind), get_args(kind):
        case None, () if kind is Any:
            return lambda value: value
        case None, () if kind is float:
            # TOML writes 1 for 1.0; no information is lost.
            return lambda value: float(_exactly(value, float, int))
        case None, () if kind in _PLAIN:
            return lambda value: _exactly(value, kind)
        case origin, (item, other) if origin is tuple and other is ...:
            read = _reader(item)
            return lambda value: tuple([read(part) for part in _exactly(value, list)])
        case origin, (_, item) if origin is dict:
            read = _reader(item)
            return lambda value: {key: read(part) for key, part in _exactly(value, dict).items()}
        case origin, (item, nothing) if origin in (Union, types.UnionType) and nothing is type(
            None
        ):
            read = _reader(item)
            return lambda value: None if value is None else read(value)
    raise _NotPlain


def _exactly(value: Any, *kinds: type) -> Any:
    # `type() is`, not isinstance: True is an int and a datetime is a date, and neither was meant.
    if type(value) not in kinds:
        raise _NotPlain
    return value


def _table_of(cls: type) -> _Reader:
    fields = tuple(
        (
            key_of(field.name),
            field.alias or field.name,
            # Most values are of a plain type, which needs no call to tell.
            field.type if field.type in _PLAIN else None,
            _reader(field.type),
        )
        for field in attrs.fields(cls)
    )

    def read(table: Any) -> Any:
        given = {}
        for key, name, plain, reader in fields:
            if key in table:
                value = table[key]
                given[name] = value if type(value) is plain else reader(value)
        if type(table) is not dict or len(given) != len(table):
            raise _NotPlain
        return cls(**given)  # which runs the validators, and misses what is required

    return read
