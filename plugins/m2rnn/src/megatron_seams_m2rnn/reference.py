"""The M²RNN recurrence as plain as it can be written, differentiated by autograd.

The same signature as :func:`megatron_seams_m2rnn.operator.m2rnn`, for reading and for holding
faster implementations to. It keeps every state, and it computes in the dtype of its inputs: give it
float64 to compare with.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from megatron_seams_m2rnn.documents import document_spans


def m2rnn_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    W: Tensor,
    f: Tensor,
    h0: Tensor | None = None,
    *,
    cu_seqlens: Tensor | None = None,
    clip: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Run the recurrence over every sequence, one head at a time.

    Args:
        q: Query, [B, S, Nq, K] or packed [T, Nq, K].
        k: Key, [B, S, Nk, K] or [T, Nk, K].
        v: Value, [B, S, Nv, V] or [T, Nv, V].
        W: Transition matrices, [Nw, V, V].
        f: Forget gates, [B, S, Nf] or [T, Nf].
        h0: Initial states, [B, N, K, V], packed [documents, N, K, V]; None means zero.
        cu_seqlens: Cumulative document lengths, [documents + 1]; None if not packed.
        clip: The bound on each element of the gradient that a step hands back.

    Returns:
        y, [B, S, N, V] or [T, N, V], and the last states, [B, N, K, V] or [documents, N, K, V].
    """
    if cu_seqlens is not None:
        parts = [
            m2rnn_reference(
                q[None, start:stop],
                k[None, start:stop],
                v[None, start:stop],
                W,
                f[None, start:stop],
                None if h0 is None else h0[None, document],
                clip=clip,
            )
            for document, (start, stop) in enumerate(document_spans(cu_seqlens, q.shape[0]))
        ]
        return torch.cat([y[0] for y, _ in parts]), torch.cat([last for _, last in parts])

    batch, steps, _, K = q.shape
    N = max(q.shape[2], k.shape[2], v.shape[2], W.shape[0], f.shape[2])
    if h0 is None:
        h0 = q.new_zeros(batch, N, K, v.shape[-1])
    outputs, states = [], []
    for n in range(N):
        head = _server(n, N)
        h = h0[:, n]
        y = []
        for t in range(steps):
            x = torch.einsum("bk,bv->bkv", head(k[:, t], 1), head(v[:, t], 1))
            gate = head(f[:, t], 1)[:, None, None]
            z = torch.tanh(h @ head(W, 0) + x)
            h = gate * h + (1 - gate) * z
            y.append(torch.einsum("bk,bkv->bv", head(q[:, t], 1), h))
            h = _clip_gradient(h, clip)  # y has read h already: only what step t + 1 hands back
        outputs.append(torch.stack(y, dim=1) if y else q.new_zeros(batch, 0, v.shape[-1]))
        states.append(h)
    return torch.stack(outputs, dim=2), torch.stack(states, dim=1)


def _server(n: int, heads: int) -> Callable[[Tensor, int], Tensor]:
    """Select what serves head ``n``: head ``n // (heads / Nx)`` of a tensor with Nx heads."""
    return lambda x, dim: x.select(dim, n // (heads // x.shape[dim]))


def _clip_gradient(h: Tensor, clip: float | None) -> Tensor:
    if clip is None or not h.requires_grad:
        return h
    carried = h.clone()
    # torch does not annotate register_hook.
    carried.register_hook(lambda gradient: gradient.clamp(-clip, clip))  # type: ignore[no-untyped-call]
    return carried
