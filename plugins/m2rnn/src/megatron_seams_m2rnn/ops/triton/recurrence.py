"""The ``triton`` backend: the recurrence on a GPU (:mod:`triton_kernels`).

Backward goes through the row in segments, from the last one: what each head of the state asks of a
head of q, k, v or f that it shares is kept for one segment only, then summed in the order of heads.
"""

from collections.abc import Iterator
from typing import Any, Final

import attrs
import torch
import triton  # type: ignore[import-untyped]  # Triton ships no types
import triton.language as tl  # type: ignore[import-untyped]  # likewise
from torch import Tensor
from torch.autograd.function import once_differentiable

from megatron_seams.runtime.documents import Spans
from megatron_seams_m2rnn.ops.contract import side_by_side, state_dtype, state_heads
from megatron_seams_m2rnn.ops.triton import kernels as triton_kernels

#: The largest K and V: a state is held in the registers of one block of threads.
LARGEST: Final = 128
#: Chunks of a segment.
_CHUNKS: Final = 16


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
    """Run the recurrence; arguments and results as :func:`..cpu.recurrence.recurrence`.

    The operands of matrix products are rounded to bfloat16 where q has 16 bits (float16 has not the
    range of a gradient), and not at all where it is float32 or float64.

    Raises:
        ValueError: K or V above :data:`LARGEST`.
    """
    if max(q.shape[-1], v.shape[-1]) > LARGEST:
        message = (
            f"backend 'triton' takes K and V up to {LARGEST}; found K = {q.shape[-1]}, "
            f"V = {v.shape[-1]}"
        )
        raise ValueError(message)
    outputs: tuple[Tensor, Tensor] = _Recurrence.apply(q, k, v, f, W, h0, spans, clip, every)
    return outputs


