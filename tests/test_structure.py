"""A table is taken exactly as it is written, or every fault of it is reported with its key."""

import datetime
import enum
import sys
import types
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NewType

import attrs
import pytest
from attrs import field, validators
from hypothesis import given
from hypothesis import strategies as st
from packaging.version import Version

from megatron_seams.base.structure import structure
from megatron_seams.base.versions import contains, is_range


@attrs.frozen(kw_only=True)
class Inner:
    flag: bool = False
    day: datetime.date | None = None


@attrs.frozen(kw_only=True)
class Outer:
    count: int = field(validator=validators.ge(0))
    rate: float = 1.0
    long_name: str | None = None
    names: tuple[str, ...] = ()
    inner: Inner = field(factory=Inner)
    inners: tuple[Inner, ...] = ()
    table: dict[str, int] = field(factory=dict)
    nested: dict[str, dict[str, Any]] = field(factory=dict)
    made: int = field(default=7, init=False)


DAY = datetime.date(2026, 1, 1)
MOMENT = datetime.datetime(2026, 1, 1)


def fits(kind: Any, value: Any) -> bool:
    """The declared types of these two classes, checked without any library."""
    match kind:
        case (each,):
            return type(value) is list and all(fits(each, part) for part in value)
        case {"*": each}:
            return type(value) is dict and all(fits(each, part) for part in value.values())
        case Mapping():
            known = type(value) is dict and set(value) <= set(kind)
            return known and all(fits(kind[key], part) for key, part in value.items())
        case None:
            return True
        case _:
            return type(value) in kind


BOOL, INT, TEXT = {bool}, {int}, {str}
TYPES: dict[str, Any] = {
    "count": INT,
    "rate": {float, int},
    "long-name": {str, type(None)},
    "names": (TEXT,),
    "inner": {"flag": BOOL, "day": {datetime.date, type(None)}},
    "inners": ({"flag": BOOL, "day": {datetime.date, type(None)}},),
    "table": {"*": INT},
    "nested": {"*": {"*": None}},
}
SCALARS = st.one_of(
    st.booleans(),
    st.integers(-2, 2),
    st.floats(allow_nan=False),
    st.sampled_from(["", "text"]),
    st.dates(),
    st.datetimes(),
    st.none(),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.sampled_from(["flag", "day", "a"]), inner, max_size=2)
    ),
    max_leaves=4,
)
#: Of the right type, so that whole tables fit often.
FITTING: dict[str, st.SearchStrategy[Any]] = {
    "count": st.integers(0, 3),
    "rate": st.one_of(st.floats(allow_nan=False), st.integers(0, 3)),
    "long-name": st.text(max_size=3),
    "names": st.lists(st.text(max_size=3), max_size=2),
    "inner": st.fixed_dictionaries({}, optional={"flag": st.booleans(), "day": st.dates()}),
    "inners": st.lists(st.fixed_dictionaries({"flag": st.booleans()}), max_size=2),
    "table": st.dictionaries(st.sampled_from("ab"), st.integers(), max_size=2),
    "nested": st.dictionaries(st.sampled_from("ab"), st.dictionaries(st.just("x"), SCALARS)),
}
TABLES = st.fixed_dictionaries(
    {"count": FITTING["count"]}, optional={key: FITTING[key] for key in FITTING if key != "count"}
)
KEYS = (*FITTING, "long_name", "made", "unknown")


def inner(table: dict[str, Any]) -> Inner:
    return Inner(**table)


@given(TABLES, st.sampled_from(KEYS), VALUES)
def test_a_table_is_taken_as_it_is_or_not_at_all(
    table: dict[str, Any], key: str, value: Any
) -> None:
    for written in (table, {**table, key: value}):
        made, faults = structure(Outer, written)
        if not fits(TYPES, written) or written["count"] < 0:
            assert made is None
            assert faults
            continue
        assert not faults
        assert made == Outer(
            count=written["count"],
            rate=float(written.get("rate", 1)),
            long_name=written.get("long-name"),
            names=tuple(written.get("names", ())),
            inner=inner(written.get("inner", {})),
            inners=tuple(map(inner, written.get("inners", ()))),
            table=written.get("table", {}),
            nested=written.get("nested", {}),
        )
        assert type(made.count) is int
        assert type(made.rate) is float


