"""The ``cpu`` backend: the recurrence in C++ (``csrc/m2rnn.cpp``), on all cores that torch may use.

This module owns every byte that the C++ works on and hands it over through ctypes, which lets other
threads of Python run meanwhile.
"""

import ctypes
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from megatron_seams.runtime.documents import Spans
from megatron_seams_m2rnn.ops.contract import (
    kept_states,
    side_by_side,
    state_dtype,
    state_heads,
)
from megatron_seams_m2rnn.ops.cpu.library import library

_COUNTS = (
    *("batch", "steps", "heads", "rows", "columns"),
    *("q_heads", "k_heads", "v_heads", "w_heads", "f_heads"),
    *("q_batch", "q_step", "k_batch", "k_step", "v_batch", "v_step"),
    *("documents", "every", "padded_rows", "threads"),
)
_TENSORS = (
    *("bounds", "q", "k", "v", "f", "W", "h0", "dy", "dlast"),
    *("y", "last", "dq", "dk", "dv", "df", "dW", "dh0", "kept"),
    *("own", "carry", "part_q", "part_k", "part_v", "part_f"),
)


class Call(ctypes.Structure):
    """``M2rnnCall``, field by field."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in _COUNTS),
        ("clip", ctypes.c_double),
        *((name, ctypes.c_void_p) for name in _TENSORS),
    )


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
    """Run the recurrence; :func:`megatron_seams_m2rnn.ops.operator.m2rnn` checks what comes in.

    Args:
        q: [B, S, Nq, K].
        k: [B, S, Nk, K].
        v: [B, S, Nv, V].
        f: [B, S, Nf], float32 or float64.
        W: [Nw, V, V].
        h0: [D, B, N, K, V], or None for zero.
        spans: The first and the next-to-last step of each of D documents.
        clip: The bound on each element of the gradient that a step hands back; None for none.
        every: Steps between the states kept for backward.

    Returns:
        y, [B, S, N, V] in v's dtype, and the last states, [D, B, N, K, V] in the state's.

    Raises:
        CannotRunHere: The library is not built and cannot be.
    """
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
        dtype = state_dtype(q, f, W, h0)
        run = _Run(q, k, v, f, W, h0, spans=spans, clip=clip, every=every, dtype=dtype)
        y = run.new(run.B, run.S, run.N, run.V)
        last = run.new(len(spans), run.B, run.N, run.K, run.V)
        kept = run.new(kept_states(spans, every), run.B, run.N, run.V, run.padded)
        run("forward", y=y, last=last, kept=kept)
        ctx.save_for_backward(q, k, v, f, W, h0, kept)
        ctx.spans, ctx.clip, ctx.every, ctx.dtype = spans, clip, every, dtype
        return y.to(v.dtype), last

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, dlast: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, f, W, h0, kept = ctx.saved_tensors
        settings = {"spans": ctx.spans, "clip": ctx.clip, "every": ctx.every, "dtype": ctx.dtype}
        run = _Run(q, k, v, f, W, h0, **settings)
        inputs = {"q": q, "k": k, "v": v, "f": f}
        gradients = {f"d{name}": run.new(*x.shape) for name, x in inputs.items()}
        heads = (run.B, run.N)
        dW = run.new(*heads, run.V, run.V).zero_()
        dh0 = None if h0 is None else run.new(*h0.shape)
        chunk = run.every
        run(
            "backward",
            dy=dy.to(run.dtype).contiguous(),
            dlast=dlast.to(run.dtype).contiguous(),
            **gradients,
            dW=dW,
            dh0=dh0,
            kept=kept,
            carry=run.new(*heads, run.V, run.padded),
            part_q=run.new(*heads, chunk, run.padded),
            part_k=run.new(*heads, chunk, run.padded),
            part_v=run.new(*heads, chunk, run.V),
            part_f=run.new(*heads, chunk),
        )
        dq, dk, dv, df = (gradients[f"d{name}"] for name in "qkvf")
        dW = torch.unflatten(dW.sum(0), 0, (W.shape[0], -1)).sum(1)
        return (
            *(g.to(x.dtype) for g, x in ((dq, q), (dk, k), (dv, v), (df, f), (dW, W))),
            None if h0 is None or dh0 is None else dh0.to(h0.dtype),
            None,
            None,
            None,
        )


class _Run:
    """One call's inputs, in the layout that the C++ reads."""

    def __init__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        f: Tensor,
        W: Tensor,
        h0: Tensor | None,
        *,
        spans: Spans,
        clip: float | None,
        every: int,
        dtype: torch.dtype,
    ) -> None:
        self.dtype = dtype
        self.B, self.S, _, self.K = q.shape
        self.V, self.N = v.shape[-1], state_heads(q, k, v, f, W)
        lanes = library().lanes(dtype)
        self.padded = -(-self.K // lanes) * lanes
        # Scratch is for one interval, and a short document has no use for a long one.
        self.every = max(1, min(every, max(stop - start for start, stop in spans)))
        rows = {name: side_by_side(x.to(dtype)) for name, x in (("q", q), ("k", k), ("v", v))}
        weights = W.to(dtype)
        self.tensors: dict[str, Tensor | None] = {
            **rows,
            "f": f.to(dtype).contiguous(),
            "W": torch.cat([weights, weights.mT]).contiguous(),
            "h0": None if h0 is None else h0.to(dtype).contiguous(),
            "bounds": torch.tensor([span[0] for span in spans] + [spans[-1][1]]),
        }
        self.counts = {
            "batch": self.B,
            "steps": self.S,
            "heads": self.N,
            "rows": self.K,
            "columns": self.V,
            "w_heads": W.shape[0],
            "f_heads": f.shape[2],
            "documents": len(spans),
            "every": self.every,
            "padded_rows": self.padded,
            **{f"{name}_heads": x.shape[2] for name, x in rows.items()},
            **{f"{name}_batch": x.stride(0) for name, x in rows.items()},
            **{f"{name}_step": x.stride(1) for name, x in rows.items()},
            "threads": max(1, min(torch.get_num_threads(), self.B * self.N * len(spans))),
        }
        self.clip = float("inf") if clip is None else clip

    def new(self, *shape: int) -> Tensor:
        """Memory for the C++ to fill."""
        return torch.empty(shape, dtype=self.dtype)

    def __call__(self, direction: str, **tensors: Tensor | None) -> None:
        """Run one direction."""
        counts = self.counts
        scratch = library().scratch(self.dtype, self.every, self.V, self.padded)
        given = {**self.tensors, **tensors, "own": self.new(counts["threads"], scratch)}
        call = Call(**counts, clip=self.clip)
        for name, x in given.items():
            setattr(call, name, None if x is None else x.data_ptr())
        library().run(direction, self.dtype, call)
