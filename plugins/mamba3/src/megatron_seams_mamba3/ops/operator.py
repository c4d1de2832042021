"""The Mamba-3 recurrence as one function, over all backends.

For each head, with the state h (P, N) and one time step t (arXiv:2603.15569)::

    θ_t = θ_{t-1} + π tanh(angle_t) Δ_t             how far the state has turned
    b_t = rot(θ_t) (B_t + B_bias)                   c_t = rot(θ_t) (C_t + C_bias)
    α_t = exp(A_t Δ_t)    λ_t = sigmoid(trap_t)
    h_t = α_t h_{t-1} + (1 - λ_t) Δ_t α_t x_{t-1} b_{t-1}ᵀ + λ_t Δ_t x_t b_tᵀ
    y_t = h_t c_t + D x_t                           y_t SiLU(z_t) where there is a gate

The second line of h is the exponential-trapezoidal rule: λ_t shares a step between its two ends;
with λ_t = 1 it is Mamba-2's. With MIMO, B, C and their biases have R ranks, x_t and z_t become
``x_t ∘ mimo.x`` and ``z_t ∘ mimo.z`` for each, h adds the ranks' products, and y is the sum over
the ranks of their gated outputs, each multiplied by ``mimo.o``.
"""

import torch
from torch import Tensor

from megatron_seams_mamba3.ops.contract import Inputs, Mimo, State
from megatron_seams_mamba3.ops.dispatch import choose


def default_chunk(ranks: int) -> int:
    """The authors' steps in a chunk: 64 of one rank, fewer of several, and not below 8.

    It is a power of 2, as their kernels want it, even where the ranks are none.
    """
    return max(8, 64 >> (ranks - 1).bit_length())


def mamba3(
    x: Tensor,
    B: Tensor,
    C: Tensor,
    *,
    log_decay: Tensor,
    dt: Tensor,
    trap: Tensor,
    angle: Tensor,
    B_bias: Tensor,
    C_bias: Tensor,
    D: Tensor,
    z: Tensor | None = None,
    mimo: Mimo | None = None,
    state: State | None = None,
    cu_seqlens: Tensor | None = None,
    chunk: int | None = None,
    keep: bool = True,
    backend: str | None = None,
) -> tuple[Tensor, State | None]:
    """Run the recurrence over every sequence.

    Head n reads group ``n // (H / G)`` of B and C. The state is kept in float32, or in float64 as
    soon as one input is float64, whatever the dtype of x, B and C.

    With ``cu_seqlens`` the row holds several documents, and the state starts anew at each: it is
    replaced, not multiplied by zero, so that not even a NaN crosses a boundary.

    Args:
        x: [B, S, H, P], with ``cu_seqlens`` [1, T, H, P].
        B: [B, S, R, G, N], in x's dtype.
        C: [B, S, R, G, N], in x's dtype.
        log_decay: A Δ, [B, S, H], not above 0, float32 or float64.
        dt: Δ, [B, S, H], above 0, float32 or float64.
        trap: [B, S, H], λ before its sigmoid.
        angle: [B, S, A], 2 · A ≤ N: the speed of rotation, before its tanh.
        B_bias: [H, R, N].
        C_bias: [H, R, N].
        D: [H], the skip.
        z: The gate, [B, S, H, P]; None for none.
        mimo: The ranks' projections; None for R = 1 without them. It also decides which channels
            turn together (:func:`.rotary.rotated`), even with one rank.
        state: What the sequences continue; None where they begin.
        cu_seqlens: Cumulative document lengths, [documents + 1] integers from 0 to T; None for rows
            of one document each.
        chunk: L, the steps that ``torch`` and ``cuda`` take at once; None for
            :func:`default_chunk`. It changes rounding and speed alone.
        keep: Whether to return the last states.
        backend: ``reference``, ``torch`` or ``cuda``; None for the device's own
            (:func:`.dispatch.choose`). ``cuda`` gives the last states without a gradient with MIMO.

    Returns:
        y in x's dtype, [B, S, H, P]; with MIMO and without a gate [B, S, R, H, P], the ranks not
        yet added. And the last states, one for each row or document; None where ``keep`` is False.

    Raises:
        TypeError: x, B and C of different dtypes, or a step or decay of 16 bits.
        ValueError: Shapes or devices that do not fit, a ``cu_seqlens`` that does not describe the
            row, or a backend that there is not.
        CannotRunHere: The backend cannot run on this machine, or not on these tensors.
    """
    inputs = Inputs(
        x=x,
        B=B,
        C=C,
        log_decay=log_decay,
        dt=dt,
        trap=trap,
        angle=angle,
        B_bias=B_bias,
        C_bias=C_bias,
        D=D,
        z=z,
        mimo=mimo,
        state=state,
        cu_seqlens=cu_seqlens,
        chunk=default_chunk(B.shape[2]) if chunk is None else chunk,
        keep=keep,
    )
    inputs.check()
    recurrence = choose(backend, x.device, inputs)
    # Autocast would take the products of the state down to 16 bits.
    with torch.autocast(x.device.type, enabled=False):
        return recurrence(inputs)
