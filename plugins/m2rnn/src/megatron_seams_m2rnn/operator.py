"""The M²RNN recurrence in torch: time linear in the sequence, memory a fraction of the states.

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

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from megatron_seams_m2rnn.contract import check_dtypes, check_settings, check_shapes
from megatron_seams_m2rnn.documents import document_spans

Spans = tuple[tuple[int, int], ...]


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

    Returns:
        y, [B, S, N, V] or [T, N, V], in v's dtype, and the last states, [B, N, K, V] or
        [documents, N, K, V], in the state's dtype.

    Raises:
        TypeError: q, k and v of different dtypes, or a 16-bit gate.
        ValueError: Shapes or head counts that do not fit, a bound that is not positive, or a
            ``cu_seqlens`` that does not describe the row.
    """
    check_settings(clip, checkpoint_every)
    check_dtypes(q, k, v, f)
    spans: Spans = ((0, q.shape[1]),)
    if cu_seqlens is not None:
        spans = document_spans(cu_seqlens, q.shape[0])
        q, k, v, f = (x.unsqueeze(0) for x in (q, k, v, f))
    # Documents come first in the initial states, so that both layouts are the same loop: packed is
    # D documents of batch 1, not packed is one document of batch B.
    initial = None if h0 is None else h0.unsqueeze(0 if cu_seqlens is None else 1)
    check_shapes(q, k, v, f, W, initial, len(spans))
    # Autocast would take the products of the state down to 16 bits.
    with torch.autocast(q.device.type, enabled=False):
        y, last = _Recurrence.apply(q, k, v, f, W, initial, spans, clip, checkpoint_every)
    return (y, last.squeeze(0)) if cu_seqlens is None else (y.squeeze(0), last.squeeze(1))


