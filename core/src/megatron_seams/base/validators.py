"""Validators of fields: each raises ValueError with what it expected and what it found."""

from collections.abc import Callable
from typing import Any

from megatron_seams.base.versions import is_range, is_version

#: An attrs validator: takes the instance, the attribute and the value.
Check = Callable[[Any, Any, Any], None]


def positive(_: Any, __: Any, value: int) -> None:
    """Accept a number of at least one."""
    if value < 1:
        message = f"expected at least 1, found {value}"
        raise ValueError(message)


def between(low: float, high: float) -> Check:
    """Accept a number from ``low`` to ``high``; NaN is none."""

    def check(_: Any, __: Any, value: float) -> None:
        if not low <= value <= high:
            message = f"expected a number from {low} to {high}, found {value!r:.60}"
            raise ValueError(message)

    return check


def sentence(_: Any, __: Any, value: str) -> None:
    """Accept a text with something else than white space in it."""
    if not value.strip():
        message = "expected a sentence, found an empty string"
        raise ValueError(message)


def visible_sentence(instance: Any, attribute: Any, value: str) -> None:
    """Accept a text with a character that can be seen."""
    sentence(instance, attribute, value)
    if not any(character.isprintable() and not character.isspace() for character in value):
        message = f"expected a sentence, found nothing that can be seen: {value!r:.60}"
        raise ValueError(message)


def some_numbers(_: Any, __: Any, value: tuple[int, ...] | None) -> None:
    """Accept no list, or one with a number in it."""
    if value is not None and not value:
        message = "expected at least one number, found an empty array"
        raise ValueError(message)


def one_of(*choices: str) -> Check:
    """Accept one of these words."""

    def check(_: Any, __: Any, value: str) -> None:
        if value not in choices:
            message = f"expected one of {', '.join(choices)}; found {value!r:.60}"
            raise ValueError(message)

    return check


def each_one_of(*choices: str) -> Check:
    """Accept a list of these words, each at most once."""
    one = one_of(*choices)

    def check(instance: Any, attribute: Any, values: tuple[str, ...]) -> None:
        for value in values:
            one(instance, attribute, value)
        if len(set(values)) < len(values):
            message = f"expected each name once, found {', '.join(values)}"
            raise ValueError(message)

    return check


def schema(supported: int) -> Check:
    """Accept the version of the file's format that this code reads."""

    def check(_: Any, __: Any, value: int) -> None:
        if value != supported:
            message = f"expected {supported}, found {value}"
            raise ValueError(message)

    return check


def specifier(_: Any, __: Any, value: str) -> None:
    """Accept a range of releases, ``>=0.17,<0.20``, that names a bound."""
    if not value.strip(" ,") or not is_range(value):
        message = f"expected a version range like >=0.17,<0.20; found {value!r:.60}"
        raise ValueError(message)


def version(_: Any, __: Any, value: str) -> None:
    """Accept one release, ``0.19``."""
    if not is_version(value):
        message = f"expected a version like 0.19; found {value!r:.60}"
        raise ValueError(message)
