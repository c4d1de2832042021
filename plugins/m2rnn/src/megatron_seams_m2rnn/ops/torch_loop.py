"""The ``torch`` backend: the recurrence in torch alone, for any device that torch has.

Time linear in the sequence, and one state in :math:`C` kept for backward; :mod:`operator
<megatron_seams_m2rnn.ops.operator>` has the equations. It is several times slower than the backends
that are compiled, and what runs where none of them can.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from megatron_seams.runtime.documents import Spans
from megatron_seams_m2rnn.ops.contract import kept_states, state_dtype, state_heads


def recurrence(
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
    """Run the recurrence; arguments and results as :func:`.cpu.recurrence.recurrence`."""
    outputs: tuple[Tensor, Tensor] = _Recurrence.apply(q, k, v, f, W, h0, spans, clip, every)
    return outputs


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
        kept = last.new_empty(kept_states(spans, every), run.N, batch, K, v.shape[-1])
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
        self.N = state_heads(q, k, v, f, W)
        self.dtype = state_dtype(q, f, W, h0)
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
