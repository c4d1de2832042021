"""The Triton backend, without a GPU: its numbers interpreted, its kernels compiled for Hopper."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import attrs
import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from megatron_seams.errors import CannotRunHere
from megatron_seams_m2rnn.ops.contract import Inputs
from megatron_seams_m2rnn.ops.dispatch import choose
from megatron_seams_m2rnn.ops.documents import Documents
from megatron_seams_m2rnn.ops.triton import kernels as triton_kernels
from megatron_seams_m2rnn.ops.triton.recurrence import LARGEST, Launch, recurrence

TESTS = Path(__file__).parent
#: What a block of threads may have of an SM's shared memory on compute capability 9.0, in bytes.
SHARED_MEMORY = 227 * 1024
POINTERS = {
    torch.bfloat16: "*bf16",
    torch.float32: "*fp32",
    torch.float64: "*fp64",
    torch.int64: "*i64",
}


def inputs(
    q: torch.Tensor,
    v: torch.Tensor,
    *,
    f: torch.Tensor,
    W: torch.Tensor,
    h0: torch.Tensor | None = None,
) -> Inputs:
    """One document of q's length, with keys that are the queries."""
    documents = Documents(steps=q.shape[1])
    return Inputs(q=q, k=q, v=v, f=f, W=W, h0=h0, documents=documents, clip=None, every=32)


@pytest.mark.suite
def test_the_operators_whole_suite_passes_under_the_interpreter(
    record_property: Callable[[str, object], None],
) -> None:
    files = [TESTS / "test_operator.py", TESTS / "test_operator_contract.py"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-k", "triton", *files],
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
    assert int(found[1]) > 40, summary
    record_property("summary", summary)


def test_a_process_that_does_not_interpret_refuses_triton_on_a_cpu() -> None:
    with pytest.raises(CannotRunHere, match="TRITON_INTERPRET=1"):
        choose("triton", torch.device("cpu"))


def test_a_gpu_runs_triton_unless_told_otherwise() -> None:
    assert choose(None, torch.device("cuda", 0)) is recurrence
    assert choose("triton", torch.device("cuda", 0)) is recurrence


def test_a_process_that_interprets_refuses_a_gpu_and_runs_triton_on_a_cpu_only_when_named() -> None:
    code = (
        "import torch\n"
        "from megatron_seams.errors import CannotRunHere\n"
        "from megatron_seams_m2rnn.ops.dispatch import choose\n"
        "print(*(choose(name, torch.device('cpu')).__module__ for name in (None, 'triton')))\n"
        "try:\n"
        "    choose('triton', torch.device('cuda'))\n"
        "except CannotRunHere as error:\n"
        "    print(error.code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    ops = "megatron_seams_m2rnn.ops"
    assert done.stdout.split() == [f"{ops}.{name}.recurrence" for name in ("cpu", "triton")] + [
        "SEAM-B05"
    ]


def test_without_the_package_triton_the_backend_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(CannotRunHere, match="the package triton is not installed"):
        choose("triton", torch.device("cuda", 0))


def test_a_state_that_no_block_of_threads_holds_is_refused() -> None:
    q, v = torch.zeros(1, 2, 1, LARGEST + 1), torch.zeros(1, 2, 1, 4)
    with pytest.raises(ValueError, match="up to 128; found K = 129, V = 4"):
        recurrence(inputs(q, v, f=v[..., 0], W=torch.eye(4)[None]))


@pytest.mark.parametrize("kernel", [triton_kernels.forward, triton_kernels.backward])
def test_no_length_and_no_batch_makes_another_kernel(kernel: triton.JITFunction) -> None:
    lengths = {"batch", "steps", "q_batch", "k_batch", "v_batch", "low", "high"}
    for parameter in kernel.params:
        if parameter.name in lengths:
            assert parameter.do_not_specialize, parameter.name
            assert not parameter.is_constexpr, parameter.name
    # The other numbers follow from head counts and sizes alone.
    others = {p.name for p in kernel.params if p.name.islower()} - lengths
    assert {name for name in others if name.endswith(("_step", "_batch"))} == {
        "q_step",
        "k_step",
        "v_step",
    }


@pytest.mark.parametrize(
    ("K", "V", "dtype"),
    [
        (64, 16, torch.bfloat16),
        (64, 16, torch.float32),
        (64, 16, torch.float64),
        (128, 128, torch.bfloat16),
    ],
)
@pytest.mark.parametrize("kernel", [triton_kernels.forward, triton_kernels.backward])
def test_the_kernels_compile_for_hopper_without_atomics_and_fit_its_shared_memory(
    kernel: triton.JITFunction, K: int, V: int, dtype: torch.dtype
) -> None:
    compiled = compile_for_hopper(kernel, K, V, dtype)
    assert not re.search(r"\b(atom|red)\.", compiled.asm["ptx"])
    assert compiled.metadata.shared <= SHARED_MEMORY


def test_one_warp_runs_forward_on_a_head_of_the_papers_size_in_sixteen_bits() -> None:
    compiled = compile_for_hopper(triton_kernels.forward, 64, 16, torch.bfloat16)
    assert compiled.metadata.num_warps == 1
    assert "tanh.approx.f32" in compiled.asm["ptx"]


def compile_for_hopper(
    kernel: triton.JITFunction, K: int, V: int, dtype: torch.dtype
) -> triton.compiler.CompiledKernel:
    """Compile a kernel as a call on a GPU with a clip and an initial state has it compiled."""
    state = torch.promote_types(dtype, torch.float32)
    q, v = torch.empty(1, 4, 1, K, dtype=dtype), torch.empty(1, 4, 8, V, dtype=dtype)
    f, h0 = torch.empty(1, 4, 8, dtype=state), torch.empty(1, 1, 8, K, V, dtype=state)
    x = inputs(q, v, f=f, W=torch.empty(8, V, V, dtype=dtype), h0=h0)
    launch = Launch.of(attrs.evolve(x, documents=Documents.packed(torch.tensor([0, 4]), 4)))
    if kernel is triton_kernels.forward:
        constants = launch.forward()
    else:
        constants = launch.backward(frozenset("qkvfW"), clip=1.0, has_dy=True)
    options = {name: constants.pop(name) for name in list(constants) if name.islower()}
    given = dict(zip(("q", "k", "v", "f", "W", "h0", "cumulative"), launch.inputs, strict=True))
    given |= {"y": v, "dy": v, "dv": v}
    pointers = {name: POINTERS[tensor.dtype] for name, tensor in given.items()}
    pointers["document"] = "*i32"
    counts = {"batch", "steps", "low", "high"}
    counts |= {f"{name}_{unit}" for name in "qkv" for unit in ("batch", "step")}
    signature = {
        name: "constexpr"
        if name in constants
        else pointers.get(name, "i32" if name in counts else POINTERS[state])
        for name in (parameter.name for parameter in kernel.params)
    }
    assert constants.keys() <= signature.keys()
    return triton.compile(
        ASTSource(kernel, signature, constants), target=GPUTarget("cuda", 90, 32), options=options
    )
