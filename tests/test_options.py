"""`[options]` of a manifest: a seam's options as data, which a recipe's are held to."""

from typing import Any, Literal

import attrs
import pytest

from megatron_seams.errors import ManifestInvalid, OptionsInvalid
from megatron_seams.records.seam_digests import manifest_digest
from megatron_seams.seams.manifest import parse_manifest
from megatron_seams.seams.options import class_differences, spelled, type_of
from megatron_seams.seams.seam import Seam
from seam_support import (
    Table,
    environment,
    make_seam,
    manifest_table,
    only,
    plan,
    reasons,
    recipe,
    toml,
)

OPTIONS: Table = {
    "head-dim": {"type": "int", "default": 64, "summary": "Width of a head."},
    "names": {"type": "list[str]", "summary": "Names."},
    "mode": {"type": 'Literal["fast", "exact"]', "default": "fast", "summary": "How."},
    "size": {"type": "int | str", "required": True, "summary": "A size."},
    "pair": {"type": "list[int, int]", "summary": "Two."},
    "extra": {"type": "dict[str, float]", "summary": "More."},
}


def with_options(options: Table | None) -> Seam:
    table = manifest_table("kda", "kda")
    if options is not None:
        table["options"] = options
    made, faults = parse_manifest(toml(table).encode(), file="seam.toml")
    assert made is not None, faults
    return attrs.evolve(make_seam(), manifest=made)


def invalid(options: Any) -> ManifestInvalid:
    table = manifest_table("kda", "kda")
    table["options"] = options
    made, faults = parse_manifest(toml(table).encode(), file="seam.toml")
    assert made is None
    fault = only(list(faults), ManifestInvalid)
    assert isinstance(fault, ManifestInvalid)
    return fault


def asked(**options: Any) -> Any:
    tables = {"seams": {"kda": options}} if options else {}
    return recipe("MK", tokens={"K": "kda"}, **tables)


@pytest.mark.parametrize(
    "options",
    [
        {"size": 1},
        {"size": "a", "head-dim": 3, "names": ["a"], "mode": "exact", "pair": [1, 2]},
        {"size": 1, "extra": {"a": 1, "b_c": 2.5}},
    ],
)
def test_options_that_the_manifest_has_are_planned(options: Table) -> None:
    made = plan(asked(**options), environment(with_options(OPTIONS)))
    assert made.options["kda"] == options


@pytest.mark.parametrize(
    ("options", "key", "says"),
    [
        ({"size": 1, "head-dim": "64"}, "head-dim", "expected a whole number, found a string"),
        ({"size": 1, "head-dim": True}, "head-dim", "expected a whole number, found a boolean"),
        ({"size": 1, "head_dim": 64}, "head_dim", "unknown key; known here: head-dim, names"),
        ({"size": 1, "names": "ab"}, "names", "expected an array, found a string"),
        ({"size": 1, "names": ["a", 1]}, "names[1]", "expected a string, found a whole number"),
        ({"size": 1, "mode": "slow"}, "mode", "expected one of 'fast', 'exact'"),
        ({"size": 1, "pair": [1]}, "pair", "expected an array of 2, found 1 items"),
        ({"size": 1, "extra": {"a_b": "1"}}, "extra.a_b", "expected a number, found a string"),
        ({"size": 1.5}, "size", "expected a whole number or a string, found a number"),
        ({"head-dim": 3}, "size", "required, and missing"),
        ({}, "size", "required, and missing"),
    ],
)
def test_options_that_it_does_not_have_are_refused_before_anything_is_imported(
    options: Table, key: str, says: str
) -> None:
    fault = only(reasons(asked(**options), environment(with_options(OPTIONS))), OptionsInvalid)
    assert fault.key == f"seams.kda.{key}"
    assert says in fault.found


def test_an_empty_table_is_a_seam_that_takes_none_and_no_table_says_nothing() -> None:
    fault = only(reasons(asked(heads=1), environment(with_options({}))), OptionsInvalid)
    assert fault.found == "unknown key; known here: none"
    plan(asked(), environment(with_options({})))
    plan(asked(heads=1), environment(with_options(None)))


