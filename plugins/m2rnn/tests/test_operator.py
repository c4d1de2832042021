"""The numbers of every backend: the reference against a loop that shares no code with it, and the
others against the reference.
"""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from megatron_seams_m2rnn.ops.operator import m2rnn

# Nq, Nk, Nv, Nw, Nf: all equal, the paper's, each input grouped alone, and all different.
LAYOUTS = [
    (4, 4, 4, 4, 4),
    (1, 1, 4, 4, 4),
    (2, 4, 4, 4, 4),
    (4, 2, 4, 4, 4),
    (4, 4, 2, 4, 4),
    (4, 4, 4, 2, 4),
    (4, 4, 4, 4, 2),
    (6, 2, 3, 1, 2),
]
PAPER = LAYOUTS[1]
NAMES = ("y", "last", "dq", "dk", "dv", "dW", "df", "dh0")
TOLERANCE = 1e-10
#: What a backend may lose that rounds the operands of its products to bfloat16, of the largest
#: element: one unit in the last place, and twice that since Triton's interpreter cuts off where a
#: GPU rounds.
ROUNDED_PRODUCTS = 2.0**-7


def by_hand(
    inputs: list[Tensor],
    spans: list[tuple[int, int]],
    clip: float | None,
    dy: Tensor,
    dlast: Tensor,
) -> list[Tensor]:
    """The equations of arXiv:2603.14360 and their gradients, one head and one step at a time.

    Takes [B, S, ...] inputs and [D, B, N, K, V] initial states; returns what NAMES lists.
    """
    q, k, v, W, f, h0 = inputs
    y = torch.zeros_like(dy)
    last = torch.zeros_like(dlast)
    dq, dk, dv, dW, df, dh0 = (torch.zeros_like(x) for x in inputs)
    N = h0.shape[2]
    for document, b, n in itertools.product(range(len(spans)), range(q.shape[0]), range(N)):
        i, j, m, w, g = (
            n // (N // c) for c in (*(x.shape[2] for x in (q, k, v)), len(W), f.shape[2])
        )
        steps = range(*spans[document])
        h = {steps.start - 1: h0[document, b, n]}
        z = {}
        for t in steps:
            z[t] = torch.tanh(h[t - 1] @ W[w] + torch.outer(k[b, t, j], v[b, t, m]))
            h[t] = f[b, t, g] * h[t - 1] + (1 - f[b, t, g]) * z[t]
            y[b, t, n] = h[t].T @ q[b, t, i]
        last[document, b, n] = h[steps.stop - 1]
        carry = dlast[document, b, n]
        for t in reversed(steps):
            bounded = carry if clip is None else carry.clip(-clip, clip)
            G = bounded + torch.outer(q[b, t, i], dy[b, t, n])
            dx = (1 - f[b, t, g]) * G * (1 - z[t] ** 2)
            dq[b, t, i] += h[t] @ dy[b, t, n]
            dk[b, t, j] += dx @ v[b, t, m]
            dv[b, t, m] += dx.T @ k[b, t, j]
            dW[w] += h[t - 1].T @ dx
            df[b, t, g] += ((h[t - 1] - z[t]) * G).sum()
            carry = f[b, t, g] * G + dx @ W[w].T
        dh0[document, b, n] = carry
    return [y, last, dq, dk, dv, dW, df, dh0]


def draw(
    layout: tuple[int, ...], *, B: int = 2, S: int = 6, K: int = 6, V: int = 5, documents: int = 1
) -> list[Tensor]:
    """Random q, k, v, W, f and h0 [D, B, N, K, V], in float64."""
    generator = torch.Generator().manual_seed(sum(layout) + S)
    Nq, Nk, Nv, Nw, Nf = layout
    shapes = [(B, S, Nq, K), (B, S, Nk, K), (B, S, Nv, V), (Nw, V, V), (B, S, Nf)]
    shapes.append((documents, B, max(layout), K, V))
    drawn = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    drawn[4] = torch.sigmoid(2 * drawn[4])
    return drawn


def run(
    function: Callable[..., Any],
    inputs: list[Tensor],
    dy: Tensor,
    dlast: Tensor,
    *,
    cu_seqlens: Tensor | None = None,
    with_h0: bool = True,
    **settings: Any,
) -> list[Tensor]:
    """Call an implementation in its own layout; return what NAMES lists, in that of by_hand."""
    leaves = [x.clone().requires_grad_() for x in (inputs if with_h0 else inputs[:-1])]
    q, k, v, W, f, *h0 = leaves
    if cu_seqlens is None:
        y, last = function(q, k, v, W, f, *(x[0] for x in h0), **settings)
        y, last = y, last[None]
    else:
        q, k, v, f = (x[0] for x in (q, k, v, f))
        settings["cu_seqlens"] = cu_seqlens
        y, last = function(q, k, v, W, f, *(x[:, 0] for x in h0), **settings)
        y, last = y[None], last[:, None]
    gradients = torch.autograd.grad((y, last), leaves, (dy.to(y.dtype), dlast.to(last.dtype)))
    return [y.detach(), last.detach(), *gradients]