class _Recurrence(torch.autograd.Function):
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
        run = _Run.of(q, k, v, f, W, h0, spans, every)
        y = v.new_empty(run.B, run.S, run.N, run.V)
        last = run.new(len(spans), run.B, run.N, run.K, run.V)
        kept = run.new(max(0, (run.S - 1) // every), run.B, run.N, run.K, run.V)
        if last.numel():
            triton_kernels.forward[(len(spans) * run.B * run.N,)](
                *run.inputs, y, last, kept, run.B, run.S, *run.strides, **run.constants
            )
        ctx.save_for_backward(q, k, v, f, W, h0, kept)
        ctx.spans, ctx.clip, ctx.every = spans, clip, every
        return y, last

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, dlast: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, f, W, h0, kept = ctx.saved_tensors
        run = _Run.of(q, k, v, f, W, h0, ctx.spans, ctx.every)
        dy = dy.contiguous()
        carry = dlast.to(run.dtype).clone(memory_format=torch.contiguous_format)
        gradients = [torch.empty_like(x) for x in (q, k, v, f)]
        dW = run.new(run.N, run.V, run.V).zero_()
        for segment in segments(ctx.spans, ctx.every, _CHUNKS * ctx.every):
            heads = (run.B, segment.high - segment.low, run.N)
            parts = [run.new(*heads, *size) for size in ((run.K,), (run.K,), (run.V,), ())]
            part_w = run.new(segment.documents, run.B, run.N, run.V, run.V)
            block = (run.constants["BLOCK_K"], run.constants["BLOCK_V"])
            states = run.new(segment.steps, run.B, run.N, *block)
            triton_kernels.backward[(segment.documents * run.B * run.N,)](
                *run.inputs,
                kept,
                dy,
                carry,
                torch.tensor(segment.room, device=q.device),
                states,
                torch.empty_like(states),
                *parts,
                part_w,
                run.B,
                run.S,
                *run.strides,
                segment.low,
                segment.high,
                segment.first,
                CLIP=ctx.clip,
                **run.constants,
            )
            for gradient, part in zip(gradients, parts, strict=True):
                shared = torch.unflatten(part, 2, (gradient.shape[2], -1)).sum(3)
                gradient[:, segment.low : segment.high] = shared
            dW += part_w.sum((0, 1))
        dW = torch.unflatten(dW, 0, (W.shape[0], -1)).sum(1).to(W.dtype)
        dh0 = None if h0 is None else carry.to(h0.dtype)
        return (*gradients, dW, dh0, None, None, None)


@attrs.frozen(kw_only=True)
class Segment:
    """Steps of a row that one launch goes back through.

    Attributes:
        low: The first step, a multiple of the steps between kept states.
        high: The step after the last.
        first: The number of the first document that has steps here.
        documents: How many documents, from that one on.
        room: Where the scratch of each begins: it needs one chunk's.
        steps: The steps of scratch of all of them.
    """

    low: int
    high: int
    first: int
    documents: int
    room: tuple[int, ...]
    steps: int


def segments(spans: Spans, every: int, length: int) -> Iterator[Segment]:
    """Cut a row into segments, the last one first.

    Args:
        spans: The documents of the row.
        every: Steps between kept states.
        length: Steps of a segment, a multiple of ``every``.
    """
    total = spans[-1][1]
    for low in reversed(range(0, total, length)):
        high = min(low + length, total)
        here = [d for d, (start, stop) in enumerate(spans) if start < high and stop > low]
        room, steps = [], 0
        # An empty document between two others has no steps, and its programs find none.
        for start, stop in spans[here[0] : here[-1] + 1]:
            room.append(steps)
            steps += max(0, min(every, min(stop, high) - max(start, low)))
        yield Segment(
            low=low, high=high, first=here[0], documents=len(room), room=tuple(room), steps=steps
        )


@attrs.frozen(kw_only=True)
class _Run:
    """One call's inputs, as the kernels take them."""

    dtype: torch.dtype
    B: int
    S: int
    N: int
    K: int
    V: int
    inputs: tuple[Tensor, ...]
    strides: tuple[int, ...]
    constants: dict[str, Any]

    @classmethod
    def of(
        cls,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        f: Tensor,
        W: Tensor,
        h0: Tensor | None,
        spans: Spans,
        every: int,
    ) -> "_Run":
        """Lay the inputs out and derive the constants that the kernels are compiled for."""
        dtype = state_dtype(q, f, W, h0)
        N, K, V = state_heads(q, k, v, f, W), q.shape[-1], v.shape[-1]
        rows = [side_by_side(x) for x in (q, k, v)]
        bounds = torch.tensor([start for start, _ in spans] + [spans[-1][1]], device=q.device)
        initial = W if h0 is None else h0.contiguous()  # W is not read there
        state = tl.float64 if dtype is torch.float64 else tl.float32
        rounded = tl.bfloat16 if q.dtype.itemsize == 2 else state
        block_k, block_v = (max(16, triton.next_power_of_2(size)) for size in (K, V))
        return cls(
            dtype=dtype,
            B=q.shape[0],
            S=q.shape[1],
            N=N,
            K=K,
            V=V,
            inputs=(*rows, f.contiguous(), W.contiguous(), initial, bounds),
            strides=tuple(stride for x in rows for stride in x.stride()[:2]),
            constants={
                "N": N,
                "K": K,
                "V": V,
                **{f"{name}_SHARE": N // x.shape[2] for name, x in zip("QKV", rows, strict=True)},
                "W_SHARE": N // W.shape[0],
                "F_SHARE": N // f.shape[2],
                "HAS_H0": h0 is not None,
                "C": every,
                "BLOCK_K": block_k,
                "BLOCK_V": block_v,
                "ROUNDED": rounded,
                # The interpreter multiplies bfloat16 by its bits; in float32 the numbers are those
                # of a GPU's tensor cores.
                "MULTIPLIED": state if triton_kernels.INTERPRETED else rounded,
                "num_warps": min(8, block_k // 16),
                # Two large states in flight at a time would not fit in an SM's shared memory.
                "num_stages": 3 if block_k * block_v <= 2048 else 1,
                "enable_fp_fusion": True,  # said, since Triton's own default changes
            },
        )

    def new(self, *shape: int) -> Tensor:
        """Memory in the state's dtype."""
        return self.inputs[0].new_empty(shape, dtype=self.dtype)
