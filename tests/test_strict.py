"""What is taken of a table without cattrs is what cattrs takes, and what is refused is refused."""

import datetime
import sys
from typing import Any

import attrs
import pytest
from attrs import field, validators
from hypothesis import given
from hypothesis import strategies as st
from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.version import Version

from megatron_seams.fitting import fit
from megatron_seams.releases import contains, is_range
from megatron_seams.strict import structure


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
    odd: int | str = 0


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
    "odd": st.one_of(st.integers(), st.text(max_size=3)),
}
TABLES = st.fixed_dictionaries({}, optional=FITTING)
FAULTS = st.dictionaries(
    st.sampled_from([*FITTING, "long_name", "made", "unknown"]), VALUES, max_size=2
)


@given(TABLES, FAULTS)
def test_a_table_fits_as_cattrs_says(table: dict[str, Any], faults: dict[str, Any]) -> None:
    for given_table in (table, {**table, **faults}):
        assert structure(Outer, given_table) == fit(Outer, given_table)


def test_what_plainly_fits_is_not_given_to_cattrs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "megatron_seams.fitting", None)
    made, faults = structure(Inner, {"flag": True, "day": datetime.date(2026, 1, 1)})
    assert made == Inner(flag=True, day=datetime.date(2026, 1, 1))
    assert not faults
    with pytest.raises(ImportError):
        structure(Inner, {"flag": 1})


BOUNDS = ("0.17", "0.19.2", "0.20", "1", "0.20rc1", "1!0", "0.19.2.post1", "")
FINAL = ("0.16.9", "0.17", "0.17.0", "0.19.2", "0.20", "2")
OTHER = ("0.20rc0", "0.20.dev1", "0.19.2.post1", "0.19.2+local", "1!0")
VERSIONS = st.sampled_from((*FINAL, *OTHER))
CLAUSES = st.tuples(
    st.sampled_from((">=", "<", "<=", ">", "==", "!=", "~=", "", " >= ", "< ")),
    st.sampled_from(BOUNDS),
).map("".join)


@given(st.lists(CLAUSES, min_size=1, max_size=3).map(",".join), VERSIONS)
def test_a_range_contains_what_packaging_says(text: str, version: str) -> None:
    try:
        expected = SpecifierSet(text)
    except InvalidSpecifier:
        assert not is_range(text)
        return
    assert is_range(text)
    assert contains(text, Version(version)) == expected.contains(version, prereleases=True)
