"""Values of upstream's programs, as far as they are known without importing it.

Plain values stand for themselves. A value that the source does not spell out is UNREAD, and every
operation on it gives UNREAD: nothing is ever concluded from a value that is not known.
"""

import ast
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import attrs

from megatron_seams.upstream.config_fields import UNREAD

_NONE: Final[frozenset[str]] = frozenset()
#: No program that lays out arguments needs longer sequences, or numbers of more bits; a pattern
#: repeated by mistake would.
LONGEST: Final = 1 << 20

#: torch's other names for its types.
_ALIASES: Final = {
    "torch.float": "torch.float32",
    "torch.double": "torch.float64",
    "torch.half": "torch.float16",
}


def _plain_name(name: str) -> str:
    return _ALIASES.get(name, name)


@attrs.frozen
class Origin:
    """The inputs that a value comes from, by the names of the attributes that were read.

    Attributes:
        data: Those that it was computed from.
        control: Those that decided which statement computed it.
        unset: Those of both that were None.
    """

    data: frozenset[str] = _NONE
    control: frozenset[str] = _NONE
    unset: frozenset[str] = _NONE

    @property
    def all(self) -> frozenset[str]:
        """Data and control together."""
        return self.data | self.control

    def __or__(self, other: "Origin") -> "Origin":
        return Origin(
            self.data | other.data, self.control | other.control, self.unset | other.unset
        )

    def as_control(self) -> "Origin":
        """The same inputs as those that decide."""
        return Origin(_NONE, self.all, self.unset)


@attrs.frozen
class Value:
    """A value with its origin."""

    value: Any
    origin: Origin = Origin()


@attrs.define(eq=False)
class Record:
    """An object with attributes.

    Attributes:
        values: Attribute -> value.
        cls: Its class; None where that does not matter.
        closed: Whether it has no other attributes than these.
    """

    values: dict[Any, Value]
    cls: "Defined | None" = None
    closed: bool = True

    def read(self, name: Any) -> Value:
        """The value of an attribute or key; UNREAD if there is none."""
        return self.values.get(name, Value(UNREAD))

    def has(self, name: Any) -> Any:
        """Whether there is such an attribute or key; UNREAD if that is not known."""
        return True if name in self.values else False if self.closed else UNREAD


class Table(Record):
    """A dictionary: its keys in the place of attributes."""


@attrs.frozen
class Defined:
    """A class or a function of Megatron's source.

    Attributes:
        path: The file inside ``megatron``.
        name: Its name there.
        node: Its definition.
    """

    path: str
    name: str
    node: ast.ClassDef | ast.FunctionDef = attrs.field(eq=False, repr=False)


@attrs.frozen
class Outside:
    """Something that is not in Megatron's source, by its full name: ``torch.float32``."""

    name: str = attrs.field(converter=_plain_name)


@attrs.frozen
class Member:
    """A member of an enumeration.

    Attributes:
        enum: The enumeration.
        name: The member's name.
        text: What it equals besides itself, where the enumeration's members are strings.
    """

    enum: Defined
    name: str
    text: str | None = None


@attrs.frozen(eq=False)
class Closure:
    """A lambda with the names around it."""

    path: str
    node: ast.Lambda = attrs.field(repr=False)
    names: Mapping[str, Value] = attrs.field(repr=False)


def unpacked(targets: Sequence[ast.expr], value: Value) -> Iterator[tuple[ast.expr, Value]]:
    """Each of several targets with its part of a value; UNREAD where they are not as many."""
    parts = value.value
    fits = isinstance(parts, list | tuple) and len(parts) == len(targets)
    for index, target in enumerate(targets):
        yield target, Value(parts[index] if fits else UNREAD, value.origin)


def truth(value: Any) -> Any:
    """Whether a value counts as true; UNREAD if that is not known."""
    match value:
        case Table(values=values, closed=closed):
            return True if values else False if closed else UNREAD
        case Record() | Defined() | Closure():
            return True
        case Member(text=text):
            return True if text is None else bool(text)
        case Outside():
            return UNREAD
    return UNREAD if value is UNREAD else bool(value)


def same(one: Any, other: Any) -> Any:
    """Whether two values are equal; UNREAD if that is not known."""
    if one is UNREAD or other is UNREAD:
        return UNREAD
    match one, other:
        case Member(), Member():
            return one == other
        case (Member(text=text), str() as plain) | (str() as plain, Member(text=text)):
            return text == plain
        case Outside(), Outside():
            # Two names may stand for one object, but not two of torch's types.
            types = all(name.name.startswith("torch.") for name in (one, other))
            return True if one == other else False if types else UNREAD
        case Defined(), Defined():
            return one == other
        case (Outside(), Defined()) | (Defined(), Outside()):
            return UNREAD
        case (Record() | Closure(), _) | (_, Record() | Closure()):
            return True if one is other else UNREAD
        case (list(), list()) | (tuple(), tuple()):
            if len(one) != len(other):
                return False
            return every(same(left, right) for left, right in zip(one, other, strict=True))
    if _special(one) != _special(other):
        return False  # a plain value is no function, type or member
    return bool(one == other)


def contains(container: Any, value: Any) -> Any:
    """Whether a value is in a container; UNREAD if that is not known."""
    match container:
        case Table():
            return UNREAD if _unreadable(value) else container.has(value)
        case str():
            return value in container if isinstance(value, str) else UNREAD
        case list() | tuple() | set() | frozenset() | range():
            return some(same(value, each) for each in container)
    return UNREAD


def every(values: Iterable[Any]) -> Any:
    """The result of ``all``: False if one is surely false, UNREAD if one is not known."""
    found = [truth(value) for value in values]
    return False if False in found else UNREAD if UNREAD in found else True


def some(values: Iterable[Any]) -> Any:
    """The result of ``any``: True if one is surely true, UNREAD if one is not known."""
    found = [truth(value) for value in values]
    return True if True in found else UNREAD if UNREAD in found else False


def known(value: Any) -> bool:
    """Whether a value and everything in it is known."""
    if isinstance(value, list | tuple | set | frozenset):
        return all(map(known, value))
    return value is not UNREAD


def _special(value: Any) -> bool:
    return isinstance(value, Member | Outside | Defined)


def _unreadable(value: Any) -> bool:
    return value is UNREAD or isinstance(value, list | set | dict)


def copied(value: Any) -> Any:
    """A value of its own, where it can be changed."""
    if isinstance(value, list):
        return [copied(each) for each in value]
    if isinstance(value, Table):
        entries = {k: Value(copied(v.value), v.origin) for k, v in value.values.items()}
        return Table(entries, closed=value.closed)
    return set(value) if isinstance(value, set) else value


def is_long(numbers: range) -> bool:
    """Whether a range has more than :data:`LONGEST` numbers."""
    return bool(numbers[LONGEST:])


def iterated(value: Any) -> list[Any] | None:
    """The elements of a known iterable in their order; None if they are not known, or too many."""
    match value:
        case range() if is_long(value):
            return None
        case str() | list() | tuple() | range():
            return list(value)
        case set() | frozenset():
            return sorted(value, key=repr)
        case Table(closed=True):
            return list(value.values)
    return None
