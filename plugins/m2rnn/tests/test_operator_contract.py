"""The operator's contract beside its numbers: gradients, memory, dtypes, refusals."""

import functools
from typing import Any

import pytest
import torch
from torch import Tensor

from megatron_seams_m2rnn.ops.operator import m2rnn


def draw(
    layout: tuple[int, ...], *lead: int, K: int = 3, V: int = 2, dtype: torch.dtype = torch.float64
) -> list[Tensor]:
    """Random q, k, v, W and f with the leading dimensions B, S or T."""
    torch.manual_seed(0)
    Nq, Nk, Nv, Nw, Nf = layout
    shapes = [(*lead, Nq, K), (*lead, Nk, K), (*lead, Nv, V), (Nw, V, V)]
    drawn = [torch.randn(shape, dtype=dtype) for shape in shapes]
    return [*drawn, torch.rand(*lead, Nf, dtype=dtype)]


@pytest.fixture
def exact(backend: str) -> str:
    """A backend whose derivatives are checked by differences; the interpreter takes minutes."""
    if backend == "triton":
        pytest.skip("compared with the reference, whose derivatives are checked")
    return backend


@pytest.mark.parametrize("with_h0", [True, False])
@pytest.mark.parametrize("layout", [(2, 2, 2, 2, 2), (1, 2, 4, 2, 4)])
def test_the_gradients_are_the_derivatives(
    exact: str, layout: tuple[int, ...], with_h0: bool
) -> None:
    inputs = draw(layout, 2, 3)
    if with_h0:
        inputs.append(torch.randn(2, max(layout), 3, 2, dtype=torch.float64))
    assert torch.autograd.gradcheck(
        lambda *x: m2rnn(*x, backend=exact), [x.requires_grad_() for x in inputs]
    )


def test_the_gradients_of_packed_documents_are_the_derivatives(exact: str) -> None:
    inputs = [*draw((1, 1, 2, 2, 2), 6), torch.randn(2, 2, 3, 2, dtype=torch.float64)]
    cu_seqlens = torch.tensor([0, 1, 6])
    assert torch.autograd.gradcheck(
        lambda *x: m2rnn(*x, cu_seqlens=cu_seqlens, backend=exact),
        [x.requires_grad_() for x in inputs],
    )


def kept_for_backward(backend: str, steps: int) -> int:
    """Elements that autograd keeps, beyond the inputs."""
    inputs = [x.requires_grad_() for x in draw((1, 1, 1, 1, 1), 1, steps, K=8)]
    kept: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        kept[x.data_ptr()] = x.numel()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        m2rnn(*inputs, backend=backend)
    return sum(kept.values()) - sum(x.numel() for x in inputs)


def test_one_state_in_thirty_two_is_kept_and_not_every_state(backend: str) -> None:
    if backend == "reference":
        pytest.skip("the reference keeps every state, and says so")
    state = 8 * 2
    assert kept_for_backward(backend, 32) == 0
    assert kept_for_backward(backend, 96) == 2 * state
    assert kept_for_backward(backend, 97) == 3 * state


