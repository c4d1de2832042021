"""The GPU's backends on a GPU: numbers, waits, captures. Skipped where there is none."""

import functools
import itertools
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from megatron_seams_m2rnn.ops.dispatch import backends
from megatron_seams_m2rnn.ops.operator import m2rnn

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="wants a GPU")

NAMES = ("y", "last", "dq", "dk", "dv", "dW", "df", "dh0")
#: Nq, Nk, Nv, Nw, Nf: all equal, the paper's, and all different.
LAYOUTS = [(4, 4, 4, 4, 4), (1, 1, 4, 4, 4), (6, 2, 3, 1, 2)]


@pytest.fixture(params=["cuda", "triton"])
def backend(request: pytest.FixtureRequest) -> str:
    """Each of the GPU's backends that runs on this one."""
    name: str = request.param
    fault = backends(torch.device("cuda", 0))[name]
    if fault:
        pytest.skip(fault)
    return name


def draw(
    layout: tuple[int, ...],
    *,
    B: int = 2,
    S: int = 300,
    K: int = 64,
    V: int = 16,
    documents: int | None = None,
    dtype: torch.dtype = torch.bfloat16,
    seed: int = 0,
) -> list[Tensor]:
    """Random q, k, v, W, f and h0 as the operator takes them; packed where there are documents."""
    generator = torch.Generator("cuda").manual_seed(seed)
    random = functools.partial(torch.randn, generator=generator, device="cuda")
    Nq, Nk, Nv, Nw, Nf = layout
    lead = (B, S) if documents is None else (S,)
    q, k, v = random(*lead, Nq, K) / K**0.5, random(*lead, Nk, K) / 4, random(*lead, Nv, V)
    W = random(Nw, V, V) * 0.6 / V**0.5  # a transition that shrinks, so that rounding does too
    f = torch.sigmoid(random(*lead, Nf))
    h0 = random(B if documents is None else documents, max(layout), K, V)
    return [*(x.to(dtype) for x in (q, k, v, W)), f, h0]


def results(
    inputs: list[Tensor],
    backend: str,
    convert: Callable[[Tensor], Tensor] = lambda x: x,
    **given: Any,
) -> list[Tensor]:
    """The tensors of NAMES, with the same random gradients of y and the last states each time."""
    leaves = [convert(x).detach().clone().requires_grad_() for x in inputs]
    y, last = m2rnn(*leaves, clip=1.0, backend=backend, **given)
    generator = torch.Generator("cuda").manual_seed(1)
    dy = torch.randn(y.shape, generator=generator, device="cuda").to(inputs[0].dtype).to(y.dtype)
    dlast = torch.randn(last.shape, generator=generator, device="cuda").to(last.dtype)
    return [y.detach(), last.detach(), *torch.autograd.grad((y, last), leaves, (dy, dlast))]


def poison() -> None:
    """Fill the memory that torch will hand out next with NaN, so that what is not written shows."""
    torch.full((64 * 2**20,), torch.nan, device="cuda")


def compare(inputs: list[Tensor], backend: str, tolerance: float, **given: Any) -> None:
    poison()
    found = results(inputs, backend, **given)
    expected = results(inputs, "torch", lambda x: x.double(), **given)
    for name, x, truth in zip(NAMES, found, expected, strict=True):
        error = ((x.double() - truth).norm() / truth.norm()).item()
        assert error <= tolerance, f"{name} is off by {error:.3g}"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_sixteen_bit_numbers_are_those_of_float64_on_the_rounded_inputs(
    backend: str, layout: tuple[int, ...]
) -> None:
    compare(draw(layout), backend, 5e-3)


@pytest.mark.parametrize(("K", "V"), [(16, 16), (48, 16), (128, 16), (32, 32), (96, 32)])
def test_states_of_the_sizes_that_the_cuda_backend_takes_agree(
    backend: str, K: int, V: int
) -> None:
    compare(draw(LAYOUTS[1], S=100, K=K, V=V), backend, 5e-3)


