"""The manifest, the options and the package, with neither torch nor Megatron."""

import importlib.resources
import subprocess
import sys
from typing import Any

import pytest

from megatron_seams.base.structure import structure
from megatron_seams.seams.manifest import CAPABILITIES, parse_manifest
from megatron_seams_m2rnn.options import Options, default_heads


def test_the_manifest_has_no_fault_and_claims_no_more_than_is_tested() -> None:
    data = importlib.resources.files("megatron_seams_m2rnn").joinpath("seam.toml").read_bytes()
    manifest, faults = parse_manifest(data, file="seam.toml")
    assert not faults
    assert manifest is not None
    assert manifest.hook == "recurrent_layer"
    # test_parallel.py and test_inference.py exercise each of them.
    assert all(manifest.supports[capability] for capability in CAPABILITIES)


def test_package_and_options_import_neither_torch_nor_megatron() -> None:
    code = (
        "import sys, megatron_seams_m2rnn, megatron_seams_m2rnn.options\n"
        "print({'torch', 'megatron'} & set(sys.modules) or 'light')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "light"


@pytest.mark.parametrize(
    ("hidden_size", "heads"), [(1024, 84), (1536, 132), (4096, 372), (128, 12), (64, 4), (8, 4)]
)
def test_the_default_heads_follow_the_papers_two_models(hidden_size: int, heads: int) -> None:
    assert default_heads(hidden_size) == heads
    assert Options().head_counts(hidden_size).state == heads


def test_what_is_left_out_shares_one_query_and_one_key_head() -> None:
    counts = Options(heads=8).head_counts(64)
    assert (counts.q, counts.k, counts.v, counts.W, counts.f) == (1, 1, 8, 8, 8)


def test_every_key_of_a_recipe_is_read() -> None:
    table = {
        "K": 6,
        "V": 5,
        "heads": 4,
        "q-heads": 2,
        "k-heads": 4,
        "v-heads": 1,
        "w-heads": 2,
        "f-heads": 4,
        "conv-size": 3,
        "state-gradient-clip": 2,
    }
    options, faults = structure(Options, table)
    assert not faults
    assert options == Options(
        K=6,
        V=5,
        heads=4,
        q_heads=2,
        k_heads=4,
        v_heads=1,
        w_heads=2,
        f_heads=4,
        conv_size=3,
        state_gradient_clip=2.0,
    )


@pytest.mark.parametrize(
    ("table", "key", "message"),
    [
        ({"heads": "8"}, "heads", "expected a whole number"),
        ({"heads": True}, "heads", "expected a whole number"),
        ({"K": 64.0}, "K", "expected a whole number"),
        ({"head": 8}, "head", "unknown key"),
    ],
)
def test_an_option_of_the_wrong_type_or_name_is_a_fault_with_its_key(
    table: dict[str, Any], key: str, message: str
) -> None:
    options, faults = structure(Options, table)
    assert options is None
    (fault,) = faults
    assert fault.key == key
    assert message in fault.message


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"K": 0}, "'K' must be >= 1"),
        ({"heads": 0}, "'heads' must be >= 1"),
        ({"state-gradient-clip": 0}, "'state_gradient_clip' must be > 0"),
        ({"state-gradient-clip": float("nan")}, "'state_gradient_clip' must be > 0"),
        ({"heads": 8, "v-heads": 3}, "v has 3 heads"),
        ({"heads": 8, "q-heads": 16}, "the state is to have 8 heads"),
    ],
)
def test_an_option_that_means_nothing_is_a_fault_that_names_it(
    table: dict[str, Any], message: str
) -> None:
    options, faults = structure(Options, table)
    assert options is None
    (fault,) = faults
    assert message in fault.message
