"""The ``torch`` backend: the recurrence in torch alone, for any device that torch has.

Its time is linear in the sequence, and it keeps one state in C for backward; :mod:`.operator` has
the equations. It is several times slower than the compiled backends, and stands in for them.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from megatron_seams_m2rnn.ops.autograd import Gradients, Wanted, differentiable, zeros_for
from megatron_seams_m2rnn.ops.contract import Inputs


def recurrence(inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Run the recurrence; as :func:`.cpu.recurrence.recurrence`, on any device."""
    return differentiable(_forward, _backward, inputs)


def _forward(inputs: Inputs, keep: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    x, run = inputs, _Run(inputs)
    y = x.v.new_empty(x.B, x.S, x.N, x.V)
    last = x.W.new_empty(x.D, x.B, x.N, x.K, x.V, dtype=x.dtype)
    kept = last.new_empty(x.kept_states(), x.N, x.B, x.K, x.V) if keep else None
    slot = 0
    for document, (start, stop) in enumerate(x.spans):
        h = run.initial(document)
        for t0, t1 in run.chunks(start, stop):
            if kept is not None and t0 > start:  # a document's first state is h0, kept anyway
                kept[slot] = h
                slot += 1
            states, _ = run.advance(h, t0, t1)
            h = states[-1]
            query = run.steps(x.q, t0, t1).unsqueeze(-2)
            y[:, t0:t1] = (query @ states[1:]).squeeze(-2).permute(2, 0, 1, 3)
        last[document] = h.transpose(0, 1)
    return y, last, kept


def _backward(
    inputs: Inputs, kept: Tensor, dy: Tensor | None, dlast: Tensor | None, wanted: Wanted
) -> Gradients:
    del wanted  # the sums over heads cost little beside the steps
    x, run = inputs, _Run(inputs)
    dy = zeros_for(dy, x.B, x.S, x.N, x.V, like=x.v)
    dlast = zeros_for(dlast, x.D, x.B, x.N, x.K, x.V, like=kept)
    q, k, v, f, W, h0 = inputs.q, inputs.k, inputs.v, inputs.f, inputs.W, inputs.h0
    dq, dk, dv, df = (torch.empty_like(x) for x in (q, k, v, f))
    dW = torch.zeros_like(run.W)
    gradients, slopes = torch.empty_like(run.z), torch.empty_like(run.z)
    dh0 = None if h0 is None else torch.empty_like(h0)
    slot = len(kept)
    for document, (start, stop) in reversed(list(enumerate(inputs.spans))):
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
            carry = run.retreat(G, dx, carry, z, t0, t1)

            dq[:, t0:t1] = _gathered((states[1:] @ error.unsqueeze(-1)).squeeze(-1), q)
            dk[:, t0:t1] = _gathered((dx @ value.unsqueeze(-1)).squeeze(-1), k)
            dv[:, t0:t1] = _gathered((key.unsqueeze(-2) @ dx).squeeze(-2), v)
            df[:, t0:t1] = _gathered(z.sub_(states[:-1]).mul_(G).sum((-2, -1)).neg_(), f)
            dW += (states[:-1].flatten(2, 3).mT @ dx.flatten(2, 3)).sum(0)
        if dh0 is not None:
            dh0[document] = carry.transpose(0, 1)
    dW = torch.unflatten(dW, 0, (W.shape[0], -1)).sum(1).to(W.dtype)
    return dq, dk, dv, df, dW, dh0


class _Run:
    """One call's inputs, and the loops over time that forward and backward share.

    Inside, a chunk of s steps is laid out [s, N, B, ...]: time outermost, so that a step is a
    contiguous block, and batch beside K, so that one batched product of (B·K, V) by (V, V) for
    each head advances the whole batch.
    """

    def __init__(self, inputs: Inputs) -> None:
        x = inputs
        self.inputs, self.N, self.dtype = x, x.N, x.dtype
        self.W = x.W.to(self.dtype).repeat_interleave(self.N // x.W.shape[0], dim=0)
        # Scratch for one interval, taken once: fresh pages for each chunk would cost more time than
        # the arithmetic on them.
        longest = min(x.every, x.S)
        shape = (self.N, x.B, x.K, x.V)
        self.states = self.W.new_empty(longest + 1, *shape)
        self.z = self.W.new_empty(longest, *shape)

    def chunks(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Cut a document into chunks: ``(t0, t1)``, at the steps whose states are kept."""
        every = self.inputs.every
        for t0 in range(start, stop, every):
            yield t0, min(t0 + every, stop)

    def initial(self, document: int) -> Tensor:
        """The state before a document's first step, [N, B, K, V]."""
        x = self.inputs
        if x.h0 is not None:
            return x.h0[document].transpose(0, 1).to(self.dtype)
        return self.W.new_zeros(self.N, x.B, x.K, x.V)

    def steps(self, x: Tensor, t0: int, t1: int) -> Tensor:
        """Steps t0 … t1 of ``x``, [B, S, Nx, ...], as [s, N, B, ...], its heads repeated to N."""
        chunk = x[:, t0:t1].to(self.dtype).movedim(0, 2)
        return chunk.repeat_interleave(self.N // x.shape[2], dim=1)

    def gate(self, t0: int, t1: int) -> Tensor:
        """The gates of a chunk, [s, N, B, 1, 1]."""
        return self.steps(self.inputs.f, t0, t1)[..., None, None]

    def advance(self, h: Tensor, t0: int, t1: int) -> tuple[Tensor, Tensor]:
        """Step from t0 to t1.

        Returns:
            The states [s + 1, N, B, K, V], the first of them ``h``, and z, [s, N, B, K, V].
        """
        gate = self.gate(t0, t1)
        key, value = (self.steps(x, t0, t1) for x in (self.inputs.k, self.inputs.v))
        states = self.states[: t1 - t0 + 1]
        z = torch.mul(key.unsqueeze(-1), value.unsqueeze(-2), out=self.z[: t1 - t0])
        states[0] = h
        for before, after, z_t, f_t in zip(states, states[1:], z, gate, strict=False):
            rows = z_t.view(self.N, -1, z_t.shape[-1])
            rows.baddbmm_(before.view_as(rows), self.W).tanh_()
            # lerp is exact at both ends: a gate of 1 keeps the state and a gate of 0 takes z.
            torch.lerp(z_t, before, f_t, out=after)
        return states, z

    def retreat(self, G: Tensor, dx: Tensor, carry: Tensor, z: Tensor, t0: int, t1: int) -> Tensor:
        """Carry the state's gradient back from t1 to t0.

        Args:
            G: q dyᵀ, [s, N, B, K, V]; becomes the gradients of the states.
            dx: [s, N, B, K, V]; becomes the gradients of h W + k vᵀ.
            carry: What step t1 hands back, [N, B, K, V].
            z: As :meth:`advance` returned it.
            t0: The first step of the chunk.
            t1: The step after its last.

        Returns:
            The gradient that step t0 hands back, [N, B, K, V].
        """
        gate, clip = self.gate(t0, t1), self.inputs.clip
        transposed = self.W.mT
        backwards = (reversed(x.unbind()) for x in (G, dx, z, gate, 1 - gate))
        for G_t, dx_t, z_t, kept, taken in zip(*backwards, strict=True):
            G_t += carry if clip is None else carry.clamp(-clip, clip)
            # One factor after the other: with 1 - z² multiplied out, an Inf would become a NaN.
            torch.mul(z_t, z_t, out=dx_t)
            dx_t.neg_().add_(1).mul_(G_t).mul_(taken)
            carry = kept * G_t
            rows = carry.view(self.N, -1, carry.shape[-1])
            rows.baddbmm_(dx_t.view_as(rows), transposed)
        return carry


def _gathered(gradient: Tensor, x: Tensor) -> Tensor:
    """Sum [s, N, B, ...] over the state's heads that share a head of ``x``, to [B, s, Nx, ...]."""
    return torch.unflatten(gradient, 1, (x.shape[2], -1)).sum(2).movedim(2, 0)
