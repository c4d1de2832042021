"""The recurrence as one node of autograd, for the backends that take their own gradients."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from megatron_seams_m2rnn.ops.contract import Inputs

#: From the inputs to y [B, S, N, V] in v's dtype, the last states [D, B, N, K, V] in the state's,
#: and the states that backward starts from, in a layout of the backend's own.
Forward = Callable[[Inputs], tuple[Tensor, Tensor, Tensor]]

#: From the inputs, those states, and the gradients of y and of the last states, to the gradients of
#: q, k, v, f, W and h0, each in its input's shape and dtype; None for h0 where there is none.
Backward = Callable[[Inputs, Tensor, Tensor, Tensor], "tuple[Tensor | None, ...]"]


def differentiable(forward: Forward, backward: Backward, inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Run ``forward``, and later ``backward``, which cannot be differentiated again.

    Returns:
        y and the last states, as ``forward`` returns them.
    """
    x = inputs
    settings = {"spans": x.spans, "clip": x.clip, "every": x.every}
    tensors = (x.q, x.k, x.v, x.f, x.W, x.h0)
    outputs: tuple[Tensor, Tensor] = _Recurrence.apply(forward, backward, settings, *tensors)
    return outputs


class _Recurrence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        forward: Forward,
        backward: Backward,
        settings: dict[str, Any],
        *tensors: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        y, last, kept = forward(_inputs(tensors, settings))
        ctx.save_for_backward(*tensors, kept)
        ctx.take, ctx.settings = backward, settings
        return y, last

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, dlast: Tensor) -> tuple[Tensor | None, ...]:
        *tensors, kept = ctx.saved_tensors
        return None, None, None, *ctx.take(_inputs(tensors, ctx.settings), kept, dy, dlast)


def _inputs(tensors: Any, settings: dict[str, Any]) -> Inputs:
    q, k, v, f, W, h0 = tensors
    return Inputs(q=q, k=k, v=v, f=f, W=W, h0=h0, **settings)
