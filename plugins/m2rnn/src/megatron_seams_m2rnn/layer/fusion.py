"""Elementwise steps of the mixer, one kernel each on a GPU."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def fused(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Let ``torch.compile`` fuse a function of tensors where a model is trained on a GPU.

    Elsewhere it runs as it is: on a CPU, where compiling takes longer than it saves; outside of
    training, since the lengths that inference asks for change all the time; and inside a compiled
    model, which fuses it itself.

    Recomputation runs a layer without gradients first. Other kernels would round otherwise there,
    and the gradients would be those of another loss: so the kernels are the ones with gradients.

    Args:
        function: From tensors, or None for one that is missing, to a tensor.

    Returns:
        The function, which takes ``training`` besides: whether its module is in training mode.
    """

    @functools.cache
    def compiled() -> Callable[..., Tensor]:
        made: Callable[..., Tensor] = torch.compile(function)
        return made

    @functools.wraps(function)
    def chosen(x: Tensor, *others: Any, training: bool) -> Tensor:
        trained = x.is_cuda and training and not torch.is_inference_mode_enabled()
        if torch.compiler.is_compiling() or not trained:
            return function(x, *others)
        if torch.is_grad_enabled():
            return compiled()(x, *others)
        with torch.enable_grad():
            return compiled()(*map(_with_gradient, (x, *others))).detach()

    return chosen


def _with_gradient(x: Tensor | None) -> Tensor | None:
    """A tensor as it comes in a pass with gradients, since a kernel is compiled for that."""
    if x is None or not x.is_floating_point() or isinstance(x, nn.Parameter):
        return x
    return x.detach().requires_grad_()
