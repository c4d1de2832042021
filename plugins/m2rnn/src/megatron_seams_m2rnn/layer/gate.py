"""The forget gate: the share of its state that a head keeps at each step."""

import torch
from torch import Tensor
from torch.nn import functional

#: A is drawn from (0, 16): arXiv:2603.14360, after Mamba-2.
A_MAX = 16.0


def forget_gate(x: Tensor, A_log: Tensor, dt_bias: Tensor) -> Tensor:
    """Compute f = exp(-exp(A_log) · softplus(x + dt_bias)).

    Args:
        x: [..., Nf], the gate's part of the input projection.
        A_log: [Nf], the logarithm of each gate's decay rate.
        dt_bias: [Nf], softplus⁻¹ of each gate's time step at x = 0.

    Returns:
        [..., Nf] in [0, 1], float32 whatever the inputs, float64 if x is. Rounded to bfloat16,
        2.6 % of the gates would be exactly 1 at initialisation, and their states would never move.
    """
    dtype = torch.promote_types(torch.float32, x.dtype)
    dt = functional.softplus(x.to(dtype) + dt_bias.to(dtype))
    return torch.exp(-A_log.to(dtype).exp() * dt)


def initial_decay(heads: int, device: torch.device | int | str) -> Tensor:
    """Draw log A, A ~ U(0, 16), as [Nf] float32."""
    A = torch.empty(heads, device=device).uniform_(0.0, A_MAX)
    # uniform_ may return its lower end, and the logarithm of 0 would make a gate that is stuck.
    return A.clamp_(min=1e-4).log_()
