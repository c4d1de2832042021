"""The ``triton`` backend: the recurrence on a GPU (:mod:`.kernels`).

Backward goes through the row in segments, from the last one: the gradients that the heads of the
state give to a shared head of q, k, v or f are kept for one segment only, then summed in the order
of heads.
"""

from collections.abc import Iterator
from typing import Any, Final

import attrs
import torch
import triton  # type: ignore[import-untyped]  # Triton ships no types
import triton.language as tl  # type: ignore[import-untyped]  # likewise
from torch import Tensor

from megatron_seams.runtime.documents import Spans
from megatron_seams_m2rnn.ops.autograd import differentiable
from megatron_seams_m2rnn.ops.contract import Inputs, side_by_side
from megatron_seams_m2rnn.ops.triton import kernels

#: The largest K and V: a state is in the registers of one block of threads.
LARGEST: Final = 128
#: The number of chunks in a segment.
_CHUNKS: Final = 16


def recurrence(inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Run the recurrence; as :func:`..cpu.recurrence.recurrence`, on a GPU.

    The operands of matrix products are rounded to bfloat16 where q has 16 bits (float16 has not the
    range of a gradient), and not at all where it is float32 or float64.

    Raises:
        ValueError: K or V above :data:`LARGEST`.
    """
    if max(inputs.K, inputs.V) > LARGEST:
        message = (
            f"backend 'triton' takes K and V up to {LARGEST}; found K = {inputs.K}, V = {inputs.V}"
        )
        raise ValueError(message)
    return differentiable(_forward, _backward, inputs)


def _forward(inputs: Inputs) -> tuple[Tensor, Tensor, Tensor]:
    x, launch = inputs, Launch.of(inputs)
    y = x.v.new_empty(x.B, x.S, x.N, x.V)
    last = launch.new(len(x.spans), x.B, x.N, x.K, x.V)
    kept = launch.new(max(0, (x.S - 1) // x.every), x.B, x.N, x.K, x.V)
    if last.numel():
        kernels.forward[(len(x.spans) * x.B * x.N,)](
            *launch.inputs, y, last, kept, x.B, x.S, *launch.strides, **launch.constants
        )
    return y, last, kept


def _backward(inputs: Inputs, kept: Tensor, dy: Tensor, dlast: Tensor) -> tuple[Tensor | None, ...]:
    x, launch = inputs, Launch.of(inputs)
    dy = dy.contiguous()
    carry = dlast.to(launch.dtype).clone(memory_format=torch.contiguous_format)
    gradients = [torch.empty_like(part) for part in (x.q, x.k, x.v, x.f)]
    dW = launch.new(x.N, x.V, x.V).zero_()
    for segment in segments(x.spans, x.every, _CHUNKS * x.every):
        heads = (x.B, segment.high - segment.low, x.N)
        parts = [launch.new(*heads, *size) for size in ((x.K,), (x.K,), (x.V,), ())]
        part_w = launch.new(segment.documents, x.B, x.N, x.V, x.V)
        block = (launch.constants["BLOCK_K"], launch.constants["BLOCK_V"])
        states = launch.new(segment.steps, x.B, x.N, *block)
        kernels.backward[(segment.documents * x.B * x.N,)](
            *launch.inputs,
            kept,
            dy,
            carry,
            torch.tensor(segment.room, device=x.q.device),
            states,
            torch.empty_like(states),
            *parts,
            part_w,
            x.B,
            x.S,
            *launch.strides,
            segment.low,
            segment.high,
            segment.first,
            CLIP=x.clip,
            **launch.constants,
        )
        for gradient, part in zip(gradients, parts, strict=True):
            shared = torch.unflatten(part, 2, (gradient.shape[2], -1)).sum(3)
            gradient[:, segment.low : segment.high] = shared
        dW += part_w.sum((0, 1))
    dW = torch.unflatten(dW, 0, (x.W.shape[0], -1)).sum(1).to(x.W.dtype)
    dh0 = None if x.h0 is None else carry.to(x.h0.dtype)
    return *gradients, dW, dh0


@attrs.frozen(kw_only=True)
class Segment:
    """The steps of a row that one launch takes backward.

    Attributes:
        low: The first step, a multiple of the steps between kept states.
        high: The step after the last.
        first: The number of the first document that has steps here.
        documents: How many documents, from that one on.
        room: The step of scratch at which each document's part begins; it has room for one chunk.
        steps: The steps of scratch of all documents.
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
        # An empty document between two others has no steps, and its programs do nothing.
        for start, stop in spans[here[0] : here[-1] + 1]:
            room.append(steps)
            steps += max(0, min(every, min(stop, high) - max(start, low)))
        yield Segment(
            low=low, high=high, first=here[0], documents=len(room), room=tuple(room), steps=steps
        )


@attrs.frozen(kw_only=True, eq=False)  # a tensor's own == compares elements
class Launch:
    """One call's inputs, as the kernels take them.

    Attributes:
        dtype: The state's.
        inputs: The kernels' first arguments, ``q`` to ``bounds``.
        strides: Batch and step of q, k and v, in elements.
        constants: What the kernels are compiled for, and the options to compile them with.
    """

    dtype: torch.dtype
    inputs: tuple[Tensor, ...]
    strides: tuple[int, ...]
    constants: dict[str, Any]

    @classmethod
    def of(cls, inputs: Inputs) -> "Launch":
        """Lay the inputs out and derive the constants that the kernels are compiled for."""
        q, f, W, dtype, N = inputs.q, inputs.f, inputs.W, inputs.dtype, inputs.N
        spans = inputs.spans
        rows = [side_by_side(x) for x in (q, inputs.k, inputs.v)]
        bounds = torch.tensor([start for start, _ in spans] + [spans[-1][1]], device=q.device)
        initial = W if inputs.h0 is None else inputs.h0.contiguous()  # W is not read there
        state = tl.float64 if dtype is torch.float64 else tl.float32
        rounded = tl.bfloat16 if q.dtype.itemsize == 2 else state
        block_k, block_v = (max(16, triton.next_power_of_2(x)) for x in (inputs.K, inputs.V))
        return cls(
            dtype=dtype,
            inputs=(*rows, f.contiguous(), W.contiguous(), initial, bounds),
            strides=tuple(stride for x in rows for stride in x.stride()[:2]),
            constants={
                "N": N,
                "K": inputs.K,
                "V": inputs.V,
                **{f"{name}_SHARE": N // x.shape[2] for name, x in zip("QKV", rows, strict=True)},
                "W_SHARE": N // W.shape[0],
                "F_SHARE": N // f.shape[2],
                "HAS_H0": inputs.h0 is not None,
                "C": inputs.every,
                "BLOCK_K": block_k,
                "BLOCK_V": block_v,
                "ROUNDED": rounded,
                # The interpreter multiplies bfloat16 by its bits; in float32 the numbers are those
                # of a GPU's tensor cores.
                "MULTIPLIED": state if kernels.INTERPRETED else rounded,
                "num_warps": min(8, block_k // 16),
                # Two large states in flight at a time would not fit in an SM's shared memory.
                "num_stages": 3 if block_k * block_v <= 2048 else 1,
                "enable_fp_fusion": True,  # given, since Triton's own default changes
            },
        )

    def new(self, *shape: int) -> Tensor:
        """Allocate memory in the state's dtype."""
        return self.inputs[0].new_empty(shape, dtype=self.dtype)
