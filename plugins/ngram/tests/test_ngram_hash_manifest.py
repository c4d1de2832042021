"""The manifest and its options, which an audit reads, and that importing costs nothing."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import megatron_seams_ngram.hash
from megatron_seams.base.structure import structure
from megatron_seams.runtime.plugins import load_plugins
from megatron_seams.seams.manifest import CAPABILITIES, parse_manifest
from megatron_seams.seams.seam import Seam
from megatron_seams_ngram.engram.options import Options as MemoryOptions
from megatron_seams_ngram.hash.options import Options

PACKAGE = Path(megatron_seams_ngram.hash.__file__).parent


def seam(directory: Path = PACKAGE) -> Seam:
    file = directory / "seam.toml"
    manifest, faults = parse_manifest(file.read_bytes(), file=str(file))
    assert not faults
    assert manifest is not None
    return Seam(
        manifest=manifest,
        package=f"megatron_seams_ngram.{directory.name}",
        distribution="megatron-seams-ngram",
        version="0.1.0",
        directory=directory,
        manifest_digest="",
    )


def test_the_manifest_says_feature_at_the_embedding_and_what_it_supports() -> None:
    manifest = seam().manifest
    assert manifest.hook == "ngram_feature"
    assert manifest.feature is not None
    assert manifest.feature.placement == "embedding"
    assert manifest.upstream.accepts is None
    assert [name for name in CAPABILITIES if manifest.supports[name]] == [
        "tensor-parallel",
        "sequence-parallel",
        "pipeline-parallel",
        "expert-parallel",
        "packed-sequences",
    ]


def test_the_memory_attaches_to_the_residual_and_supports_the_same() -> None:
    chosen = seam(PACKAGE.parent / "engram")
    assert chosen.manifest.hook == "engram_feature"
    assert chosen.manifest.feature is not None
    assert chosen.manifest.feature.placement == "residual"
    assert chosen.manifest.supports == seam().manifest.supports
    loaded = load_plugins([chosen], {"engram": {"orders": [2, 3, 4], "kernel": 3}})
    assert loaded.options["engram"] == MemoryOptions(orders=(2, 3, 4), kernel=3)


def test_the_plugin_is_held_to_the_manifest_and_its_options_are_read_from_a_recipe() -> None:
    chosen = seam()
    loaded = load_plugins(
        [chosen],
        {
            "ngram_hash": {
                "orders": [2, 4],
                "table-rows": 1000,
                "end-of-document-id": 2,
            }
        },
    )
    assert loaded.options["ngram_hash"] == Options(
        orders=(2, 4), table_rows=1000, end_of_document_id=2
    )


def test_the_defaults_are_those_of_nam56r() -> None:
    options = Options()
    assert (options.orders, options.heads, options.table_rows, options.width) == (
        (2, 3),
        8,
        500_000,
        16,
    )
    assert options.pad_id is None
    assert options.end_of_document_id is None


@pytest.mark.parametrize(
    ("table", "key", "says"),
    [
        ({"orders": [2, "3"]}, "orders[1]", "a whole number"),
        ({"orders": 2}, "orders", "an array"),
        ({"heads": True}, "heads", "a whole number"),
        ({"pad-id": "0"}, "pad-id", "a whole number"),
        ({"eod": 2}, "eod", "unknown key"),
        ({"table_rows": 9}, "table_rows", "unknown key"),
    ],
)
def test_an_option_of_another_type_or_name_is_refused(
    table: dict[str, Any], key: str, says: str
) -> None:
    value, faults = structure(Options, table)
    assert value is None
    assert [fault.key for fault in faults] == [key]
    assert says in faults[0].message


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ({"orders": []}, "orders: expected at least one"),
        ({"orders": [1, 2]}, "orders: expected 2 and above"),
        ({"orders": [3, 2]}, "orders: expected ascending"),
        ({"orders": [2, 2]}, "orders: expected ascending numbers without repeats"),
        ({"heads": 0}, "'heads' must be >= 1"),
        ({"table-rows": 1}, "'table_rows' must be >= 2"),
        ({"width": 0}, "'width' must be >= 1"),
        ({"seed": -1}, "'seed' must be >= 0"),
        ({"seed": 2**63}, "'seed' must be < 9223372036854775808"),
        ({"pad-id": -1}, "'pad_id' must be >= 0"),
        ({"end-of-document-id": -1}, "'end_of_document_id' must be >= 0"),
    ],
)
def test_an_option_out_of_range_is_refused_by_name(table: dict[str, Any], says: str) -> None:
    value, faults = structure(Options, table)
    assert value is None
    assert len(faults) == 1
    assert says in faults[0].message


def test_importing_package_options_and_plugin_imports_no_torch() -> None:
    program = (
        "import sys, megatron_seams_ngram.hash.plugin as plugin; plugin.ngram_options()();"
        "import megatron_seams_ngram.engram.plugin as other; other.engram_options()();"
        "import megatron_seams_ngram.engram.compression;"
        "print([name for name in ('torch', 'megatron') if name in sys.modules])"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    )
    assert run.stdout.strip() == "[]"
