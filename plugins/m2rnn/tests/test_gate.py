"""The forget gate and its initialisation."""

import math

import torch

from megatron_seams.runtime.mixers import initial_dt_bias
from megatron_seams_m2rnn.layer.gate import forget_gate, initial_decay


def test_the_gate_is_the_papers_formula() -> None:
    gate = forget_gate(torch.tensor([0.3]), torch.tensor([math.log(2.0)]), torch.tensor([-1.0]))
    expected = math.exp(-2.0 * math.log1p(math.exp(0.3 - 1.0)))
    assert math.isclose(gate.item(), expected, rel_tol=1e-6)


def test_the_gate_of_a_bfloat16_model_is_float32_and_never_stuck_at_one() -> None:
    torch.manual_seed(0)
    heads = 100_000
    x = torch.zeros(heads, dtype=torch.bfloat16)
    gate = forget_gate(
        x, initial_decay(heads, "cpu").bfloat16(), initial_dt_bias(heads, "cpu").bfloat16()
    )
    assert gate.dtype is torch.float32
    assert (gate < 1).all()
    # The reason for float32: the share of gates that bfloat16 would stop.
    assert 0.01 < (gate.bfloat16() == 1).float().mean() < 0.05


def test_decay_rates_are_drawn_evenly_up_to_sixteen() -> None:
    torch.manual_seed(0)
    A = initial_decay(100_000, "cpu").exp()
    assert A.min() > 0
    assert 15.99 < A.max() <= 16.001
    assert abs(A.mean() - 8) < 0.1
