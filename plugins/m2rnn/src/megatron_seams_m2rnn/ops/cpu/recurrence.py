"""The ``cpu`` backend: the recurrence in C++ (``csrc/m2rnn.cpp``), on all cores that torch may use.

This module owns every byte that the C++ works on and hands it over through ctypes, which lets other
threads of Python run meanwhile.
"""

import torch
from torch import Tensor

from megatron_seams_m2rnn.ops.autograd import Gradients, Wanted, differentiable, zeros_for
from megatron_seams_m2rnn.ops.contract import Inputs, side_by_side
from megatron_seams_m2rnn.ops.cpu.library import Call, library


def recurrence(inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Run the recurrence.

    Returns:
        y, [B, S, N, V] in v's dtype, and the last states, [D, B, N, K, V] in the state's.

    Raises:
        CannotRunHere: Another process holds the lock of the library's build.
        NotBuilt: The library is not built and cannot be.
    """
    return differentiable(_forward, _backward, inputs)


def _forward(inputs: Inputs, keep: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    run = _Run(inputs)
    y = run.new(inputs.B, inputs.S, inputs.N, inputs.V)
    last = run.new(inputs.D, inputs.B, inputs.N, inputs.K, inputs.V)
    kept = run.new(inputs.kept_states(), inputs.B, inputs.N, inputs.V, run.padded)
    run("forward", y=y, last=last, kept=kept)
    return y.to(inputs.v.dtype), last, kept if keep else None


def _backward(
    inputs: Inputs, kept: Tensor, dy: Tensor | None, dlast: Tensor | None, wanted: Wanted
) -> Gradients:
    del wanted  # the C++ takes all of them in one pass
    x, run = inputs, _Run(inputs)
    dy = zeros_for(dy, x.B, x.S, x.N, x.V, like=x.v)
    dlast = zeros_for(dlast, x.D, x.B, x.N, x.K, x.V, like=kept)
    q, k, v, f, W, h0 = inputs.q, inputs.k, inputs.v, inputs.f, inputs.W, inputs.h0
    gradients = {
        f"d{name}": run.new(*x.shape) for name, x in zip("qkvf", (q, k, v, f), strict=True)
    }
    heads, chunk = (inputs.B, inputs.N), run.every
    dW = run.new(*heads, inputs.V, inputs.V).zero_()
    dh0 = None if h0 is None else run.new(*h0.shape)
    run(
        "backward",
        dy=dy.to(run.dtype).contiguous(),
        dlast=dlast.to(run.dtype).contiguous(),
        **gradients,
        dW=dW,
        dh0=dh0,
        kept=kept,
        carry=run.new(*heads, inputs.V, run.padded),
        part_q=run.new(*heads, chunk, run.padded),
        part_k=run.new(*heads, chunk, run.padded),
        part_v=run.new(*heads, chunk, inputs.V),
        part_f=run.new(*heads, chunk),
    )
    dq, dk, dv, df = gradients.values()
    dW = torch.unflatten(dW.sum(0), 0, (W.shape[0], -1)).sum(1)
    return (
        *(g.to(x.dtype) for g, x in ((dq, q), (dk, k), (dv, v), (df, f), (dW, W))),
        None if h0 is None or dh0 is None else dh0.to(h0.dtype),
    )


class _Run:
    """One call's inputs, in the layout that the C++ reads."""

    def __init__(self, inputs: Inputs) -> None:
        self.dtype = dtype = inputs.dtype
        spans = inputs.spans
        lanes = library().lanes(dtype)
        self.padded = -(-inputs.K // lanes) * lanes
        # Scratch is for one interval, and a short document has no use for a long one.
        longest = max(stop - start for start, stop in spans)
        self.every = max(1, min(inputs.every, longest))
        rows = {name: side_by_side(getattr(inputs, name).to(dtype)) for name in "qkv"}
        W = inputs.W.to(dtype)
        self.tensors: dict[str, Tensor | None] = {
            **rows,
            "f": inputs.f.to(dtype).contiguous(),
            "W": torch.cat([W, W.mT]).contiguous(),
            "h0": None if inputs.h0 is None else inputs.h0.to(dtype).contiguous(),
            "bounds": torch.tensor([span[0] for span in spans] + [spans[-1][1]]),
        }
        heads = inputs.B * inputs.N * len(spans)
        self.counts = {
            "batch": inputs.B,
            "steps": inputs.S,
            "heads": inputs.N,
            "rows": inputs.K,
            "columns": inputs.V,
            "w_heads": W.shape[0],
            "f_heads": inputs.f.shape[2],
            "documents": len(spans),
            "every": self.every,
            "padded_rows": self.padded,
            **{f"{name}_heads": x.shape[2] for name, x in rows.items()},
            **{f"{name}_batch": x.stride(0) for name, x in rows.items()},
            **{f"{name}_step": x.stride(1) for name, x in rows.items()},
            "threads": max(1, min(torch.get_num_threads(), heads)),
        }
        self.columns = inputs.V
        self.clip = float("inf") if inputs.clip is None else inputs.clip

    def new(self, *shape: int) -> Tensor:
        """Allocate memory for the C++ to fill, in the state's dtype."""
        return torch.empty(shape, dtype=self.dtype)

    def __call__(self, direction: str, **tensors: Tensor | None) -> None:
        """Run one direction."""
        counts = self.counts
        scratch = library().scratch(self.dtype, self.every, self.columns, self.padded)
        given = {**self.tensors, **tensors, "own": self.new(counts["threads"], scratch)}
        call = Call(**counts, clip=self.clip)
        for name, x in given.items():
            setattr(call, name, None if x is None else x.data_ptr())
        library().run(direction, self.dtype, call)
