"""Words of upstream's command line for the values of settings."""

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, Final

import attrs

from megatron_seams.upstream.annotations import DTYPES
from megatron_seams.upstream.flags import Flag
from megatron_seams.upstream.programs.values import Member

#: Upstream's functions that read one word as a list -> how the word spells it. The first kind reads
#: a Python expression, and only behind a bracket; the second one strips parentheses and splits.
_LISTS: Final[Mapping[str | None, str]] = MappingProxyType(
    {
        "moe_freq_type": "([{}])",
        "la_freq_type": "([{}])",
        "no_rope_freq_type": "([{}])",
        "tuple_type": "({})",
    }
)


@attrs.frozen(kw_only=True)
class Spoken:
    """A flag with its words.

    Attributes:
        flag: The flag.
        words: The flag's spelling and its values, as they stand on the command line.
        values: The values alone.
        sets: What it sets, for a flag without a value.
        key: The recipe's key that it says, dotted; None where no key does.
    """

    flag: Flag
    words: tuple[str, ...]
    values: tuple[str, ...] = ()
    sets: bool | None = None
    key: str | None = None


def spoken(flags: Iterable[Flag], value: Any, key: str | None = None) -> Spoken | str:
    """The words that set a value; as text, why there are none.

    Args:
        flags: Those that set the attribute.
        value: A recipe's value, or a member of an enumeration.
        key: The recipe's key.
    """
    listed = list(flags)
    for flag in listed:
        spelled = flag.that_sets(value) if isinstance(value, bool) else None
        if spelled is not None:
            return Spoken(flag=flag, words=(spelled,), sets=value, key=key)
    names = " or ".join(flag.names[0] for flag in listed)
    if isinstance(value, bool) and any(flag.sets for flag in listed):
        return f"{names} sets the opposite of its default, and cannot set it to {value}"
    flag = next((flag for flag in listed if not flag.sets), listed[0])
    values = _values(flag, value)
    if values is None or isinstance(value, bool):
        return f"{value!r} is no value of {names}"
    if not _takes(flag, len(values)):
        return f"{flag.names[0]} does not take {len(values)} values"
    if flag.choices and not {str(choice) for choice in flag.choices} >= set(values):
        return f"{flag.names[0]} takes {', '.join(map(str, flag.choices))}"
    if flag.type == "int" and not all(map(_whole, values)):
        return f"{flag.names[0]} takes whole numbers"
    return _with_words(flag, values, key)


def _with_words(flag: Flag, values: tuple[str, ...], key: str | None) -> Spoken | str:
    """The flag and its values; joined by ``=`` where a value would be taken for a flag."""
    name = flag.names[0]
    words: tuple[str, ...] = (name, *values)
    if any(value.startswith("-") for value in values):
        if len(values) > 1 or not name.startswith("--"):
            return f"{name} does not take several values of which one begins with '-'"
        words = (f"{name}={values[0]}",)
    return Spoken(flag=flag, words=words, values=values, key=key)


def _values(flag: Flag, value: Any) -> tuple[str, ...] | None:
    """The words for a value; None if there are none."""
    if isinstance(value, list | tuple):
        parts = [_word(flag, part) for part in value]
        words = tuple(part for part in parts if part is not None)
        if len(words) != len(parts) or not words:
            return None
        return (_LISTS[flag.type].format(",".join(words)),) if flag.type in _LISTS else words
    word = _word(flag, value)
    return None if word is None else (word,)


def _word(flag: Flag, value: Any) -> str | None:
    if isinstance(value, Member):
        return value.name
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    if isinstance(value, str) and flag.choices and value not in flag.choices:
        # A type has two names, of which the flag may take the other.
        alike = [name for name, dtype in DTYPES.items() if dtype == DTYPES.get(value, "")]
        return next((name for name in alike if name in flag.choices), value)
    return str(value)


def _takes(flag: Flag, count: int) -> bool:
    return count == 1 if flag.nargs in (None, "?") else flag.nargs in ("+", "*", count)


def _whole(word: str) -> bool:
    return word.lstrip("-").isdigit()