@pytest.mark.parametrize(
    ("written", "key", "message"),
    [
        ({"count": True}, "count", "expected a whole number, found a boolean: True"),
        ({"count": "3"}, "count", "expected a whole number, found a string: '3'"),
        ({"count": 1.0}, "count", "expected a whole number, found a number: 1.0"),
        ({"count": 1, "rate": "1"}, "rate", "expected a number, found a string: '1'"),
        ({"count": 1, "rate": True}, "rate", "expected a number, found a boolean: True"),
        ({"count": 1, "long-name": 3}, "long-name", "expected a string, found a whole number: 3"),
        ({"count": 1, "names": "a"}, "names", "expected an array, found a string: 'a'"),
        ({"count": 1, "names": ["a", 1]}, "names[1]", "expected a string, found a whole number: 1"),
        ({"count": 1, "inner": []}, "inner", "expected a table, found an array: []"),
        (
            {"count": 1, "inner": {"flag": "false"}},
            "inner.flag",
            "expected true or false, found a string: 'false'",
        ),
        (
            {"count": 1, "inner": {"day": MOMENT}},
            "inner.day",
            f"expected a date (YYYY-MM-DD, no time), found a date with a time: {MOMENT!r}",
        ),
        (
            {"count": 1, "inners": [{}, {"flag": 1}]},
            "inners[1].flag",
            "expected true or false, found a whole number: 1",
        ),
        (
            {"count": 1, "table": {"a": DAY}},
            "table.a",
            f"expected a whole number, found a date: {DAY!r}",
        ),
        ({"count": 1, "nested": {"a": 1}}, "nested.a", "expected a table, found a whole number: 1"),
        ({}, "count", "required, and missing"),
        (
            {"count": 1, "inner": {"colour": 1}},
            "inner.colour",
            "unknown key; known here: flag, day",
        ),
    ],
)
def test_a_fault_names_its_key_and_what_was_expected_and_found(
    written: dict[str, Any], key: str, message: str
) -> None:
    made, (fault,) = structure(Outer, written)
    assert made is None
    assert (fault.key, fault.message) == (key, message)


@pytest.mark.parametrize("key", ["long_name", "made", "unknown", "Count"])
def test_a_key_that_is_not_declared_is_unknown(key: str) -> None:
    made, (fault,) = structure(Outer, {"count": 1, key: 7})
    assert made is None
    assert fault.key == key
    assert fault.message.startswith("unknown key; known here: count, rate, long-name, ")


def test_every_fault_is_reported_in_the_order_of_the_keys() -> None:
    table = {"unknown": 1, "rate": "x", "inner": {"flag": 0, "day": "x"}, "names": [1, "a", 2]}
    made, faults = structure(Outer, table)
    assert made is None
    keys = [fault.key for fault in faults]
    assert keys == sorted(keys)
    assert set(keys) == {
        *("count", "inner.day", "inner.flag", "names[0]", "names[2]", "rate", "unknown")
    }


def test_a_validator_speaks_of_its_own_key_beside_faults_of_others() -> None:
    made, faults = structure(Outer, {"count": -1, "rate": "x"})
    assert made is None
    assert {fault.key: fault.message for fault in faults} == {
        "count": "'count' must be >= 0: -1",
        "rate": "expected a number, found a string: 'x'",
    }


