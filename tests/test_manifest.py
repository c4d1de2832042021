"""Manifests: nothing is coerced, nothing unknown passes, and no fault hides another."""

import datetime
from typing import Any, get_origin

import attrs
import pytest

from megatron_seams.base.structure import key_of
from megatron_seams.errors import ManifestInvalid, ManifestUnreadable, SeamsError
from megatron_seams.runtime.conformance.subject import ASKED
from megatron_seams.seams.manifest import (
    CAPABILITIES,
    MAX_BYTES,
    Manifest,
    Supports,
    parse_manifest,
)
from seam_support import Table, manifest_table, toml

NOON = datetime.datetime(2026, 11, 23, 12, 0)
DAY = datetime.date(2026, 11, 23)

#: Values that are not of the kind, each of which a lenient reader would take or convert.
NOT_A = {
    "text": (3, True, DAY, ["x"], {"x": "y"}),
    "number": ("1", True, 1.0, DAY, [1]),
    "date": (NOON, "2026-11-23", 20261123, True),
    "array": ("mamba_layer", 3, {"first": "mamba_layer"}),
    "text or array": (3, True, DAY, {"x": "y"}, [1]),
    "boolean": ("false", "true", 0, 1, "no"),
    "table": ("x", 3, True, [1]),
    "any": (),
}
#: Every key of a manifest, and its kind.
KEYS = {
    "schema": "number",
    "seam": "table",
    "seam.name": "text",
    "seam.family": "text",
    "seam.summary": "text",
    "seam.owner": "text",
    "seam.status": "text",
    "seam.introduced": "date",
    "seam.review-by": "date",
    "upstream": "table",
    "upstream.fallback": "text",
    "upstream.symbol-name": "text",
    "upstream.config-field": "text",
    "upstream.flag": "text",
    "upstream.native-since": "text",
    "upstream.tracking": "text or array",
    "carrier": "table",
    "carrier.slots": "array",
    "carrier.part": "text",
    "carrier.needs": "array",
    "carrier.takes": "array",
    "feature": "table",
    "feature.placement": "text",
    "family": "table",
    "family.name": "text",
    "family.summary": "text",
    "requires": "table",
    "requires.megatron-core": "text",
    "supports": "table",
    **{f"supports.{capability}": "boolean" for capability in CAPABILITIES},
    "options": "table",
    "options.head-dim.type": "text",
    "options.head-dim.default": "any",
    "options.head-dim.required": "boolean",
    "options.head-dim.summary": "text",
}
REQUIRED = (
    "schema",
    "seam",
    "seam.name",
    "seam.family",
    "seam.summary",
    "seam.owner",
    "seam.introduced",
    "seam.review-by",
    "upstream",
    "upstream.fallback",
    "requires",
    "requires.megatron-core",
)


def read(data: bytes | Table) -> list[SeamsError]:
    """The faults of a manifest."""
    if not isinstance(data, bytes):
        data = toml(data).encode()
    manifest, faults = parse_manifest(data, file="there/seam.toml")
    assert (manifest is None) == bool(faults)
    return list(faults)


def changed(key: str, value: Any) -> Table:
    """A whole manifest with one key set, to nothing if the value is None."""
    whole = manifest_table()
    if key.startswith("feature"):
        del whole["carrier"]
    table = whole
    *path, last = key.split(".")
    for part in path:
        table = table.setdefault(part, {})
    if value is None:
        del table[last]
    else:
        table[last] = value
    return whole


def keys_of(cls: type, prefix: str = "") -> set[str]:
    """The dotted keys that an attrs class is read from."""
    found: set[str] = set()
    for field in attrs.fields(attrs.resolve_types(cls)):
        key = prefix + key_of(field.name)
        found.add(key)
        parts = [field.type, *getattr(field.type, "__args__", ())]
        for part in parts:
            if isinstance(part, type) and attrs.has(part):
                found |= keys_of(part, f"{key}.")
            elif get_origin(part) is dict and attrs.has(part.__args__[1]):
                found |= keys_of(part.__args__[1], f"{key}.head-dim.")
    return found


def test_the_tests_below_know_every_key() -> None:
    assert keys_of(Manifest) == set(KEYS)
    assert {key_of(field.name) for field in attrs.fields(Supports)} == set(CAPABILITIES)


