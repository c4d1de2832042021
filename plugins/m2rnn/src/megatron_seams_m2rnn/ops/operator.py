"""The M²RNN recurrence as one function, over all backends.

For each head, with the state h (K, V), the transition matrix W (V, V) and one time step t::

    z_t = tanh(h_{t-1} W + k_t v_tᵀ)
    h_t = f_t h_{t-1} + (1 - f_t) z_t
    y_t = q_tᵀ h_t

(arXiv:2603.14360). Backward, with G the running gradient ∂L/∂h_t::

    G       = clip(G_carry) + q_t dy_tᵀ
    dq_t    = h_t dy_t                      df_t = Σ (h_{t-1} - z_t) ∘ G
    dx_t    = (1 - f_t) G ∘ (1 - z_t²)      dk_t = dx_t v_t       dv_t = dx_tᵀ k_t
    dW     += h_{t-1}ᵀ dx_t
    G_carry = f_t G + dx_t Wᵀ

``clip`` clamps every element to [-c, c]. It acts on what step t + 1 hands back, *before* step t
adds its own share: the rule of the authors' Triton kernel, with which the paper's models were
trained. Their torch path clamps the sum instead, which gives other gradients.
"""

import torch
from torch import Tensor

from megatron_seams_m2rnn.ops.contract import Inputs
from megatron_seams_m2rnn.ops.dispatch import choose
from megatron_seams_m2rnn.ops.documents import Documents


def m2rnn(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    W: Tensor,
    f: Tensor,
    h0: Tensor | None = None,
    *,
    cu_seqlens: Tensor | None = None,
    clip: float | None = None,
    checkpoint_every: int = 32,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Run the recurrence over every sequence.

    Head n of N reads head ``n // (N / Nx)`` of an input with Nx heads; N is the largest of Nq, Nk,
    Nv, Nw and Nf, and each divides it. The state is kept in float32, or in float64 as soon as one
    input is float64, whatever the dtype of q, k and v.

    With ``cu_seqlens`` the row holds several documents, the dimensions B and S of every input merge
    into T, and the state starts anew at each document. It is replaced, not multiplied by zero: not
    even a NaN crosses the boundary.

    Args:
        q: Query, [B, S, Nq, K] or [T, Nq, K].
        k: Key, [B, S, Nk, K] or [T, Nk, K], in q's dtype.
        v: Value, [B, S, Nv, V] or [T, Nv, V], in q's dtype.
        W: Transition matrices, [Nw, V, V].
        f: Forget gates in [0, 1], [B, S, Nf] or [T, Nf], float32 or float64. A gate near 1 in a
            16-bit dtype rounds to exactly 1, and its state would never move.
        h0: Initial states, [B, N, K, V], packed [documents, N, K, V]; None means zero.
        cu_seqlens: Cumulative document lengths, [documents + 1] integers from 0 to T; None for
            inputs that are not packed.
        clip: The bound c on each element of the gradient that a step hands back; None for no bound.
            The gradient of the last state is such a gradient too, and that of ``h0`` is returned
            before it is bounded, so that a sequence split over two calls has the gradients of one.
        checkpoint_every: Steps between the states kept for backward. Fewer states kept cost more
            scratch memory in backward, which recomputes one interval at a time.
        backend: ``reference``, ``torch``, ``cpu``, ``triton`` or ``cuda``; None for the device's
            own (:func:`.dispatch.choose`). Each is deterministic, and each gives the others'
            numbers to the rounding of the state's dtype (``triton`` and ``cuda``: of the operands
            of their products, which have 16 bits where q, k and v have).

    Returns:
        y, [B, S, N, V] or [T, N, V], in v's dtype, and the last states, [B, N, K, V] or
        [documents, N, K, V], in the state's dtype.

    Raises:
        TypeError: q, k and v of different dtypes, or a 16-bit gate.
        ValueError: Shapes, head counts or devices that do not fit, a bound that is not positive,
            a ``cu_seqlens`` that does not describe the row, or a backend that there is not.
        CannotRunHere: The backend cannot run on this machine, or not on these tensors.
    """
    if cu_seqlens is None:
        documents = Documents(steps=q.shape[1])
    else:
        documents = Documents.packed(cu_seqlens, q.shape[0])
        q, k, v, f = (x.unsqueeze(0) for x in (q, k, v, f))
    # Documents come first in the initial states, so that both layouts are the same loop: packed is
    # D documents of batch 1, not packed is one document of batch B.
    initial = None if h0 is None else h0.unsqueeze(0 if cu_seqlens is None else 1)
    inputs = Inputs(
        q=q, k=k, v=v, f=f, W=W, h0=initial, documents=documents, clip=clip, every=checkpoint_every
    )
    inputs.check()
    recurrence = choose(backend, q.device, inputs)
    # Autocast would take the products of the state down to 16 bits.
    with torch.autocast(q.device.type, enabled=False):
        y, last = recurrence(inputs)
    return (y, last.squeeze(0)) if cu_seqlens is None else (y.squeeze(0), last.squeeze(1))