@pytest.mark.parametrize(
    ("text", "is_one"),
    [
        (">=0.17,<0.20", True),
        (" >= 0.17 , < 0.20 ", True),
        ("~=0.17.1", True),
        ("", False),  # it says nothing
        ("0.17", False),
        (">=", False),
        (">=0.17 <0.20", False),
        ("newest", False),
    ],
)
def test_a_range_is_what_packaging_reads(text: str, is_one: bool) -> None:
    assert is_range(text) is is_one


@pytest.mark.parametrize(
    ("text", "version", "inside"),
    [
        (">=0.17,<0.20", "0.16.9", False),
        (">=0.17,<0.20", "0.17", True),
        (">=0.17,<0.20", "0.17.0", True),
        (">=0.17,<0.20", "0.19.2.post1", True),
        (">=0.17,<0.20", "0.20", False),
        (">=0.17,<0.20", "1!0.18", False),
        # A release candidate of the first release that is excluded is excluded with it; one of a
        # release inside the range is inside, though a range by itself would leave it out.
        (">=0.17,<0.20", "0.20rc1", False),
        (">=0.17,<0.20", "0.19.2rc1", True),
        (">=0.17", "0.20.dev1", True),
        ("!=0.18.*", "0.18.1", False),
    ],
)
def test_a_range_contains_releases_and_their_candidates(
    text: str, version: str, inside: bool
) -> None:
    assert contains(text, Version(version)) is inside


# --- the types that an options class may have -------------------------------------------------


class Mode(enum.Enum):
    FAST = "fast"
    EXACT = "exact"


Taps = NewType("Taps", int)


def read(kind: Any, value: Any) -> Any:
    """A value read as a field's type; the text of the fault if it does not fit."""
    cls = attrs.make_class("Options", {"key": attrs.field(type=kind)}, frozen=True)
    made, faults = structure(cls, {"key": value})
    return made.key if made is not None else "; ".join(f"{it.key}: {it.message}" for it in faults)


@pytest.mark.parametrize(
    ("kind", "value", "made"),
    [
        (list[str], ["ab"], ["ab"]),
        (list[int], [], []),
        (list, [1, "a"], [1, "a"]),
        (tuple[int, int], [1, 2], (1, 2)),
        (tuple[int, str], [1, "a"], (1, "a")),
        (tuple[()], [], ()),
        (tuple, [1, "a"], (1, "a")),
        (tuple[tuple[int, ...], ...], [[1], []], ((1,), ())),
        (Sequence[int], [1], (1,)),
        (frozenset[int], [2, 1], frozenset({1, 2})),
        (int | str, 3, 3),
        (int | str, "3", "3"),
        (int | float, 3, 3),
        (float | int, 3, 3),
        (float | str, 3, 3.0),
        (str | list[str], ["a"], ["a"]),
        (tuple[int, ...] | None, [1], (1,)),
        (bool | int, True, True),
        (Literal["a", 1], 1, 1),
        (Literal["a"] | None, "a", "a"),
        (Mode, "fast", Mode.FAST),
        (Taps, 4, 4),
        (Annotated[int, "a note"], 4, 4),
        (Any, {"a": [1]}, {"a": [1]}),
        (dict[str, Inner], {"x": {"flag": True}}, {"x": Inner(flag=True)}),
        (list[Inner], [{}], [Inner()]),
        (datetime.datetime, MOMENT, MOMENT),
        (datetime.time, MOMENT.time(), MOMENT.time()),
    ],
)
def test_each_type_takes_its_own_values(kind: Any, value: Any, made: Any) -> None:
    found = read(kind, value)
    assert found == made
    assert type(found) is type(made)


