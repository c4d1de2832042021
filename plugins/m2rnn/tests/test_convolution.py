"""The causal convolution, and its restart at every document."""

import pytest
import torch

from megatron_seams.runtime.documents import document_positions
from megatron_seams_m2rnn.layer.convolution import causal_convolution

POSITION = document_positions(torch.tensor([0, 1, 6, 6, 11]), 11)


def by_hand(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """One document, [S, C]."""
    taps = weight.shape[1]
    out = torch.zeros_like(x)
    for t in range(len(x)):
        for lag in range(min(taps, t + 1)):
            out[t] += x[t - lag] * weight[:, taps - 1 - lag]
    return out


def draw() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    x = torch.randn(1, 11, 6, dtype=torch.float64, requires_grad=True)
    return x, torch.randn(6, 4, dtype=torch.float64, requires_grad=True)


def test_it_sums_the_token_and_the_three_before_it() -> None:
    x, weight = draw()
    assert torch.allclose(causal_convolution(x, weight)[0], by_hand(x[0], weight), atol=1e-14)


def test_each_document_is_convolved_as_if_it_were_alone() -> None:
    x, weight = draw()
    expected = torch.cat([by_hand(part, weight) for part in torch.split(x[0], [1, 5, 5])])
    assert torch.allclose(causal_convolution(x, weight, POSITION)[0], expected, atol=1e-14)


@pytest.mark.parametrize("position", [None, POSITION])
def test_the_gradients_are_the_derivatives(position: torch.Tensor | None) -> None:
    assert torch.autograd.gradcheck(lambda x, w: causal_convolution(x, w, position), draw())


def test_not_even_a_nan_crosses_a_boundary_forward_or_backward() -> None:
    x, weight = draw()
    with torch.no_grad():
        x[:, :6] = torch.nan
    out = causal_convolution(x, weight, POSITION)
    assert out[:, :6].isnan().all()
    assert out[:, 6:].isfinite().all()
    (gradient,) = torch.autograd.grad(out[:, :6].sum(), x)
    assert not gradient[:, 6:].any()


def test_a_sequence_shorter_than_the_taps_is_convolved() -> None:
    x, weight = draw()
    assert torch.allclose(causal_convolution(x[:, :2], weight)[0], by_hand(x[0, :2], weight))


def test_sixteen_bit_inputs_are_summed_in_float32() -> None:
    x, weight = (value.detach().bfloat16() for value in draw())
    out = causal_convolution(x, weight)
    assert out.dtype is torch.bfloat16
    assert torch.equal(out, causal_convolution(x.float(), weight.float()).bfloat16())
