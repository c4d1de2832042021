"""The step Δ and the decay A Δ of each head at each token."""

import torch
from torch import Tensor
from torch.nn import functional


def step_and_decay(
    dt: Tensor, A: Tensor, dt_bias: Tensor, *, decay: str, floor: float
) -> tuple[Tensor, Tensor]:
    """Compute Δ = softplus(dt + dt_bias) and A Δ.

    Args:
        dt: [..., H], the step's part of the input projection.
        A: [..., H], the decay's.
        dt_bias: [H], softplus⁻¹ of each head's step at dt = 0.
        decay: ``softplus`` or ``heavy-tail``: the function f in A = -max(f(A), floor).
        floor: Least size of A.

    Returns:
        Δ and A Δ, both [..., H], float32 whatever the inputs, float64 if dt is.
    """
    dtype = torch.promote_types(torch.float32, dt.dtype)
    step = functional.softplus(dt.to(dtype) + dt_bias.to(dtype))
    wide = A.to(dtype)
    size = functional.softplus(wide) if decay == "softplus" else heavy_tail(wide)
    return step, -size.clamp(min=floor) * step


def heavy_tail(x: Tensor) -> Tensor:
    """1 + x above 0 and 1 / (1 - x) below: positive, and slower to vanish than softplus."""
    return x.clamp(min=0) + 1 / (1 - x.clamp(max=0))