@pytest.mark.parametrize("steps", [1, 7, 8, 9, 31, 32, 33, 64, 65, 1000])
def test_any_length_agrees(backend: str, steps: int) -> None:
    compare(draw(LAYOUTS[1], S=steps), backend, 5e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_packed_documents_agree_empty_and_short_ones_included(
    backend: str, dtype: torch.dtype
) -> None:
    cu = torch.tensor([0, 1, 1, 33, 64, 97, 299, 300, 300], dtype=torch.int32, device="cuda")
    inputs = draw(LAYOUTS[1], documents=8, dtype=dtype)
    compare(inputs, backend, 5e-3, cu_seqlens=cu)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_wide_numbers_agree(dtype: torch.dtype) -> None:
    inputs = [x.to(dtype) for x in draw(LAYOUTS[2], S=100)]
    compare(inputs, "triton", 1e-5 if dtype is torch.float32 else 1e-13)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_two_runs_are_bitwise_equal(backend: str, layout: tuple[int, ...]) -> None:
    inputs = draw(layout)
    for x, other in zip(results(inputs, backend), results(inputs, backend), strict=True):
        assert torch.equal(x, other)


@pytest.mark.parametrize("heads", [132, 84])
def test_the_papers_heads_agree_over_several_rows(backend: str, heads: int) -> None:
    compare(draw((1, 1, heads, heads, heads), B=5, S=70), backend, 5e-3)


def test_a_state_that_float16_cannot_hold_agrees() -> None:
    *inputs, h0 = draw(LAYOUTS[0], S=40)
    h0[:, 1] *= 1e6
    found = results([*inputs, h0], "cuda")
    expected = results([*inputs, h0], "torch", lambda x: x.double())
    for n in (0, 1):
        assert ((found[n] - expected[n]).norm() / expected[n].norm()).item() < 5e-3


@pytest.mark.parametrize(
    ("name", "value"),
    [("f", torch.nan), *itertools.product(("q", "k", "v", "h0"), (torch.nan, torch.inf))],
)
def test_what_is_not_finite_reaches_what_it_reaches_in_float64(
    backend: str, name: str, value: float
) -> None:
    inputs = draw(LAYOUTS[0], B=1, S=40)
    x = dict(zip(("q", "k", "v", "W", "f", "h0"), inputs, strict=True))[name]
    x[0, 1 if name == "h0" else 21].view(-1)[1] = value
    found = results(inputs, backend)
    expected = results(inputs, "reference", lambda x: x.double())
    for label, x, truth in zip(NAMES, found, expected, strict=True):
        assert torch.equal(x.isfinite(), truth.isfinite()), label


def test_a_document_is_bitwise_the_same_whatever_is_packed_before_it(backend: str) -> None:
    cu = torch.tensor([0, 45, 100], device="cuda")
    inputs = draw(LAYOUTS[1], S=100, documents=2)
    before = results(inputs, backend, cu_seqlens=cu)
    for n in (0, 1, 2, 4):
        inputs[n][:45] = torch.nan
    after = results(inputs, backend, cu_seqlens=cu)
    for name, x, other in zip(NAMES, before, after, strict=True):
        if name != "dW":  # the one gradient that is summed over documents
            part = slice(1, None) if name in ("last", "dh0") else slice(45, None)
            assert torch.equal(x[part], other[part]), name


@pytest.mark.parametrize("packed", [False, True])
def test_the_host_returns_at_once_behind_queued_work(backend: str, packed: bool) -> None:
    cu = torch.tensor([0, 45, 300], dtype=torch.int32, device="cuda") if packed else None
    inputs = draw(LAYOUTS[1], documents=2 if packed else None)
    leaves = [x.requires_grad_() for x in inputs]

    def step() -> None:
        y, _ = m2rnn(*leaves, clip=1.0, cu_seqlens=cu, backend=backend)
        torch.autograd.grad(y, leaves, torch.ones_like(y))

    step()
    torch.cuda.synchronize()
    busy = torch.randn(8192, 8192, device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(20):
            busy = busy @ busy
        queued = torch.cuda.Event()
        queued.record()
        start = time.perf_counter()
        step()
        took = time.perf_counter() - start
        assert not queued.query(), "the queued work was over too soon to tell"
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert took < 0.02, f"the host was held for {took * 1e3:.1f} ms"


@pytest.mark.parametrize("packed", [False, True])
def test_forward_and_backward_are_captured_and_replayed_with_other_inputs(
    backend: str, packed: bool
) -> None:
    cu = torch.tensor([0, 45, 300], dtype=torch.int32, device="cuda") if packed else None
    documents = 2 if packed else None
    static = [x.requires_grad_() for x in draw(LAYOUTS[1], documents=documents)]

    def step() -> list[Tensor]:
        y, last = m2rnn(*static, clip=1.0, cu_seqlens=cu, backend=backend)
        return [y, *torch.autograd.grad((y, last), static, (torch.ones_like(y), last.detach()))]

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for x, other in zip(static, draw(LAYOUTS[1], documents=documents, seed=5), strict=True):
        x.data.copy_(other)
    graph.replay()
    replayed = [x.clone() for x in captured]
    for x, truth in zip(replayed, step(), strict=True):
        assert torch.equal(x, truth)


def test_the_parts_of_the_mixer_that_are_compiled_compute_what_they_do_as_they_are() -> None:
    mixer = pytest.importorskip("megatron_seams_m2rnn.layer.mixer")
    generator = torch.Generator("cuda").manual_seed(0)

    def random(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        return torch.randn(*shape, generator=generator, device="cuda").to(dtype).requires_grad_()

    position = torch.arange(100, device="cuda") % 33
    for part, given in (
        (mixer._convolved, (random(2, 100, 48), random(48, 4), None, None)),
        (mixer._convolved, (random(1, 100, 48), random(48, 4), position, None)),
        (mixer._skipped, (random(2, 100, 6, 16), random(2, 100, 3, 16), random(96))),
        (mixer._gated, (random(100, 2, 96), random(100, 2, 96))),
        (mixer._forget_gate, (random(2, 100, 6), random(6), random(6))),
    ):
        leaves = [x for x in given if x is not None and x.requires_grad]
        outcomes = []
        for function in (part, part.__wrapped__):
            y = function(*given)
            outcomes.append([y, *torch.autograd.grad(y, leaves, torch.ones_like(y))])
        for x, truth in zip(*outcomes, strict=True):
            assert x.dtype is truth.dtype
            error = (x.double() - truth.double()).norm() / truth.double().norm()
            assert error < 1e-2, part.__name__
