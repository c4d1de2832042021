"""The ``reference`` backend: the recurrence as plain as it can be written.

One head and one step at a time, every state kept, differentiated by autograd: for reading, and for
testing the fast backends. It computes in the state's dtype throughout; give it float64 to
compare with.
"""

import torch
from torch import Tensor

from megatron_seams_m2rnn.ops.contract import Inputs


def recurrence(inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Run the recurrence; as :func:`.cpu.recurrence.recurrence`, but keeping all states."""
    x = inputs
    q, k, v, f, W = (tensor.to(x.dtype) for tensor in (x.q, x.k, x.v, x.f, x.W))
    h0 = q.new_zeros(x.D, x.B, x.N, x.K, x.V) if x.h0 is None else x.h0.to(x.dtype)
    documents = [
        _document(*(tensor[:, start:stop] for tensor in (q, k, v, f)), W=W, h0=initial, clip=x.clip)
        for (start, stop), initial in zip(x.spans, h0, strict=True)
    ]
    y = torch.cat([y for y, _ in documents], dim=1)
    return y.to(x.v.dtype), torch.stack([last for _, last in documents])


def _document(
    q: Tensor, k: Tensor, v: Tensor, f: Tensor, *, W: Tensor, h0: Tensor, clip: float | None
) -> tuple[Tensor, Tensor]:
    """Run one document of B rows from the states h0, [B, N, K, V]."""
    N = h0.shape[1]
    outputs, states = [], []
    for n in range(N):
        W_n = _serving(W, 0, n, N)
        h = h0[:, n]
        y = [v.new_empty(v.shape[0], 0, v.shape[-1])]  # of a document with no steps
        # unbind and not x[:, t], whose gradient is as large as x at every step.
        steps = (_serving(x, 2, n, N).unbind(1) for x in (q, k, v, f))
        for q_t, k_t, v_t, f_t in zip(*steps, strict=True):
            x = k_t.unsqueeze(2) * v_t.unsqueeze(1)
            gate = f_t[:, None, None]
            z = torch.tanh(h @ W_n + x)
            h = gate * h + (1 - gate) * z
            y.append(q_t.unsqueeze(1) @ h)
            h = _clip_gradient(h, clip)  # y has read h already: only what step t + 1 hands back
        outputs.append(torch.cat(y, dim=1))
        states.append(h)
    return torch.stack(outputs, dim=2), torch.stack(states, dim=1)


def _serving(x: Tensor, dim: int, n: int, heads: int) -> Tensor:
    """Select what serves head ``n``: head ``n // (heads / Nx)`` of a tensor with Nx heads."""
    return x.select(dim, n // (heads // x.shape[dim]))


def _clip_gradient(h: Tensor, clip: float | None) -> Tensor:
    if clip is None or not h.requires_grad:
        return h
    carried = h.clone()
    # torch does not annotate register_hook.
    carried.register_hook(lambda gradient: gradient.clamp(-clip, clip))  # type: ignore[no-untyped-call]
    return carried