@pytest.mark.parametrize(
    ("options", "key", "says"),
    [
        ({"a": {"type": "int"}}, "options.a.summary", "required, and missing"),
        ({"a": {"summary": "A."}}, "options.a.type", "required, and missing"),
        ({"a": {"type": "int", "summary": "A.", "unit": "m"}}, "options.a.unit", "unknown key"),
        ({"a": {"type": "integer", "summary": "A."}}, "options.a.type", "expected a type like int"),
        ({"a": {"type": "list[path]", "summary": "A."}}, "options.a.type", "expected a type"),
        ({"a": {"type": "__import__('os')", "summary": "A."}}, "options.a.type", "expected a type"),
        ({"a": {"type": "dict[int, int]", "summary": "A."}}, "options.a.type", "expected a type"),
        ({"a": {"type": "int", "default": "3", "summary": "A."}}, "options.a", "whole number"),
        (
            {"a": {"type": "int", "default": 3, "required": True, "summary": "A."}},
            "options.a",
            "a required option has no default",
        ),
        ({"head_dim": {"type": "int", "summary": "A."}}, "options", "named like head-dim"),
        ({"a": 3}, "options.a", "expected a table"),
    ],
)
def test_a_table_that_is_not_valid_is_a_finding_with_its_key(
    options: Table, key: str, says: str
) -> None:
    fault = invalid(options)
    assert fault.key == key
    assert says in fault.found


def test_what_an_option_is_for_informs_and_its_type_decides() -> None:
    def digest(**changes: Any) -> str:
        return manifest_digest(with_options({"a": {"type": "int", "summary": "A.", **changes}}))

    assert digest() == digest(summary="In other words.")
    assert len({digest(), digest(type="str"), digest(default=3), digest(required=True)}) == 4
    assert manifest_digest(with_options(None)) != manifest_digest(with_options({}))


# --- the plugin's class -----------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class Part:
    taps: int = 4


@attrs.frozen(kw_only=True)
class Options:
    size: int | str
    head_dim: int = 64
    names: tuple[str, ...] | None = None
    mode: Literal["exact", "fast"] = "fast"
    pair: tuple[int, int] | None = None
    extra: dict[str, float] | None = None


def differences(options: Table, cls: type = Options) -> list[str]:
    listed = with_options(options).manifest.options
    assert listed is not None
    return list(class_differences(listed, cls))


def test_a_class_with_the_same_options_has_no_difference() -> None:
    assert differences(OPTIONS) == []


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"head-dim": None}, "head-dim: the class has it, and [options] does not"),
        ({"more": {"type": "int", "summary": "."}}, "more: [options] has it, and the class"),
        ({"head-dim": {"type": "str", "default": "64", "summary": "."}}, "[options] says str"),
        ({"head-dim": {"type": "int", "default": 32, "summary": "."}}, "has the default 32"),
        ({"size": {"type": "int | str", "summary": "."}}, "size: the class requires it"),
        ({"names": {"type": "list[str]", "required": True, "summary": "."}}, "has a default"),
        ({"pair": {"type": "list[int]", "summary": "."}}, "the class list[int, int]"),
    ],
)  # fmt: skip
def test_each_difference_between_table_and_class_is_named(change: Table, says: str) -> None:
    table = {key: value for key, value in {**OPTIONS, **change}.items() if value is not None}
    assert any(says in found for found in differences(table))


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (int | None, "int"),
        (tuple[int, ...], "list[int]"),
        (list[tuple[int, str]], "list[list[int, str]]"),
        (dict[str, Any], "dict[str, any]"),
        (Part, "dict[str, any]"),
        (float | str | None, "float | str"),
        (Literal["a"] | None, "Literal['a']"),
    ],
)
def test_types_have_one_spelling(kind: Any, text: str) -> None:
    assert spelled(kind) == text
    assert spelled(type_of(text)) == text
