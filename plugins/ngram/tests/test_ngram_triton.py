"""The Triton backend without a GPU: its numbers interpreted, its kernels compiled for Hopper."""

import os
import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from megatron_seams.errors import CannotRunHere
from megatron_seams.runtime.extensions import SlowBackend
from megatron_seams_ngram.ops import dispatch, torch_kernels, triton_kernels, triton_programs
from megatron_seams_ngram.ops.dispatch import choose

TESTS = Path(__file__).parent
GPU = torch.device("cuda", 0)


@pytest.mark.suite
def test_the_suites_of_indices_and_of_looking_up_pass_under_the_interpreter(
    record_property: Callable[[str, object], None],
) -> None:
    files = [TESTS / "test_ngram_lookup.py", TESTS / "test_ngram_hash_indices.py"]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"),
            *("-k", "not on_a_gpu", *files),  # torch's own kernels, in any process the same
        ],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        cwd=TESTS.parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-8000:]
    summary = done.stdout.strip().splitlines()[-1]
    found = re.search(r"(\d+) passed", summary)
    assert found, summary
    assert int(found[1]) > 25, summary
    record_property("summary", summary)


def test_a_gpu_runs_triton_unless_told_otherwise_and_no_cpu_does() -> None:
    with warnings.catch_warnings(action="error"):
        assert choose(None, GPU) is triton_kernels
    assert choose("triton", GPU) is triton_kernels
    assert choose("torch", GPU) is torch_kernels
    with pytest.raises(CannotRunHere, match="TRITON_INTERPRET=1"):
        choose("triton", torch.device("cpu"))


def test_without_the_package_triton_torch_stands_in_with_a_word_and_the_name_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dispatch, "_has_triton", lambda: False)
    with pytest.warns(SlowBackend, match="the package triton is not installed"):
        assert choose(None, GPU) is torch_kernels
    with pytest.raises(CannotRunHere, match=r"SEAM-B05(?s:.*)the package triton"):
        choose("triton", GPU)


KERNELS: list[tuple[Any, dict[str, Any]]] = [
    (
        triton_programs.hash_and_gather,
        {"HIGHEST": 3, "HAS_STARTS": True, "GATHERS": True, "BLOCK": 64, "COLUMNS": 16},
    ),
    (triton_programs.gather, {"BLOCK": 64, "COLUMNS": 16}),
    (triton_programs.sort_keys, {"BLOCK": 1024}),
    (triton_programs.add_short, {"LONG": 16, "BLOCK": 64, "COLUMNS": 16}),
    (triton_programs.add_long, {"LONG": 16, "COLUMNS": 16}),
]


@pytest.mark.parametrize(
    ("kernel", "constants"), KERNELS, ids=lambda one: getattr(one, "__name__", "")
)
def test_the_kernels_compile_for_hopper_without_atomics_and_move_rows_in_whole_words(
    kernel: triton.JITFunction, constants: dict[str, Any]
) -> None:
    names = [parameter.name for parameter in kernel.params]
    constants = {**constants, **{n: 16 for n in ("TABLES", "WIDTH") if n in names}}
    pointers = {"table": "*fp32", "out": "*fp32", "gradients": "*fp32", "keys": "*i32"}
    numbers = "ids starts multipliers biases hash_of primes offsets pad_id indices order"
    pointers |= dict.fromkeys(numbers.split(), "*i64")
    signature = {n: "constexpr" if n in constants else pointers.get(n, "i32") for n in names}
    aligned = {
        (i,): [["tt.divisibility", 16]] for i, n in enumerate(names) if signature[n][0] == "*"
    }
    compiled = triton.compile(
        ASTSource(kernel, signature, constants, aligned),
        target=GPUTarget("cuda", 90, 32),
        options={"num_warps": 4},
    )
    ptx = compiled.asm["ptx"]
    assert not re.search(r"\b(atom|red)\.", ptx)
    if kernel in (triton_programs.hash_and_gather, triton_programs.gather):
        assert {"ld.global.v4.b32", "st.global.v4.b32"} <= set(
            re.findall(r"[ls][dt]\.global[.\w]*", ptx)
        )


@pytest.mark.parametrize("kernel", [kernel for kernel, _ in KERNELS])
def test_no_length_and_no_batch_makes_another_kernel(kernel: triton.JITFunction) -> None:
    numbers = {"positions", "length", "starts_row", "first", "rows", "row_step", "token_step"}
    for parameter in kernel.params:
        if parameter.name in numbers | {"places"}:
            assert parameter.do_not_specialize, parameter.name
            assert not parameter.is_constexpr, parameter.name