def agree(found: list[Tensor], expected: list[Tensor], tolerance: float = TOLERANCE) -> None:
    for name, x, truth in zip(NAMES, found, expected, strict=False):
        error = (x - truth).abs().max().item() if truth.numel() else 0.0
        assert error <= tolerance, f"{name} is off by {error:.3g}"


def compare(
    backend: str,
    inputs: list[Tensor],
    *,
    cu: list[int] | None = None,
    with_h0: bool = True,
    clip: float | None = None,
    every: int = 4,
) -> None:
    """Hold a backend to the reference, and the reference to by_hand: outputs, every gradient."""
    if not with_h0:
        inputs[-1].zero_()
    q, v, h0 = inputs[0], inputs[2], inputs[-1]
    dy = torch.randn(*q.shape[:2], h0.shape[2], v.shape[-1], dtype=torch.float64)
    dlast = torch.randn_like(h0)
    given: dict[str, Any] = {"clip": clip, "with_h0": with_h0, "checkpoint_every": every}
    given["cu_seqlens"] = None if cu is None else torch.tensor(cu, dtype=torch.int32)
    found = run(m2rnn, inputs, dy, dlast, backend=backend, **given)
    if backend == "reference":
        spans = [(0, q.shape[1])] if cu is None else list(itertools.pairwise(cu))
        expected = by_hand(inputs, spans, clip, dy, dlast)
    else:
        expected = run(m2rnn, inputs, dy, dlast, backend="reference", **given)
    agree(found, expected)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize(
    ("layout", "with_h0"),
    [*((layout, True) for layout in LAYOUTS), (LAYOUTS[0], False), (LAYOUTS[-1], False)],
)
def test_outputs_and_gradients_agree_for_every_head_layout(
    backend: str, layout: tuple[int, ...], with_h0: bool
) -> None:
    compare(backend, draw(layout), with_h0=with_h0, clip=0.4 if with_h0 else None)


@pytest.mark.parametrize(
    ("steps", "every"), [(1, 4), (3, 4), (4, 4), (8, 4), (13, 4), (1, 1), (20, 1), (13, 32)]
)
def test_any_length_agrees_whatever_the_checkpoint_interval(
    backend: str, steps: int, every: int
) -> None:
    compare(backend, draw((1, 1, 2, 2, 2), B=1, S=steps), every=every, clip=0.4)


@pytest.mark.parametrize("gate", [0.0, 1.0])
def test_gates_at_their_ends_agree(backend: str, gate: float) -> None:
    inputs = draw(PAPER)
    inputs[4].fill_(gate)
    compare(backend, inputs)


def test_a_gate_near_one_agrees_over_three_hundred_steps(backend: str) -> None:
    inputs = draw((1, 1, 1, 1, 1), B=1, S=300)
    inputs[4].fill_(0.999)
    compare(backend, inputs, every=32)


def test_a_saturated_tanh_agrees(backend: str) -> None:
    inputs = draw(PAPER)
    inputs[1] *= 30
    inputs[2] *= 30
    compare(backend, inputs)


@pytest.mark.parametrize(("K", "V"), [(128, 64), (64, 16), (16, 128), (1, 1), (17, 3)])
def test_states_of_any_size_agree(backend: str, K: int, V: int) -> None:
    inputs = draw((1, 1, 2, 2, 2), B=1, S=6, K=K, V=V)
    inputs[3] *= V**-0.5
    compare(backend, inputs, clip=0.4)


@pytest.mark.parametrize("with_h0", [True, False])
@pytest.mark.parametrize(
    ("cu", "layout", "every"),
    [
        ([0, 1, 6, 11], PAPER, 4),
        ([0, 5, 10, 11], (6, 2, 3, 1, 2), 4),
        ([0, 4, 4, 11, 11], (1, 1, 2, 2, 2), 4),
        ([0, 0, 11], (2, 1, 1, 1, 1), 32),
        ([0, 3, 17, 17, 18, 20], (1, 1, 1, 1, 1), 1),
    ],
)
def test_packed_documents_agree_one_token_and_empty_ones_included(
    backend: str, cu: list[int], layout: tuple[int, ...], every: int, with_h0: bool
) -> None:
    inputs = draw(layout, B=1, S=cu[-1], documents=len(cu) - 1)
    compare(backend, inputs, cu=cu, with_h0=with_h0, clip=0.4, every=every)


def test_the_clip_bounds_the_carry_and_not_the_sum(backend: str) -> None:
    one = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    h0 = torch.zeros(1, 1, 1, 1, dtype=torch.float64, requires_grad=True)
    gate = torch.ones(1, 1, 1, dtype=torch.float64)  # the state is kept: h1 = h0
    y, last = m2rnn(one, one, one, one[0], gate, h0, clip=1.0, backend=backend)
    (dh0,) = torch.autograd.grad((y, last), h0, (5 * one, 7 * one))
    # q dy = 5 enters whole beside the carry, clipped from 7 to 1; clamping the sum would give 1.
    assert dh0.item() == 6.0