def test_a_valid_manifest_has_no_fault() -> None:
    assert read(manifest_table()) == []
    for placement in ("embedding", "residual"):
        assert read(manifest_table("memory", "ngram", placement=placement)) == []


@pytest.mark.parametrize(
    ("key", "value"),
    [(key, value) for key, kind in KEYS.items() for value in NOT_A[kind]],
)
def test_a_value_of_another_type_is_a_fault_with_file_and_key(key: str, value: Any) -> None:
    faults = [fault for fault in read(changed(key, value)) if fault.key == key]
    (fault,) = faults
    assert isinstance(fault, ManifestInvalid)
    assert fault.file == "there/seam.toml"
    assert "expected" in fault.found
    assert "found" in fault.found


@pytest.mark.parametrize("key", REQUIRED)
def test_a_missing_key_is_a_fault_with_its_name(key: str) -> None:
    (fault,) = read(changed(key, None))
    assert isinstance(fault, ManifestInvalid)
    assert fault.key == key
    assert "missing" in fault.found


@pytest.mark.parametrize(
    "key",
    [
        "owner",
        "Schema",
        "seam.review_by",
        "seam.reviewby",
        "upstream.symbol_name",
        "carrier.slot",
        "family.kind",
        "requires.megatron_core",
        "requires.python",
        "supports.tensor_parallel",
        "supports.all",
        "[strange]",
    ],
)
def test_an_unknown_key_is_a_fault_at_every_level(key: str) -> None:
    faults = [fault for fault in read(changed(key, "x")) if fault.key == key]
    (fault,) = faults
    assert isinstance(fault, ManifestInvalid)
    assert "unknown key" in fault.found


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("schema", 2, "expected 1, found 2"),
        ("seam.name", "M2RNN", "[a-z][a-z0-9_]*"),
        ("seam.name", "m2-rnn", "[a-z][a-z0-9_]*"),
        ("seam.name", "", "[a-z][a-z0-9_]*"),
        ("seam.family", "a b", "[a-z][a-z0-9_]*"),
        ("seam.family", "kda\n", "[a-z][a-z0-9_]*"),
        ("seam.summary", "  ", "expected a sentence"),
        ("seam.owner", "acme/layers", "team handle"),
        ("seam.owner", "@acme/layers @else/where", "team handle"),
        ("seam.owner", "@acme/", "team handle"),
        ("seam.status", "trial", "expected one of seam, experiment"),
        ("upstream.fallback", "maybe", "expected one of native, refuse"),
        ("upstream.tracking", ["NVIDIA/Megatron-LM"], "expected references like"),
        ("upstream.tracking", ["NVIDIA/Megatron-LM#7", "soon"], "found 'soon'"),
        ("upstream.tracking", ["javascript:alert(1)"], "expected references like"),
        ("upstream.tracking", ["http://example.org/x"], "expected references like"),
        ("upstream.tracking", ["https://example.org/x\n"], "expected references like"),
        ("upstream.tracking", ["NVIDIA/Megatron-LM#0"], "expected references like"),
        ("upstream.tracking", [7054], "a string or an array of strings, found an array: [7054]"),
        ("carrier.slots", [], "must be >= 1"),
        ("carrier.part", "half", "expected one of mixer, layer"),
        ("feature.placement", "logits", "expected one of embedding, residual"),
        ("family.name", "KDA", "[a-z][a-z0-9_]*"),
        ("family.summary", "", "expected a sentence"),
        ("requires.megatron-core", "0.19", "expected a version range"),
        ("requires.megatron-core", ">=newest", "expected a version range"),
    ],
)
def test_a_value_that_does_not_fit_names_its_own_key(key: str, value: Any, says: str) -> None:
    (fault,) = read(changed(key, value))
    assert isinstance(fault, ManifestInvalid)
    assert fault.key == key
    assert says in fault.found


def test_an_item_of_another_type_is_named_by_its_index() -> None:
    faults = read(changed("carrier.slots", ["mamba_layer", 3, True]))
    assert [fault.key for fault in faults] == ["carrier.slots[1]", "carrier.slots[2]"]


@pytest.mark.parametrize(
    ("upstream", "says"),
    [
        ({"fallback": "native"}, "exactly one of"),
        ({"fallback": "native", "symbol-name": "MLA", "flag": "--mla"}, "exactly one of"),
        ({"fallback": "refuse", "symbol-name": "MLA"}, "nothing upstream is accepted"),
    ],
)
def test_a_fallback_names_what_it_waits_for_and_only_then(upstream: Table, says: str) -> None:
    (fault,) = read(changed("upstream", upstream))
    assert fault.key == "upstream"
    assert says in fault.found


