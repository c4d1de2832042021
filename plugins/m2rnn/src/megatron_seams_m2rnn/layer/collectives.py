"""What the mixer exchanges with the other tensor-parallel ranks, each with its gradient.

Built from Megatron's own mappings. With one rank in the group everything returns what it is given.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from megatron.core.tensor_parallel.mappings import (
    all_gather_last_dim_from_tensor_parallel_region,
    copy_to_tensor_model_parallel_region,
    reduce_from_tensor_model_parallel_region,
)
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def replicated(parameter: Tensor, group: "ProcessGroup") -> Tensor:
    """Use a parameter that every rank holds whole, for what only this rank computes from it.

    Returns:
        The parameter; its gradient is the sum over the ranks.
    """
    used: Tensor = copy_to_tensor_model_parallel_region(parameter, group=group)
    return used


def summed(x: Tensor, group: "ProcessGroup") -> Tensor:
    """Sum over the ranks, each of which then computes something else from the sum.

    Args:
        x: This rank's share.
        group: The ranks.

    Returns:
        The sum, on every rank; each share's gradient is the sum of the gradients of all its uses.
    """
    total = reduce_from_tensor_model_parallel_region(x, group=group)
    return replicated(total, group)


def gathered(parts: Sequence[Tensor], group: "ProcessGroup") -> list[Tensor]:
    """Join the slices of several tensors along their last dimension, in one exchange.

    Args:
        parts: [..., C_i / ranks] each: this rank's slices.
        group: The ranks, in the order of their slices.

    Returns:
        [..., C_i] each, on every rank; a slice's gradient is the sum over all ranks.
    """
    if group.size() == 1 or not parts:
        return list(parts)
    joined = all_gather_last_dim_from_tensor_parallel_region(
        torch.cat(list(parts), -1), group=group
    )
    slices = torch.unflatten(joined, -1, (group.size(), -1))
    return [x.flatten(-2) for x in torch.split(slices, [x.shape[-1] for x in parts], dim=-1)]