def test_a_sequence_split_over_two_calls_has_the_outputs_and_gradients_of_one(
    backend: str,
) -> None:
    inputs = draw(PAPER, B=1, S=11)
    dy = torch.randn(1, 11, 4, 5, dtype=torch.float64)
    dlast = torch.randn_like(inputs[-1])
    call = functools.partial(m2rnn, clip=0.4, backend=backend)

    def in_two(q: Tensor, k: Tensor, v: Tensor, W: Tensor, f: Tensor, h0: Tensor) -> Any:
        first, middle = call(q[:, :7], k[:, :7], v[:, :7], W, f[:, :7], h0)
        second, last = call(q[:, 7:], k[:, 7:], v[:, 7:], W, f[:, 7:], middle)
        return torch.cat([first, second], dim=1), last

    agree(run(in_two, inputs, dy, dlast), run(call, inputs, dy, dlast), 1e-13)


def test_a_document_is_bitwise_the_same_whatever_is_packed_before_it(backend: str) -> None:
    inputs = draw((1, 1, 2, 2, 2), B=1, S=11, documents=2)
    for x in inputs:
        x.data = x.data.float()
    dy, dlast = torch.randn(1, 11, 2, 5), torch.randn(2, 1, 2, 6, 5)
    settings = {"cu_seqlens": torch.tensor([0, 5, 11]), "backend": backend}
    before = run(m2rnn, inputs, dy, dlast, **settings)
    for x in (*inputs[:3], inputs[4]):
        x[:, :5] = torch.nan
    after = run(m2rnn, inputs, dy, dlast, **settings)
    assert after[0][:, :5].isnan().any()
    for name, x, other in zip(NAMES, before, after, strict=True):
        if name != "dW":  # the one gradient that is summed over documents
            part = slice(1, None) if name in ("last", "dh0") else (slice(None), slice(5, None))
            assert torch.equal(x[part], other[part]), name


def test_two_runs_are_bitwise_equal_whatever_the_number_of_threads(backend: str) -> None:
    inputs = [x.float() for x in draw((1, 1, 4, 4, 2), S=9)]
    dy, dlast = torch.randn(2, 9, 4, 5), torch.randn(1, 2, 4, 6, 5)
    call = functools.partial(m2rnn, clip=0.4, checkpoint_every=4, backend=backend)
    before = run(call, inputs, dy, dlast)
    torch.set_num_threads(3)
    after = run(call, inputs, dy, dlast)
    torch.set_num_threads(1)
    for name, x, other in zip(NAMES, before, after, strict=True):
        assert torch.equal(x, other), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bit_inputs_are_as_exact_as_their_own_rounding(
    backend: str, dtype: torch.dtype
) -> None:
    exact = draw((1, 1, 2, 2, 2), B=1, S=24, K=16, V=8)
    exact[3] *= 0.3  # a transition that shrinks: a chaotic one would magnify float32's rounding
    rounded = [x.to(dtype) for x in exact]
    rounded[4] = exact[4].float()
    rounded[5] = exact[5].float()
    truth = [x.double() for x in rounded]
    dy = torch.randn(1, 24, 2, 8).to(dtype)
    dlast = torch.randn(1, 1, 2, 16, 8)
    found = run(functools.partial(m2rnn, backend=backend), rounded, dy, dlast)
    expected = run(
        functools.partial(m2rnn, backend="reference"), truth, dy.double(), dlast.double()
    )
    tolerance = ROUNDED_PRODUCTS if backend == "triton" else 1e-5
    for name, x, true in zip(NAMES, found, expected, strict=True):
        # float32 inside, rounded once at the end: half a unit in the last place.
        epsilon = torch.finfo(dtype).eps / 2 if x.dtype is dtype else 1e-5
        error = (x.double() - true).abs() - epsilon * true.abs()
        assert error.max() <= tolerance * true.abs().max(), name
    assert [x.dtype for x in found] == [dtype, torch.float32, *(x.dtype for x in rounded)]


def test_a_gate_that_bfloat16_would_round_to_one_still_moves_the_state(backend: str) -> None:
    inputs = draw((1, 1, 2, 2, 2), B=1, S=64)
    gate = 1 - 2.0**-11
    assert torch.tensor(gate).bfloat16() == 1
    inputs[4].fill_(gate)
    q, k, v, W, f, h0 = inputs
    q, k, v, W = (x.bfloat16() for x in (q, k, v, W))
    _, last = m2rnn(q, k, v, W, f.float(), h0[0].float(), backend=backend)
    _, truth = m2rnn(*(x.double() for x in (q, k, v, W, f, h0[0])), backend="reference")
    moved = (truth - h0[0]).abs()
    assert moved.mean() > 1e-3
    tolerance = ROUNDED_PRODUCTS * moved.max() if backend == "triton" else 1e-5
    assert (last - truth).abs().max() < tolerance
