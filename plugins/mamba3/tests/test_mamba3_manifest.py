"""The manifest, the options and the package, with neither torch nor Megatron."""

import importlib.resources
import subprocess
import sys
from typing import Any

import pytest

from megatron_seams.base.structure import structure
from megatron_seams.seams.manifest import CAPABILITIES, parse_manifest
from megatron_seams_mamba3.options import Options


def test_the_manifest_has_no_fault_and_claims_no_more_than_is_tested() -> None:
    data = importlib.resources.files("megatron_seams_mamba3").joinpath("seam.toml").read_bytes()
    manifest, faults = parse_manifest(data, file="seam.toml")
    assert not faults
    assert manifest is not None
    assert manifest.hook == "mamba3_layer"
    # test_mamba3_parallel.py, test_mamba3_inference.py and the kit exercise each of the others.
    assert [it for it in CAPABILITIES if not manifest.supports[it]] == ["context-parallel"]


def test_package_and_options_import_neither_torch_nor_megatron() -> None:
    code = (
        "import sys, megatron_seams_mamba3, megatron_seams_mamba3.options\n"
        "print({'torch', 'megatron'} & set(sys.modules) or 'light')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "light"


def test_the_parts_of_the_input_projection_are_in_the_authors_order() -> None:
    layout = Options(mimo_rank=4, groups=8).layout(4096)
    assert (layout.heads, layout.P, layout.N, layout.A) == (128, 64, 128, 32)
    ranks = [f"{letter}{rank}" for letter in "BC" for rank in range(4)]
    assert list(layout.channels) == ["z", "x", *ranks, "dt", "A", "trap", "angle"]
    assert sum(layout.channels.values()) == 2 * 8192 + 2 * 8 * 128 * 4 + 3 * 128 + 32


@pytest.mark.parametrize(
    ("options", "tp", "message"),
    [
        ({"head_dim": 48}, 1, "head-dim 48 does not divide 128"),
        ({"head_dim": 32, "groups": 3}, 1, "4 heads do not divide over 3 groups"),
        ({"head_dim": 32}, 8, "4 heads do not divide over tensor-parallel 8"),
        ({"head_dim": 32, "groups": 4, "state_size": 6}, 2, "1 angles"),
    ],
)
def test_sizes_that_do_not_divide_are_refused(
    options: dict[str, Any], tp: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Options(**options).layout(64, tp=tp)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"state-size": 7}, "state-size is even"),
        ({"mimo-rank": 0}, "must be >= 1"),
        ({"rope-fraction": 0.25}, "'rope_fraction' must be in"),
        ({"decay": "relu"}, "softplus"),
        ({"decay-floor": 0.0}, "must be > 0"),
        ({"dt-max": 1e-4}, "dt-max is not below dt-min"),
        ({"head": 8}, "unknown key"),
        ({"head-dim": "8"}, "expected a whole number"),
    ],
)
def test_an_option_that_means_nothing_is_a_fault_that_names_it(
    table: dict[str, Any], message: str
) -> None:
    options, faults = structure(Options, table)
    assert options is None
    assert message in str(faults[0].message)
