"""The ``torch`` backend: the recurrence in torch alone, a chunk of steps at a time, on any device.

Step s enters the state twice, λ_s Δ_s x_s b_sᵀ at step s and (1 - λ_{s+1}) Δ_{s+1} x_s b_sᵀ just
before step s + 1 decays it. So for t > s both decay alike, and with ``ahead_s`` for the second
weight and ``l`` for the running sum of the log decays of a chunk, a chunk's outputs are a product
under a mask, as in Mamba-2::

    y_t = Σ_{s<t} exp(l_t - l_s) (λ_s Δ_s + ahead_s) (c_t · b_s) x_s + λ_t Δ_t (c_t · b_t) x_t
          + exp(l_t) H c_t

H is the state before the chunk, with what the step before it still owes. Chunks hand it on one
after the other; all else runs over all chunks at once.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional

from megatron_seams_mamba3.ops.contract import Inputs, State
from megatron_seams_mamba3.ops.layout import Chunks
from megatron_seams_mamba3.ops.rotary import rotated


def recurrence(inputs: Inputs) -> tuple[Tensor, State | None]:
    """Run the recurrence; see :func:`.operator.mamba3`."""
    run = _Run(inputs.wide())
    return run.outputs().to(inputs.x.dtype), run.last() if inputs.keep else None


class _Run:
    """One call. Inside, a chunk's tensors are [B, chunks, H, L, ...], with L · R in L's place of
    those that have ranks, the ranks of a step beside one another.
    """

    def __init__(self, inputs: Inputs) -> None:
        x = self.inputs = inputs
        longest = max(stop - start for start, stop in x.spans)
        self.chunks = Chunks(spans=x.spans, length=max(1, min(x.chunk, longest)))
        self.R = x.B.shape[2]
        weight = torch.sigmoid(x.trap)
        self.now = self._by_head(weight * x.dt)
        self.owed = (1 - weight) * x.dt
        self.decays = self._by_head(x.log_decay).cumsum(-1)
        self.angles = self._angles()
        self.b, self.c = self._turned(x.B, x.B_bias), self._turned(x.C, x.C_bias)
        self.u = self._ranks(self.chunks.cut(x.x).transpose(2, 3)).flatten(3, 4)
        self.weights = self.now + self._by_head(self._ahead())
        self.before, self.states = self._states()

    def outputs(self) -> Tensor:
        """Y, in the operator's shape."""
        x = self.inputs
        y = self._within() + self._from_before()
        y = torch.unflatten(y, 3, (-1, self.R))  # [B, chunks, H, L, R, P]
        y = self.chunks.join(y.transpose(2, 3))  # [B, S, H, R, P]
        y = y + x.D[:, None, None] * self._ranks(x.x)
        if x.z is None:
            return y.squeeze(3) if x.mimo is None else y.transpose(2, 3)
        if x.mimo is None:
            return y.squeeze(3) * functional.silu(x.z)
        return (y * functional.silu(x.z[:, :, :, None] * x.mimo.z) * x.mimo.o).sum(3)

    def last(self) -> State:
        """The states after each sequence's last step."""
        x = self.inputs
        ends = []
        for document, chunks in self.chunks.documents():
            start, stop = x.spans[document]
            if start == stop:
                ends.append(self._given(document))
                continue
            slot = stop - start - 1 - (len(chunks) - 1) * self.chunks.length
            b = torch.unflatten(self.b[:, chunks[-1]], 2, (-1, self.R))[:, :, slot]
            angle = torch.remainder(self.angles[:, chunks[-1], :, -1], 2 * math.pi)
            ends.append((angle, self.states[document], b, x.x[:, stop - 1]))
        angle, h, b, last = (torch.cat(parts) for parts in zip(*ends, strict=True))
        return State(angle=angle, h=h, b=b, x=last)

    def _by_head(self, x: Tensor) -> Tensor:
        """Lay [B, S, H] out as [B, chunks, H, L]."""
        return self.chunks.cut(x).transpose(2, 3)

    def _ranks(self, x: Tensor) -> Tensor:
        """Project [..., H, P] or, in chunks, [..., H, L, P] to the same with R before P."""
        mimo = self.inputs.mimo
        if mimo is None:
            return x.unsqueeze(-2)
        projection = mimo.x if x.dim() == 4 else mimo.x[:, None]
        return x.unsqueeze(-2) * projection

    def _given(self, document: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Angle, h, b and x that a document's sequences continue, or zeros."""
        x = self.inputs
        if x.state is not None:
            of, given = x.rows(document), x.state
            return given.angle[of], given.h[of], given.b[of], given.x[of]
        rows, _, H, P = x.x.shape
        N, zeros = x.B.shape[-1], x.x.new_zeros
        angle = zeros(rows, H, x.angle.shape[-1])
        return angle, zeros(rows, H, P, N), zeros(rows, H, self.R, N), zeros(rows, H, P)

    def _angles(self) -> Tensor:
        """How far each step has turned, [B, chunks, H, L, A]."""
        x = self.inputs
        turns = math.pi * torch.tanh(x.angle)[:, :, None] * x.dt[..., None]
        within = self.chunks.cut(turns).transpose(2, 3).cumsum(3)
        bases = []
        for document, chunks in self.chunks.documents():
            base = self._given(document)[0]
            for chunk in chunks:
                bases.append(base)
                base = torch.remainder(base + within[:, chunk, :, -1], 2 * math.pi)
        return within + torch.stack(bases, dim=1)[:, :, :, None]

    def _turned(self, values: Tensor, bias: Tensor) -> Tensor:
        """Give B or C, [B, S, R, G, N], to heads, with bias and rotation: [B, chunks, H, LR, N]."""
        heads = bias.shape[0] // values.shape[3]
        of_heads = self.chunks.cut(values).movedim(4, 2).repeat_interleave(heads, dim=2)
        biased = of_heads + bias[:, None]  # [B, chunks, H, L, R, N]
        angles = self.angles[:, :, :, :, None]
        return rotated(biased, angles, halves=self.inputs.mimo is not None).flatten(3, 4)

    def _ahead(self) -> Tensor:
        """The weight of each step's input that the next step adds, [B, S, H]; 0 at an end."""
        ahead = functional.pad(self.owed[:, 1:], (0, 0, 0, 1))
        ends = [stop - 1 for start, stop in self.inputs.spans if stop > start]
        last = torch.zeros(ahead.shape[1], dtype=torch.bool)
        last[ends] = True
        # Selected away, not multiplied by zero: not even a NaN of the next document comes through.
        return torch.where(last.to(ahead.device)[:, None], 0, ahead)

    def _states(self) -> tuple[Tensor, list[Tensor]]:
        """The states before chunks, [B, chunks, H, P, N], and after documents, [B, H, P, N]."""
        x = self.inputs
        left = torch.exp(self.decays[..., -1:] - self.decays) * self.weights
        added = self.u.mT @ (self.b * self._spread(left)[..., None])
        kept = torch.exp(self.decays[..., -1])[..., None, None]
        before, lasts = [], []
        for document, chunks in self.chunks.documents():
            _, h, b, previous = self._given(document)
            if chunks and x.state is not None:
                owed = self.owed[:, x.spans[document][0]][..., None, None]
                h = h + owed * (self._ranks(previous[:, None]).squeeze(1).mT @ b)
            for chunk in chunks:
                before.append(h)
                h = kept[:, chunk] * h + added[:, chunk]
            lasts.append(h)
        return torch.stack(before, dim=1), lasts

    def _within(self) -> Tensor:
        """The part of each step's output from its own chunk, [B, chunks, H, LR, P]."""
        length, ranks = self.chunks.length, self.R
        earlier = torch.ones(length, length, dtype=torch.bool, device=self.u.device).tril(-1)
        # Masked before the exponential: above the diagonal it may be infinite.
        gap = (self.decays[..., :, None] - self.decays[..., None, :]).masked_fill(~earlier, 0)
        share = (gap.exp() * self.weights[..., None, :]).masked_fill(~earlier, 0)
        share = share + torch.diag_embed(self.now)
        products = torch.unflatten(self.c @ self.b.mT, -1, (length, ranks))
        products = torch.unflatten(products, 3, (length, ranks)) * share[..., :, None, :, None]
        return products.flatten(5, 6).flatten(3, 4) @ self.u

    def _from_before(self) -> Tensor:
        """The part of each step's output from the state before its chunk, [B, chunks, H, LR, P]."""
        return self._spread(self.decays.exp())[..., None] * (self.c @ self.before.mT)

    def _spread(self, x: Tensor) -> Tensor:
        """Repeat each step's value for its ranks: [..., L] to [..., L R]."""
        return x.repeat_interleave(self.R, dim=-1)
