"""Elementwise steps of the mixer, one kernel each on a GPU."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def fused(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Let ``torch.compile`` fuse a function of tensors where a model is trained on a GPU.

    Elsewhere it runs as it is: on a CPU, where compiling takes longer than it saves; where no
    gradient is wanted, since the lengths that inference asks for change all the time; and inside a
    compiled model, which fuses it itself.

    Args:
        function: From tensors, or None for one that is missing, to a tensor.
    """

    @functools.cache
    def compiled() -> Callable[..., Tensor]:
        made: Callable[..., Tensor] = torch.compile(function)
        return made

    @functools.wraps(function)
    def chosen(x: Tensor, *others: Any) -> Tensor:
        if torch.compiler.is_compiling() or not (x.is_cuda and torch.is_grad_enabled()):
            return function(x, *others)
        return compiled()(x, *others)

    return chosen