@pytest.mark.parametrize(
    ("kind", "value", "says"),
    [
        (list[str], "ab", "key: expected an array, found a string: 'ab'"),
        (list[str], ["a", 1], "key[1]: expected a string, found a whole number: 1"),
        (list[int], [True], "key[0]: expected a whole number, found a boolean: True"),
        (tuple[int, ...], "12", "key: expected an array, found a string: '12'"),
        (tuple[int, int], [1], "key: expected an array of 2, found 1 items"),
        (tuple[int, int], [1, "2"], "key[1]: expected a whole number, found a string: '2'"),
        (tuple[()], [1], "key: expected an array of 0, found 1 items"),
        (set[int], [1, 1], "key: expected an array without an item twice, found an array: [1, 1]"),
        (int | str, 1.5, "key: expected a whole number or a string, found a number: 1.5"),
        (int | str, True, "key: expected a whole number or a string, found a boolean: True"),
        (bool | str, 1, "key: expected true or false or a string, found a whole number: 1"),
        (tuple[int, ...] | None, ["a"], "key[0]: expected a whole number, found a string: 'a'"),
        (Literal["a", "b"], "c", "key: expected one of 'a', 'b'; found a string: 'c'"),
        (Literal[1], True, "key: expected one of 1; found a boolean: True"),
        (Literal[1], 1.0, "key: expected one of 1; found a number: 1.0"),
        (Mode, "FAST", "key: expected one of 'fast', 'exact'; found a string: 'FAST'"),
        (dict[str, int], {"a_b": "1"}, "key.a_b: expected a whole number, found a string: '1'"),
        (list[Inner], [{"flag": 1}], "key[0].flag: expected true or false, found a whole number: "
         "1"),
        (datetime.date, MOMENT, f"key: expected a date (YYYY-MM-DD, no time), found a date with a "
         f"time: {MOMENT!r}"),
        (Path, "a", "key: its type, Path, is none that a value here can have: a string: 'a'"),
        (bytes, "a", "key: its type, bytes, is none that a value here can have: a string: 'a'"),
        (dict[int, int], {"1": 1}, "key: its type, dict[a whole number, ...], is none that a value "
         "here can have: a table: {'1': 1}"),
    ],
)  # fmt: skip
def test_a_value_of_another_type_is_never_made_one(kind: Any, value: Any, says: str) -> None:
    assert read(kind, value) == says


def module(name: str, text: str) -> Any:
    """A module with postponed annotations."""
    made = types.ModuleType(name)
    sys.modules[name] = made
    exec("from __future__ import annotations\nimport attrs\n" + text, vars(made))  # noqa: S102
    return made


@pytest.fixture
def postponed() -> Iterator[Any]:
    yield module(
        "postponed_options",
        """
@attrs.frozen
class Part:
    taps: tuple[int, int] = (1, 2)

@attrs.frozen
class Base:
    name: str = ""

@attrs.frozen
class Options(Base):
    size: int = 1
    names: list[str] = attrs.field(factory=list)
    either: int | str = 0
    part: Part = attrs.field(factory=Part)
    parts: dict[str, Part] = attrs.field(factory=dict)
    after: Later | None = None

@attrs.frozen
class Later:
    day: bool = False
""",
    )
    del sys.modules["postponed_options"]


def test_postponed_annotations_are_types(postponed: Any) -> None:
    table = {"size": 3, "names": ["a"], "either": "b", "part": {"taps": [3, 4]}, "name": "n"}
    made, faults = structure(postponed.Options, table | {"after": {"day": True}})
    assert not faults
    assert (made.size, made.names, made.part.taps, made.after.day) == (3, ["a"], (3, 4), True)
    wrong = {"size": "3", "names": "ab", "part": {"taps": [1]}, "parts": {"x": {"taps": 1}}}
    _, faults = structure(postponed.Options, wrong)
    assert {fault.key for fault in faults} == {"size", "names", "part.taps", "parts.x.taps"}


def test_types_that_cannot_be_found_are_said_to_be_missing() -> None:
    made = module("unfound_options", "@attrs.frozen\nclass Options:\n    key: Gone = 1\n")
    try:
        nothing, (fault,) = structure(made.Options, {})
        assert nothing is None
        assert fault.message == "the types of Options cannot be read: name 'Gone' is not defined"
    finally:
        del sys.modules["unfound_options"]
