"""The CUDA backend without a GPU: its kernels emulated on the CPU, and compiled for Hopper."""

import sys
from pathlib import Path

import attrs
import pytest
import torch
from torch import Tensor

from megatron_seams.errors import CannotRunHere
from megatron_seams_m2rnn.ops import naive
from megatron_seams_m2rnn.ops.contract import Inputs
from megatron_seams_m2rnn.ops.cuda import library, rule
from megatron_seams_m2rnn.ops.cuda import recurrence as cuda
from megatron_seams_m2rnn.ops.dispatch import choose
from megatron_seams_m2rnn.ops.documents import Documents

sys.path.append(str(Path(__file__).parent))

import emulation  # beside this file, which is on no path

NAMES = ("y", "last", "q", "k", "v", "f", "W", "h0")


def inputs(
    heads: tuple[int, ...] = (1, 1, 2, 2, 2),
    *,
    S: int = 45,
    K: int = 16,
    V: int = 16,
    dtype: torch.dtype = torch.bfloat16,
    cu_seqlens: list[int] | None = None,
    clip: float | None = 0.4,
) -> Inputs:
    Nq, Nk, Nv, Nw, Nf = heads
    generator = torch.Generator().manual_seed(1)
    documents = Documents(steps=S)
    if cu_seqlens is not None:
        documents = Documents.packed(torch.tensor(cu_seqlens), S)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    return Inputs(
        q=(drawn(1, S, Nq, K) / K**0.5).to(dtype),
        k=(drawn(1, S, Nk, K) * 2 / K**0.5).to(dtype),
        v=drawn(1, S, Nv, V).to(dtype),
        f=torch.sigmoid(drawn(1, S, Nf)),
        W=(drawn(Nw, V, V) * 0.6 / V**0.5).to(dtype),
        h0=drawn(documents.count, 1, max(heads), K, V),
        documents=documents,
        clip=clip,
        every=32,
    )


def outcome(recurrence, given: Inputs, dtype: torch.dtype | None = None) -> list[Tensor]:
    """Give y, the last states and all gradients, for gradients that depend on the shapes alone."""
    names = ("q", "k", "v", "f", "W", "h0")
    leaves = {name: getattr(given, name).to(dtype).requires_grad_() for name in names}
    if dtype is None:
        leaves = {name: getattr(given, name).clone().requires_grad_() for name in names}
    y, last = recurrence(attrs.evolve(given, **leaves))
    generator = torch.Generator().manual_seed(2)
    wanted = [torch.randn(x.shape, generator=generator) for x in (y, last)]
    asked = [given_.to(made.dtype) for given_, made in zip(wanted, (y, last), strict=True)]
    return [y, last, *torch.autograd.grad((y, last), list(leaves.values()), asked)]


@pytest.mark.parametrize(
    "given",
    [
        inputs((6, 2, 3, 1, 2)),
        inputs(K=64, S=40),
        inputs(cu_seqlens=[0, 1, 6, 6, 40, 45, 45], dtype=torch.float16),
        inputs((2, 2, 2, 2, 2), V=32, clip=None),
    ],
    ids=["every head count differs", "shared q and k", "packed float16", "V 32 without a clip"],
)
def test_the_kernels_compute_what_the_reference_does(
    given: Inputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    emulator = emulation.Emulator()
    monkeypatch.setattr(library, "launch", emulator.launch)
    monkeypatch.setattr(cuda, "machine", lambda _: emulation.HOPPER)
    assert rule.inputs_fault(given, emulation.HOPPER) is None
    made = outcome(cuda.recurrence, given)
    meant = outcome(naive.recurrence, given, torch.float64)
    for name, one, other in zip(NAMES, made, meant, strict=True):
        error = (one.double() - other).norm() / other.norm()
        assert error < 6e-3, name
    assert [kernel.name for kernel, _ in emulator.launched] == ["forward", "backward"]


def test_the_shortest_segments_compute_what_the_reference_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    emulator = emulation.Emulator()
    monkeypatch.setattr(library, "launch", emulator.launch)
    monkeypatch.setattr(cuda, "machine", lambda _: emulation.HOPPER)
    monkeypatch.setattr(rule, "SEGMENTS", (8,))
    rule._spread.cache_clear()
    try:
        given = inputs((1, 1, 2, 2, 2), S=29, cu_seqlens=[0, 9, 29])
        made = outcome(cuda.recurrence, given)
    finally:
        rule._spread.cache_clear()
    meant = outcome(naive.recurrence, given, torch.float64)
    for name, one, other in zip(NAMES, made, meant, strict=True):
        assert (one.double() - other).norm() / other.norm() < 6e-3, name
    assert "-DM2RNN_SEGMENT=8" in emulator.launched[1][0].options


@pytest.mark.parametrize(
    ("B", "S", "N", "shared", "segment"),
    [(2, 4096, 8, False, 32), (2, 4096, 132, True, 16), (4, 4096, 84, True, 8)],
)
def test_the_more_blocks_there_are_the_shorter_the_segments_that_let_them_all_run(
    B: int, S: int, N: int, shared: bool, segment: int
) -> None:
    few = 1 if shared else N
    q, v = (torch.empty(B, S, n, size, device="meta") for n, size in ((few, 64), (N, 16)))
    given = Inputs(
        q=q.bfloat16(),
        k=q.bfloat16(),
        v=v.bfloat16(),
        f=torch.empty(B, S, N, device="meta"),
        W=torch.empty(N, 16, 16, device="meta").bfloat16(),
        h0=None,
        documents=Documents(steps=S),
        clip=1.0,
        every=32,
    )
    whole = attrs.evolve(emulation.HOPPER, multiprocessors=132)
    plan = rule.backward_plan(given, whole, frozenset("qkvfW"))
    assert plan.segment == rule.kept_every(given, whole) == segment
    assert plan.slots == B  # every row of the batch runs at a time
    assert plan.slots * N <= plan.kernel.resident * whole.multiprocessors


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (inputs(K=24), "K"),
        (inputs(V=24), "V"),
        (inputs(dtype=torch.float32), "float32"),
    ],
)
def test_what_it_does_not_take_is_named(given: Inputs, says: str) -> None:
    fault = rule.inputs_fault(given, emulation.HOPPER)
    assert fault is not None
    assert says in fault


def test_it_runs_on_no_cpu() -> None:
    with pytest.raises(CannotRunHere, match="'cuda'"):
        choose("cuda", torch.device("cpu"))


def test_both_kernels_compile_for_hopper() -> None:
    if (missing := library.fault()) is not None:
        pytest.skip(missing)
    sizes = emulation.HOPPER.sizes(inputs(K=64))
    checked = sizes.backward(16, wants=31, clips=False, shares=True)
    for kernel in (
        sizes.forward(),
        sizes.backward(32, wants=31, clips=True, shares=False),
        sizes.backward(8, wants=31, clips=True, shares=True),
        attrs.evolve(checked, options=(*checked.options, "-DM2RNN_CHECKED")),
    ):
        assert len(library.compiled(kernel, 90)) > 1000