def test_nothing_is_kept_where_nothing_will_be_differentiated(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = []
    save = torch.autograd.function.FunctionCtx.save_for_backward
    monkeypatch.setattr(
        torch.autograd.function.FunctionCtx,
        "save_for_backward",
        lambda ctx, *tensors: (kept.append(tensors[-1]), save(ctx, *tensors))[1],
    )
    inputs = draw((1, 1, 1, 1, 1), 1, 70)
    m2rnn(*inputs, backend=backend)
    with torch.no_grad():
        m2rnn(*[x.requires_grad_() for x in inputs], backend=backend)
    assert all(states is None for states in kept)


@pytest.mark.parametrize("asked", [(0,), (2, 3), (4,), (1, 5)])
def test_a_gradient_is_the_same_whichever_others_are_asked_for(
    backend: str, asked: tuple[int, ...]
) -> None:
    inputs = [*draw((1, 2, 4, 2, 4), 1, 9), torch.randn(1, 4, 3, 2, dtype=torch.float64)]
    call = functools.partial(m2rnn, clip=0.4, checkpoint_every=4, backend=backend)
    every = [x.clone().requires_grad_() for x in inputs]
    dy = torch.randn(1, 9, 4, 2, dtype=torch.float64)
    expected = torch.autograd.grad(call(*every)[0], every, dy)
    some = [x.clone().requires_grad_(n in asked) for n, x in enumerate(inputs)]
    found = torch.autograd.grad(call(*some)[0], [some[n] for n in asked], dy)
    for n, gradient in zip(asked, found, strict=True):
        assert torch.equal(gradient, expected[n])


def test_the_gradient_of_the_last_state_alone_is_that_of_an_output_of_zeros(backend: str) -> None:
    inputs = [x.requires_grad_() for x in draw((1, 1, 2, 2, 2), 1, 9)]
    y, last = m2rnn(*inputs, backend=backend)
    found = torch.autograd.grad(last.sum(), inputs, allow_unused=True)
    y, last = m2rnn(*inputs, backend=backend)
    expected = torch.autograd.grad(last.sum() + 0 * y.sum(), inputs)
    for x, truth in zip(found, expected, strict=True):
        assert torch.equal(torch.zeros_like(truth) if x is None else x, truth)


@pytest.mark.parametrize("clip", [None, 0.4])
@pytest.mark.parametrize("name", ["q", "k", "v", "dy"])
def test_an_infinity_reaches_what_it_reaches_in_the_reference(
    backend: str, name: str, clip: float | None
) -> None:
    q, k, v, *others = draw((1, 1, 2, 2, 2), 1, 9, K=8)
    dy = torch.randn(1, 9, 2, 2, dtype=torch.float64)
    {"q": q, "k": k, "v": v, "dy": dy}[name][0, 5, 0, 1] = torch.inf

    def results(backend: str) -> tuple[Tensor, ...]:
        leaves = [x.clone().requires_grad_() for x in (q, k, v, *others)]
        y, _ = m2rnn(*leaves, clip=clip, checkpoint_every=4, backend=backend)
        return y, *torch.autograd.grad(y, leaves, dy)

    for found, expected in zip(results(backend), results("reference"), strict=True):
        assert torch.equal(found.isfinite(), expected.isfinite())


def test_the_state_stays_float32_under_autocast(backend: str) -> None:
    inputs = draw((1, 1, 2, 2, 2), 1, 9, dtype=torch.float32)
    y, last = m2rnn(*inputs, backend=backend)
    with torch.autocast("cpu", torch.bfloat16):
        under, last_under = m2rnn(*inputs, backend=backend)
    assert torch.equal(y, under)
    assert torch.equal(last, last_under)


def test_an_empty_sequence_returns_its_initial_state(backend: str) -> None:
    h0 = torch.randn(2, 2, 3, 2, dtype=torch.float64, requires_grad=True)
    y, last = m2rnn(*[*draw((1, 1, 2, 2, 2), 2, 0), h0], backend=backend)
    assert y.shape == (2, 0, 2, 2)
    assert torch.equal(last, h0)
    (gradient,) = torch.autograd.grad(last.sum(), h0)
    assert torch.equal(gradient, torch.ones_like(h0))


def test_strided_inputs_are_read_where_they_lie(backend: str) -> None:
    q, k, v, W, f = draw((2, 2, 2, 2, 2), 2, 5)
    expected = m2rnn(q, k, v, W, f, backend=backend)
    apart = torch.cat([q, k, v], dim=-1).transpose(0, 1).contiguous().transpose(0, 1)
    q, k, v = apart.split([3, 3, 2], dim=-1)
    gates = torch.stack([f, 1 - f], dim=-1)[..., 0]
    found = m2rnn(q, k, v, W.mT.contiguous().mT, gates, backend=backend)
    for x, y in zip(found, expected, strict=True):
        assert torch.equal(x, y)


def test_offsets_that_do_not_fit_thirty_two_bits_are_read_where_they_are(backend: str) -> None:
    q, k, v, W, f = draw((1, 1, 2, 2, 2), 2, 3, dtype=torch.float32)
    far = 2**32  # elements from one row to the next; of these pages only the used ones exist
    q = q.half()
    apart = torch.empty(far + q[0].numel(), dtype=q.dtype).as_strided(
        q.shape, (far, *q.stride()[1:])
    )
    apart.copy_(q)
    expected = m2rnn(q, k.half(), v.half(), W, f, backend=backend)
    for x, y in zip(m2rnn(apart, k.half(), v.half(), W, f, backend=backend), expected, strict=True):
        assert torch.equal(x, y)


def test_a_sixteen_bit_gate_is_refused() -> None:
    *inputs, f = draw((1, 1, 2, 2, 2), 1, 4, dtype=torch.bfloat16)
    with pytest.raises(TypeError, match="gate near 1 rounds to 1"):
        m2rnn(*[*inputs, f])


def test_mixed_dtypes_are_refused() -> None:
    q, *others = draw((1, 1, 2, 2, 2), 1, 4)
    with pytest.raises(TypeError, match="share one dtype"):
        m2rnn(q.float(), *others)


@pytest.mark.parametrize(
    ("index", "shape"),
    [(0, (1, 4, 1, 2)), (1, (1, 5, 1, 3)), (2, (1, 4, 2)), (3, (2, 2, 3)), (4, (2, 4, 2))],
)
def test_a_shape_that_does_not_fit_is_refused(index: int, shape: tuple[int, ...]) -> None:
    inputs = draw((1, 1, 2, 2, 2), 1, 4)
    inputs[index] = torch.zeros(shape, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"expected .*; found"):
        m2rnn(*inputs)


def test_an_initial_state_of_another_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="h0"):
        m2rnn(*[*draw((1, 1, 2, 2, 2), 2, 4), torch.zeros(1, 2, 3, 2, dtype=torch.float64)])


def test_head_counts_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match="W has 2 heads, which does not divide the 3"):
        m2rnn(*draw((1, 1, 3, 2, 3), 1, 4))


@pytest.mark.parametrize("cu_seqlens", [[1, 6], [0, 5], [0, 4, 3, 6], [0]])
def test_boundaries_that_do_not_describe_the_row_are_refused(cu_seqlens: list[int]) -> None:
    with pytest.raises(ValueError, match="cu_seqlens"):
        m2rnn(*draw((1, 1, 2, 2, 2), 6), cu_seqlens=torch.tensor(cu_seqlens))


@pytest.mark.parametrize("settings", [{"clip": 0.0}, {"clip": -1.0}, {"checkpoint_every": 0}])
def test_settings_that_mean_nothing_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="found"):
        m2rnn(*draw((1, 1, 2, 2, 2), 1, 4), **settings)


def test_tensors_on_two_devices_are_refused() -> None:
    *inputs, f = draw((1, 1, 2, 2, 2), 1, 4)
    with pytest.raises(ValueError, match=r"one device; found .*'f': 'meta'"):
        m2rnn(*inputs, f.to("meta"))
