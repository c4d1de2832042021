"""A recipe's values come back from a receipt as they went in, or are refused with their key."""

import datetime
import json
import math
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_seams.errors import ReceiptUnreadable, RecipeInvalid
from megatron_seams.planning.resolver import resolve
from megatron_seams.records.receipt import make_receipt, read_receipt, receipt_digest
from megatron_seams.records.request_json import recipe_of, request_of
from seam_support import TODAY, environment, make_seam, recipe

UTC = datetime.UTC
EAST = datetime.timezone(datetime.timedelta(hours=5, minutes=30))

#: Every kind of value that a TOML file can hold.
SCALARS = st.one_of(
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(),
    st.text(max_size=4),
    st.dates(),
    st.times(),
    st.datetimes(timezones=st.sampled_from([None, UTC, EAST])),
)
KEYS = st.one_of(st.text(max_size=4), st.sampled_from(["$float", "$date", "$table", "$time"]))
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=2),
    max_leaves=6,
)


def same(old: Any, new: Any) -> bool:
    """Whether two values are equal and of one type, a nan being equal to a nan."""
    if type(old) is not type(new):
        return False
    if isinstance(old, dict):
        return old.keys() == new.keys() and all(same(old[key], new[key]) for key in old)
    if isinstance(old, list):
        return len(old) == len(new) and all(map(same, old, new))
    if isinstance(old, float):
        return (math.isnan(old) and math.isnan(new)) or (
            old == new and math.copysign(1, old) == math.copysign(1, new)
        )
    if isinstance(old, datetime.datetime | datetime.time):
        return bool(old == new and old.utcoffset() == new.utcoffset())
    return bool(old == new)


@given(st.dictionaries(KEYS, VALUES, max_size=3), st.dictionaries(KEYS, VALUES, max_size=3))
def test_what_toml_can_hold_comes_back(options: dict[str, Any], native: dict[str, Any]) -> None:
    asked = recipe("M", seams={"kda": options}, megatron=native, smoke={"megatron": native})
    text = json.dumps(request_of(asked), allow_nan=False)
    back, faults = recipe_of(json.loads(text), tagged=True)
    assert back is not None, faults
    assert same(back.seams["kda"], options)
    assert same(back.megatron, native)
    assert same(back.smoke.megatron, native)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (1j, "complex"),
        (b"x", "bytes"),
        ({1, 2}, "set"),
        (Path("x"), "Path"),
        ({1: 2}, "a table's key is int"),
        ("\udcff", "no text that UTF-8 can hold"),
        ({"a": [0, object()]}, "object"),
    ],
)
def test_what_no_recipe_file_can_hold_is_refused_with_its_key(value: Any, says: str) -> None:
    asked = attrs.evolve(recipe("M"), megatron={"key": value})
    with pytest.raises(RecipeInvalid) as refused:
        request_of(asked)
    assert says in refused.value.found
    assert (refused.value.key or "").startswith("megatron.key")


def test_a_receipt_with_such_values_verifies_and_is_json(tmp_path: Path) -> None:
    options = {"clip": math.inf, "none": math.nan, "day": TODAY, "at": datetime.time(1, 2, 3)}
    asked = recipe("K", tokens={"K": "kda"}, seams={"kda": options})
    made = resolve(asked, environment(make_seam()), today=TODAY)
    file = tmp_path / "receipt.json"
    file.write_text(make_receipt(made, asked))
    json.loads(file.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    _, back = read_receipt(file)
    assert same(back.seams["kda"], options)


@pytest.mark.parametrize("value", [{"$date": "tomorrow"}, {"$float": "much"}, {"$table": 3}])
def test_a_tagged_value_that_is_none_makes_a_receipt_unreadable(value: Any, tmp_path: Path) -> None:
    asked = recipe("M")
    body = json.loads(make_receipt(resolve(asked, environment(), today=TODAY), asked))
    body["request"]["seams"] = {"kda": {"key": value}}
    body["digest"] = receipt_digest(body)
    file = tmp_path / "receipt.json"
    file.write_text(json.dumps(body, indent=2, sort_keys=True, ensure_ascii=False) + "\n")
    with pytest.raises(ReceiptUnreadable):
        read_receipt(file)