class _Recurrence(torch.autograd.Function):
    """The recurrence on [B, S, heads, ...] inputs and [D, B, N, K, V] states."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        f: Tensor,
        W: Tensor,
        h0: Tensor | None,
        spans: Spans,
        clip: float | None,
        every: int,
    ) -> tuple[Tensor, Tensor]:
        run = _Run(q, k, v, f, W, h0, every)
        batch, steps, _, K = q.shape
        y = v.new_empty(batch, steps, run.N, v.shape[-1])
        last = W.new_empty(len(spans), batch, run.N, K, v.shape[-1], dtype=run.dtype)
        kept = last.new_empty(run.intervals(spans), run.N, batch, K, v.shape[-1])
        slot = 0
        for document, (start, stop) in enumerate(spans):
            h = run.initial(document)
            for t0, t1 in run.chunks(start, stop):
                if t0 > start:  # the first state of a document is h0, which is kept anyway
                    kept[slot] = h
                    slot += 1
                states, _ = run.advance(h, t0, t1)
                h = states[-1]
                query = run.steps(q, t0, t1).unsqueeze(-2)
                y[:, t0:t1] = (query @ states[1:]).squeeze(-2).permute(2, 0, 1, 3)
            last[document] = h.transpose(0, 1)
        ctx.save_for_backward(q, k, v, f, W, h0, kept)
        ctx.spans, ctx.clip, ctx.every = spans, clip, every
        return y, last

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, dlast: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, f, W, h0, kept = ctx.saved_tensors
        run = _Run(q, k, v, f, W, h0, ctx.every)
        dq, dk, dv, df = (torch.empty_like(x) for x in (q, k, v, f))
        dW = torch.zeros_like(run.W)
        gradients, slopes = torch.empty_like(run.z), torch.empty_like(run.z)
        dh0 = None if h0 is None else torch.empty_like(h0)
        slot = len(kept)
        for document, (start, stop) in reversed(list(enumerate(ctx.spans))):
            carry = dlast[document].transpose(0, 1).to(run.dtype)
            for t0, t1 in reversed(list(run.chunks(start, stop))):
                if t0 > start:
                    slot -= 1
                    h = kept[slot]
                else:
                    h = run.initial(document)
                states, z = run.advance(h, t0, t1)
                error = run.steps(dy, t0, t1)
                query, key, value = (run.steps(x, t0, t1) for x in (q, k, v))
                G, dx = gradients[: t1 - t0], slopes[: t1 - t0]
                torch.mul(query.unsqueeze(-1), error.unsqueeze(-2), out=G)
                carry = run.retreat(G, dx, carry, z, t0, t1, ctx.clip)

                dq[:, t0:t1] = _gathered((states[1:] @ error.unsqueeze(-1)).squeeze(-1), q)
                dk[:, t0:t1] = _gathered((dx @ value.unsqueeze(-1)).squeeze(-1), k)
                dv[:, t0:t1] = _gathered((key.unsqueeze(-2) @ dx).squeeze(-2), v)
                df[:, t0:t1] = _gathered(z.sub_(states[:-1]).mul_(G).sum((-2, -1)).neg_(), f)
                dW += (states[:-1].flatten(2, 3).mT @ dx.flatten(2, 3)).sum(0)
            if dh0 is not None:
                dh0[document] = carry.transpose(0, 1)
        dW = torch.unflatten(dW, 0, (W.shape[0], -1)).sum(1).to(W.dtype)
        return dq, dk, dv, df, dW, dh0, None, None, None


class _Run:
    """One call's inputs, and the loops over time that forward and backward share.

    Inside, a chunk of s steps is laid out [s, N, B, ...]: time outermost, so that a step is a
    contiguous block, and batch beside K, so that one batched product of (B·K, V) by (V, V) for
    each head advances the whole batch.
    """

    def __init__(
        self, q: Tensor, k: Tensor, v: Tensor, f: Tensor, W: Tensor, h0: Tensor | None, every: int
    ) -> None:
        self.N = max(q.shape[2], k.shape[2], v.shape[2], f.shape[2], W.shape[0])
        self.dtype = f.dtype  # float32 at least
        for x in (q, k, v, W) if h0 is None else (q, k, v, W, h0):
            self.dtype = torch.promote_types(self.dtype, x.dtype)
        self.W = W.to(self.dtype).repeat_interleave(self.N // W.shape[0], dim=0)
        self.k, self.v, self.f, self.h0 = k, v, f, h0
        self.every = every
        # Scratch for one interval, taken once: fresh pages for each chunk would cost more time than
        # the arithmetic on them.
        longest = min(every, q.shape[1])
        shape = (self.N, q.shape[0], q.shape[-1], v.shape[-1])
        self.states = self.W.new_empty(longest + 1, *shape)
        self.z = self.W.new_empty(longest, *shape)

    def chunks(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Cut a document at the steps whose states are kept."""
        for t0 in range(start, stop, self.every):
            yield t0, min(t0 + self.every, stop)

    def intervals(self, spans: Spans) -> int:
        """How many states forward keeps."""
        return sum(max(0, -((start - stop) // self.every) - 1) for start, stop in spans)

    def initial(self, document: int) -> Tensor:
        """Give the state [N, B, K, V] before a document's first step."""
        if self.h0 is not None:
            return self.h0[document].transpose(0, 1).to(self.dtype)
        batch, K, V = self.k.shape[0], self.k.shape[-1], self.v.shape[-1]
        return self.W.new_zeros(self.N, batch, K, V)

    def steps(self, x: Tensor, t0: int, t1: int) -> Tensor:
        """Take steps t0 … t1 of [B, S, Nx, ...] as [s, N, B, ...], each head where it serves."""
        chunk = x[:, t0:t1].to(self.dtype).movedim(0, 2)
        return chunk.repeat_interleave(self.N // x.shape[2], dim=1)

    def gate(self, t0: int, t1: int) -> Tensor:
        """Give the gates of a chunk, [s, N, B, 1, 1]."""
        return self.steps(self.f, t0, t1)[..., None, None]

    def advance(self, h: Tensor, t0: int, t1: int) -> tuple[Tensor, Tensor]:
        """Step from t0 to t1.

        Returns:
            The states [s + 1, N, B, K, V], the first of them ``h``, and z, [s, N, B, K, V].
        """
        gate = self.gate(t0, t1)
        key, value = self.steps(self.k, t0, t1), self.steps(self.v, t0, t1)
        states = self.states[: t1 - t0 + 1]
        z = torch.mul(key.unsqueeze(-1), value.unsqueeze(-2), out=self.z[: t1 - t0])
        states[0] = h
        for before, after, z_t, f_t in zip(states, states[1:], z, gate, strict=False):
            rows = z_t.view(self.N, -1, z_t.shape[-1])
            rows.baddbmm_(before.view_as(rows), self.W).tanh_()
            # lerp is exact at both ends: a gate of 1 keeps the state and a gate of 0 takes z.
            torch.lerp(z_t, before, f_t, out=after)
        return states, z

    def retreat(
        self, G: Tensor, dx: Tensor, carry: Tensor, z: Tensor, t0: int, t1: int, clip: float | None
    ) -> Tensor:
        """Carry the state's gradient back from t1 to t0.

        Args:
            G: q dyᵀ, [s, N, B, K, V]; becomes the gradients of the states.
            dx: [s, N, B, K, V]; becomes the gradients of h W + k vᵀ.
            carry: What step t1 hands back, [N, B, K, V].
            z: As :meth:`advance` returned it.
            t0: The first step of the chunk.
            t1: The step after its last.
            clip: The bound on what a step hands back.

        Returns:
            What step t0 hands back, [N, B, K, V].
        """
        gate = self.gate(t0, t1)
        transposed = self.W.mT
        backwards = (reversed(x.unbind()) for x in (G, dx, z, gate, 1 - gate))
        for G_t, dx_t, z_t, kept, taken in zip(*backwards, strict=True):
            G_t += carry if clip is None else carry.clamp(-clip, clip)
            torch.mul(G_t, taken, out=dx_t)
            dx_t -= dx_t * z_t * z_t
            carry = kept * G_t
            rows = carry.view(self.N, -1, carry.shape[-1])
            rows.baddbmm_(dx_t.view_as(rows), transposed)
        return carry


def _gathered(gradient: Tensor, x: Tensor) -> Tensor:
    """Sum [s, N, B, ...] over the heads that each head of ``x`` served, as [B, s, Nx, ...]."""
    return torch.unflatten(gradient, 1, (x.shape[2], -1)).sum(2).movedim(2, 0)
