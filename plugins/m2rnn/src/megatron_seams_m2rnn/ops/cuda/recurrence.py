"""The ``cuda`` backend: the recurrence on a Hopper GPU and later (``csrc/``).

This module owns every byte that the kernels work on. One launch goes forward and one goes back, and
nothing waits for the GPU, so that both can be captured in a CUDA graph.
"""

from typing import Final

import torch
from torch import Tensor

from megatron_seams_m2rnn.ops.autograd import Gradients, Wanted, differentiable, zeros_for
from megatron_seams_m2rnn.ops.contract import Inputs, side_by_side
from megatron_seams_m2rnn.ops.cuda import library
from megatron_seams_m2rnn.ops.cuda.kernel import Kernel
from megatron_seams_m2rnn.ops.cuda.library import Call
from megatron_seams_m2rnn.ops.cuda.rule import (
    backward_plan,
    forward_kernel,
    kept_every,
    machine,
)

#: The steps of a row whose parts of dq and dk are on their way between blocks.
_RING: Final = 256


def recurrence(inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Run the recurrence; as :func:`..cpu.recurrence.recurrence`, where :mod:`.rule` allows it.

    The operands of products are rounded to float16 where they are states, which never leave the
    larger of 1 and their beginning (bfloat16 where that is beyond float16), and to bfloat16 where
    they are gradients. One state in 8, 16 or 32 is kept,
    as the operand of its product, whatever the inputs' interval: as many steps as backward works
    on in the memory of a multiprocessor.
    """
    return differentiable(_forward, _backward, inputs)


def _forward(inputs: Inputs, keep: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    x = inputs
    y = x.v.new_empty(x.B, x.S, x.N, x.V)
    last = x.f.new_empty(x.D, x.B, x.N, x.K, x.V)
    has = machine(x.q.device)
    every = kept_every(x, has)
    kept = None
    if keep:  # numbers of 16 bits: float16, or bfloat16 for a state that float16 cannot hold
        shape = (max(0, (x.S - 1) // every), x.B, x.N, x.K, x.V)
        kept = x.q.new_empty(shape, dtype=torch.int16)
    if last.numel():
        _launch(
            x, forward_kernel(has.sizes(x)), x.D * x.B * x.N, y=y, last=last, kept=kept, every=every
        )
    return y, last, kept


def _backward(
    inputs: Inputs, kept: Tensor, dy: Tensor | None, dlast: Tensor | None, wanted: Wanted
) -> Gradients:
    x = inputs
    if dy is None and "q" in wanted:  # nothing has read q
        return torch.zeros_like(x.q), *_backward(x, kept, dy, dlast, wanted - {"q"})[1:]
    plan = backward_plan(x, machine(x.q.device), wanted)
    wide = x.f.new_empty
    dq, dk, dv = (
        torch.empty_like(tensor, memory_format=torch.contiguous_format) if name in wanted else None
        for name, tensor in (("q", x.q), ("k", x.k), ("v", x.v))
    )
    shares = x.v.shape[2] < x.N
    dv_heads = wide(x.B, x.S, x.N, x.V) if shares and "v" in wanted else None
    df = wide(x.B, x.S, x.N) if "f" in wanted else None
    dW = wide(plan.slots, x.N, x.V, x.V) if "W" in wanted else None
    dh0 = wide(x.D, x.B, x.N, x.K, x.V) if "h0" in wanted else None
    ring = _RING // plan.segment
    rings = [
        wide(plan.slots, ring, x.N, plan.segment, x.K)
        if gradient is not None and gradient.shape[2] < x.N
        else None
        for gradient in (dq, dk)
    ]
    progress = None
    if any(found is not None for found in rings):
        progress = torch.zeros(4, plan.slots, x.N, dtype=torch.int32, device=x.q.device)
    _launch(
        x,
        plan.kernel,
        plan.slots * x.N,
        kept=kept,
        dy=zeros_for(dy, x.B, x.S, x.N, x.V, like=x.v).contiguous(),
        dlast=None if dlast is None else dlast.contiguous(),
        dq=dq,
        dk=dk,
        dv=None if shares else dv,
        dv_heads=dv_heads,
        df=df,
        dW=dW,
        dh0=dh0,
        ring_q=rings[0],
        ring_k=rings[1],
        progress=progress,
        every=plan.segment,
        slots=plan.slots,
        ring=ring,
    )
    if dv_heads is not None:
        dv = _served(dv_heads, 2, x.v.shape[2]).to(x.v.dtype)
    return (
        dq,
        dk,
        dv,
        None if df is None else _served(df, 2, x.f.shape[2]),
        None if dW is None else _served(dW.sum(0), 0, x.W.shape[0]).to(x.W.dtype),
        None if dh0 is None or x.h0 is None else dh0.to(x.h0.dtype),
    )


def _served(gradient: Tensor, dim: int, heads: int) -> Tensor:
    """Sum over the heads of the state that each of ``heads`` heads of an input serves."""
    if gradient.shape[dim] == heads:
        return gradient
    return torch.unflatten(gradient, dim, (heads, -1)).sum(dim + 1)


def _launch(
    inputs: Inputs,
    kernel: Kernel,
    blocks: int,
    *,
    every: int,
    slots: int = 0,
    ring: int = 0,
    **tensors: Tensor | None,
) -> None:
    x = inputs
    rows = {name: _aligned(tensor) for name, tensor in (("q", x.q), ("k", x.k), ("v", x.v))}
    given = {
        **rows,
        "f": x.f.contiguous(),
        "W": x.W.contiguous(),
        "h0": None if x.h0 is None else x.h0.float().contiguous(),
        "cumulative": x.documents.on(x.q.device),
        **tensors,
    }
    call = Call(
        batch=x.B,
        steps=x.S,
        heads=x.N,
        documents=x.D,
        **{f"{name}_share": x.N // tensor.shape[2] for name, tensor in rows.items()},
        w_share=x.N // x.W.shape[0],
        f_share=x.N // x.f.shape[2],
        **{f"{name}_batch": tensor.stride(0) for name, tensor in rows.items()},
        **{f"{name}_step": tensor.stride(1) for name, tensor in rows.items()},
        every=every,
        slots=slots,
        ring=ring,
        clip=0.0 if x.clip is None else x.clip,
    )
    for name, tensor in given.items():
        if tensor is not None:
            setattr(call, name, tensor.data_ptr())
    library.launch(kernel, call, blocks=blocks, device=x.q.device)


def _aligned(x: Tensor) -> Tensor:
    """Lay ``x`` out for copies of 16 bytes: heads side by side, rows at multiples of 16 bytes."""
    x = side_by_side(x)
    steps = zip(x.stride()[:2], x.shape[:2], strict=True)
    odd = x.data_ptr() % 16 or any(stride % 8 for stride, size in steps if size > 1)
    return x.clone(memory_format=torch.contiguous_format) if odd else x
