"""What is taken of a table without cattrs is what cattrs takes, and what is refused is refused."""

import datetime
import itertools
import sys
from typing import Any, Literal

import attrs
import pytest
from attrs import field, validators
from hypothesis import given
from hypothesis import strategies as st
from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.version import Version

from megatron_seams.base.fitting import fit
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


@attrs.frozen(kw_only=True)
class Unusual:
    either: Literal["text", "other"] = "other"


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
#: Mostly of the right type, so that whole tables fit often.
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


@given(TABLES, st.sampled_from(KEYS), VALUES)
def test_a_table_fits_as_cattrs_says(table: dict[str, Any], key: str, value: Any) -> None:
    for given_table in (table, {**table, key: value}):
        assert structure(Outer, given_table) == fit(Outer, given_table)


ODD: tuple[Any, ...] = (
    *(True, 0, -1, 1.5, "text", "", None, datetime.date(2026, 1, 1), datetime.datetime(2026, 1, 1)),
    *([], ["text"], [1], [True], [None], [{}], [{"flag": 1}], [{"flag": True}], [[]], ("text",)),
    *({}, {"flag": True}, {"flag": "false"}, {"day": None}, {"colour": 1}, {"a": 1}, {"a": True}),
    *({"a": {}}, {"a": {"x": [1]}}),
)


@pytest.mark.parametrize("key", KEYS)
def test_no_odd_value_is_taken_that_cattrs_refuses(key: str) -> None:
    for value in ODD:
        table = {"count": 1, key: value}
        assert structure(Outer, table) == fit(Outer, table), value
    assert structure(Outer, {}) == fit(Outer, {})


def test_a_type_that_is_not_plain_is_cattrs_own_to_judge() -> None:
    for value in ODD:
        assert structure(Unusual, {"either": value}) == fit(Unusual, {"either": value}), value
    assert structure(Unusual, {"either": "text"}) == (Unusual(either="text"), ())


def test_what_plainly_fits_is_not_given_to_cattrs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "megatron_seams.base.fitting", None)
    table = {
        "count": 1,
        "rate": 2,
        "long-name": "text",
        "names": ["a"],
        "inner": {"flag": True},
        "inners": [{}, {"flag": False}],
        "table": {"a": 1},
        "nested": {"a": {"b": [None]}},
    }
    made, faults = structure(Outer, table)
    assert made == Outer(
        count=1,
        rate=2.0,
        long_name="text",
        names=("a",),
        inner=Inner(flag=True),
        inners=(Inner(), Inner()),
        table={"a": 1},
        nested={"a": {"b": [None]}},
    )
    assert type(made.rate) is float
    assert not faults
    with pytest.raises(ImportError):
        structure(Outer, {"count": -1})


OPERATORS = (">=", "<", "<=", ">", "==", "!=", "~=", "", " >= ", "< ")
BOUNDS = ("0.17", "0.19.2", "0.20", "1", "0.20rc1", "1!0", "0.19.2.post1", "")
FINAL = ("0.16.9", "0.17", "0.17.0", "0.19.2", "0.20", "2")
OTHER = ("0.20rc0", "0.20.dev1", "0.19.2.post1", "0.19.2+local", "1!0")


def test_a_range_contains_what_packaging_says() -> None:
    clauses = ["".join(pair) for pair in itertools.product(OPERATORS, BOUNDS)]
    both = [f">=0.17,{clause}" for clause in clauses]
    for text in (*clauses, *both, "", ",", ">=0.17,", ">=0.17 <0.20", ">=0.17,<0.20,<0.19"):
        try:
            expected = SpecifierSet(text)
        except InvalidSpecifier:
            assert not is_range(text), text
            continue
        assert is_range(text), text
        for version in map(Version, (*FINAL, *OTHER)):
            wanted = expected.contains(version, prereleases=True)
            assert contains(text, version) == wanted, (text, version)
