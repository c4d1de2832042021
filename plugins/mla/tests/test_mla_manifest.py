"""The manifest, which an audit reads, and that importing costs nothing."""

import subprocess
import sys
from pathlib import Path

import megatron_seams_mla
from megatron_seams.runtime.plugins import load_plugins
from megatron_seams.seams.manifest import CAPABILITIES, parse_manifest
from megatron_seams.seams.seam import Seam

PACKAGE = Path(megatron_seams_mla.__file__).parent


def seam() -> Seam:
    file = PACKAGE / "seam.toml"
    manifest, faults = parse_manifest(file.read_bytes(), file=str(file))
    assert not faults
    assert manifest is not None
    return Seam(
        manifest=manifest,
        package="megatron_seams_mla",
        distribution="megatron-seams-mla",
        version="0.1.0",
        directory=PACKAGE,
        manifest_digest="",
    )


def test_the_native_layer_is_accepted_as_the_equivalent() -> None:
    upstream = seam().manifest.upstream
    assert upstream.fallback == "native"
    assert upstream.symbol_name == "MLA"
    assert upstream.accepts == "MLA"


def test_the_range_includes_the_releases_that_supersede_the_seam() -> None:
    accepted = seam().manifest.requires.range
    assert [
        version
        for version in ("0.16.1", "0.17.1", "0.18.2", "0.19.2", "0.20")
        if version in accepted
    ] == [
        "0.17.1",
        "0.18.2",
        "0.19.2",
    ]


def test_it_gives_a_whole_layer_in_either_slot() -> None:
    carrier = seam().manifest.carrier
    assert carrier is not None
    assert {slot: carrier.part_in(slot) for slot in carrier.slots} == {
        "attention_layer": "layer",
        "mamba_layer": "layer",
    }


def test_it_supports_what_is_tested_and_no_more() -> None:
    supports = seam().manifest.supports
    assert [name for name in CAPABILITIES if supports[name]] == [
        "tensor-parallel",
        "sequence-parallel",
        "pipeline-parallel",
        "expert-parallel",
        "packed-sequences",
        "inference",
    ]


def test_the_plugin_is_held_to_the_manifest() -> None:
    chosen = seam()
    assert load_plugins([chosen]).options == {"mla": None}


def test_importing_package_and_plugin_imports_neither_torch_nor_megatron() -> None:
    program = (
        "import sys, megatron_seams_mla.plugin;"
        "print([name for name in ('torch', 'megatron') if name in sys.modules])"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    )
    assert run.stdout.strip() == "[]"
