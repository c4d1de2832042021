"""The forms of JSON that receipts and proofs rest on do not change."""

import hashlib

import pytest

from megatron_seams.base.canonical_json import finite, json_digest, json_text

VALUE = {"b": [1, 2.5, None, True], "a": {"z": "é\n", "y": {}}}


def test_a_digest_is_taken_over_the_canonical_form() -> None:
    canonical = '{"a":{"y":{},"z":"é\\n"},"b":[1,2.5,null,true]}'
    assert json_digest(VALUE) == hashlib.sha256(canonical.encode()).hexdigest()
    reordered = {"a": {"y": {}, "z": "é\n"}, "b": [1, 2.5, None, True]}
    assert json_digest(reordered) == json_digest(VALUE)
    assert json_digest({**VALUE, "b": [2.5, 1, None, True]}) != json_digest(VALUE)


def test_a_file_is_indented_and_ends_in_a_newline() -> None:
    assert json_text({"b": [1], "a": "é"}) == '{\n  "a": "é",\n  "b": [\n    1\n  ]\n}\n'
    assert json_text({"b": 1, "a": 2}, sort_keys=False) == '{\n  "b": 1,\n  "a": 2\n}\n'


def test_what_is_no_number_of_json_is_null() -> None:
    assert [finite(number) for number in (1.5, 2, float("nan"), float("-inf"))] == [1.5, 2] + [
        None
    ] * 2


def test_what_is_no_json_is_refused() -> None:
    with pytest.raises(TypeError):
        json_digest({"a": object()})