def test_a_seam_is_a_layer_or_a_feature_and_not_both_or_neither() -> None:
    both = {**manifest_table(), "feature": {"placement": "embedding"}}
    neither = {key: value for key, value in manifest_table().items() if key != "carrier"}
    for table in (both, neither):
        (fault,) = read(table)
        assert "exactly one of [carrier]" in fault.found


def test_a_manifest_introduces_the_family_that_its_seam_builds() -> None:
    (fault,) = read(changed("family.name", "other"))
    assert "introduces 'other' but the seam builds 'kda'" in fault.found


def test_every_fault_of_a_manifest_is_reported_at_once() -> None:
    table = manifest_table()
    table["schema"] = 9
    table["seam"].update({"name": 3, "owner": "nobody", "review-by": NOON, "colour": "red"})
    del table["seam"]["summary"]
    table["upstream"]["fallback"] = "maybe"
    table["carrier"]["slots"] = ["mamba_layer", 1]
    table["supports"]["inference"] = "false"
    table["extra"] = {"x": 1}
    faults = read(table)
    assert {fault.key for fault in faults} == {
        "schema",
        "seam.name",
        "seam.owner",
        "seam.review-by",
        "seam.colour",
        "seam.summary",
        "upstream.fallback",
        "carrier.slots[1]",
        "supports.inference",
        "extra",
    }
    assert len(faults) == 10
    assert all(isinstance(fault, ManifestInvalid) for fault in faults)


@pytest.mark.parametrize(
    "data",
    [
        b"schema = 1\n[seam\n",
        b"schema = 1\nschema = 1\n",
        b"\xff\xfes\x00",
        b'summary = "caf\xe9"\n',
        toml(manifest_table()).encode().ljust(MAX_BYTES + 1, b"#"),
        b"x = 9" + b"9" * 5000,
        b"x = " + b"[" * 20_000 + b"]" * 20_000,
        b"x = 2026-13-45",
        b"schema = 1\x00",
    ],
    ids=[
        "bad TOML",
        "a key twice",
        "UTF-16",
        "Latin-1",
        "too large",
        "a number of 5,000 digits",
        "nested beyond reason",
        "no such day",
        "a null byte",
    ],
)
def test_bytes_that_are_no_manifest_are_one_fault_with_the_file(data: bytes) -> None:
    (fault,) = read(data)
    assert isinstance(fault, ManifestUnreadable)
    assert fault.file == "there/seam.toml"
    assert fault.found


def test_a_manifest_of_exactly_the_largest_size_is_read() -> None:
    text = toml(manifest_table()).encode()
    assert read(text + b"#" * (MAX_BYTES - len(text))) == []


def test_an_empty_file_misses_every_required_table() -> None:
    assert [fault.key for fault in read(b"")] == ["requires", "schema", "seam", "upstream"]


@pytest.mark.parametrize(
    ("tracking", "found"),
    [
        ([], []),
        ("", []),
        ("no equivalent", [("no equivalent", None)]),
        (
            "NVIDIA/Megatron-LM#7",
            [("NVIDIA/Megatron-LM#7", "https://github.com/NVIDIA/Megatron-LM/issues/7")],
        ),
        (["https://example.org/"] * 2, [("https://example.org/", "https://example.org/")]),
        (
            ["NVIDIA/Megatron-LM#7", "https://example.org/a?b=1#c"],
            [
                ("NVIDIA/Megatron-LM#7", "https://github.com/NVIDIA/Megatron-LM/issues/7"),
                ("https://example.org/a?b=1#c", "https://example.org/a?b=1#c"),
            ],
        ),
    ],
)
def test_tracking_is_references_and_a_plain_text_stays_one(
    tracking: Any, found: list[tuple[str, str | None]]
) -> None:
    manifest, faults = parse_manifest(
        toml(changed("upstream.tracking", tracking)).encode(), file="seam.toml"
    )
    assert manifest, faults
    assert [(it.text, it.url) for it in manifest.upstream.references] == found


def test_every_capability_has_a_model_in_the_conformance_kit() -> None:
    assert set(ASKED) == {"", *CAPABILITIES}
