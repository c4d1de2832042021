"""The recurrence as one node of autograd, for the backends that take their own gradients."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from megatron_seams_m2rnn.ops.contract import Inputs

#: Whose gradients are asked for: names of :class:`.contract.Inputs`' tensors.
Wanted = frozenset[str]

#: From the inputs, and whether anything will be differentiated, to y [B, S, N, V] in v's dtype, the
#: last states [D, B, N, K, V] in the state's, and the states that backward starts from, in a layout
#: of the backend's own; None where nothing will be differentiated.
Forward = Callable[[Inputs, bool], tuple[Tensor, Tensor, Tensor | None]]

#: From the inputs, those states, the gradients of y and of the last states (None for zeros), and
#: whose gradients are asked for, to the gradients of q, k, v, f, W and h0, each in its input's
#: shape and dtype; None for one that is not asked for.
Backward = Callable[[Inputs, Tensor, Tensor | None, Tensor | None, Wanted], "Gradients"]
Gradients = tuple[Tensor | None, ...]

_NAMES = ("q", "k", "v", "f", "W", "h0")


def differentiable(forward: Forward, backward: Backward, inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Run ``forward``, and later ``backward``, which cannot be differentiated again.

    Returns:
        y and the last states, as ``forward`` returns them.
    """
    x = inputs
    settings = {"documents": x.documents, "clip": x.clip, "every": x.every}
    tensors = (x.q, x.k, x.v, x.f, x.W, x.h0)
    keep = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)
    outputs: tuple[Tensor, Tensor] = _Recurrence.apply(forward, backward, keep, settings, *tensors)
    return outputs


class _Recurrence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        forward: Forward,
        backward: Backward,
        keep: bool,
        settings: dict[str, Any],
        *tensors: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        y, last, kept = forward(_inputs(tensors, settings), keep)
        ctx.save_for_backward(*tensors, kept)
        ctx.set_materialize_grads(False)
        ctx.take, ctx.settings = backward, settings
        return y, last

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor | None, dlast: Tensor | None) -> tuple[Tensor | None, ...]:
        *tensors, kept = ctx.saved_tensors
        asked = ctx.needs_input_grad[4:]
        wanted = frozenset(name for name, so in zip(_NAMES, asked, strict=True) if so)
        inputs = _inputs(tensors, ctx.settings)
        return None, None, None, None, *ctx.take(inputs, kept, dy, dlast, wanted)


def _inputs(tensors: Any, settings: dict[str, Any]) -> Inputs:
    q, k, v, f, W, h0 = tensors
    return Inputs(q=q, k=k, v=v, f=f, W=W, h0=h0, **settings)


def zeros_for(gradient: Tensor | None, *shape: int, like: Tensor) -> Tensor:
    """Return ``gradient``, or the zeros of ``shape`` that a missing one stands for."""
    return like.new_zeros(shape) if gradient is None else gradient
