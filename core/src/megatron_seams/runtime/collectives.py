"""Exchanges between the ranks of a group, each with its gradient, over Megatron's own mappings.

The functions differ in what follows them: whether every rank goes on to compute the same, or each
something of its own. That decides the gradient, so a wrong choice computes the right losses and
trains another model; the conformance kit takes a step for this reason.

The group is a tensor-parallel one in each case; with None, a single rank, nothing is exchanged. A
sequence that is divided over the group has its pieces in the order of the ranks, as under
Megatron's sequence parallelism.

Importing this module imports torch. Megatron is imported where there is something to exchange, so
that a module of torch alone runs without it.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def size_of(group: "ProcessGroup | None") -> int:
    """Count the ranks of the group; None is one rank."""
    return 1 if group is None else group.size()


def rank_in(group: "ProcessGroup | None") -> int:
    """Return this process's rank in the group; 0 in None."""
    return 0 if group is None else group.rank()


def replicated(x: Tensor, group: "ProcessGroup | None") -> Tensor:
    """Use what every rank holds whole, such as a parameter, in what only this rank computes.

    Args:
        x: The same on every rank.
        group: The ranks.

    Returns:
        ``x``; its gradient is the sum of the ranks' gradients.
    """
    if size_of(group) == 1:
        return x
    from megatron.core.tensor_parallel.mappings import copy_to_tensor_model_parallel_region

    used: Tensor = copy_to_tensor_model_parallel_region(x, group=group)
    return contiguous_gradient(used)


def contiguous_gradient(x: Tensor) -> Tensor:
    """``x``, whose gradient is made contiguous before it goes on.

    Until 0.18 upstream's sum over ranks loses one that is strided, as that of a slice is.
    """
    same: Tensor = _ContiguousGradient.apply(x)
    return same


class _ContiguousGradient(torch.autograd.Function):
    @staticmethod
    def forward(_: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(_: Any, *gradients: Tensor) -> Tensor:
        return gradients[0].contiguous()


def summed(part: Tensor, group: "ProcessGroup | None") -> Tensor:
    """Add the parts of all ranks, for what every rank goes on to compute alike.

    Where each rank goes on to compute something of its own from the sum, wrap it:
    ``replicated(summed(part, group), group)``.

    Args:
        part: This rank's part.
        group: The ranks.

    Returns:
        The sum, on every rank; each part's gradient is the sum's.
    """
    if size_of(group) == 1:
        return part
    from megatron.core.tensor_parallel.mappings import reduce_from_tensor_model_parallel_region

    total: Tensor = reduce_from_tensor_model_parallel_region(part, group=group)
    return total


def summed_and_scattered(part: Tensor, group: "ProcessGroup | None") -> Tensor:
    """Add the parts of all ranks and give each rank its piece of the sum's first dimension.

    Args:
        part: [s, ...], this rank's part; the ranks divide s.
        group: The ranks.

    Returns:
        [s / ranks, ...]; a part's gradient is the pieces' gradients, joined.
    """
    if size_of(group) == 1:
        return part
    from megatron.core.tensor_parallel.mappings import reduce_scatter_to_sequence_parallel_region

    piece: Tensor = reduce_scatter_to_sequence_parallel_region(part, group=group)
    return piece


def gathered(parts: Sequence[Tensor], group: "ProcessGroup | None") -> list[Tensor]:
    """Join the slices of several tensors along their last dimension, in one exchange.

    Args:
        parts: [..., C_i / ranks] each: this rank's slices.
        group: The ranks, in the order of their slices.

    Returns:
        [..., C_i] each, on every rank, for what each goes on to compute by itself; a slice's
        gradient is the sum over all ranks.
    """
    if size_of(group) == 1 or not parts:
        return list(parts)
    from megatron.core.tensor_parallel.mappings import (
        all_gather_last_dim_from_tensor_parallel_region,
    )

    whole = all_gather_last_dim_from_tensor_parallel_region(torch.cat(list(parts), -1), group=group)
    slices = torch.unflatten(whole, -1, (size_of(group), -1))
    return [x.flatten(-2) for x in torch.split(slices, [x.shape[-1] for x in parts], dim=-1)]


def preceding(piece: Tensor, length: int, group: "ProcessGroup | None") -> Tensor:
    """Fetch the positions before this rank's piece of a sequence that the group divides.

    Args:
        piece: [s / ranks, ...], this rank's piece.
        length: How many positions.
        group: The ranks, in the order of the sequence.

    Returns:
        [length, ...]: the last positions before the piece, zeros where the sequence has none. Their
        gradients go to the ranks that have them.
    """
    nothing = piece.new_zeros(length, *piece.shape[1:])
    if size_of(group) == 1 or length == 0:
        return nothing
    from megatron.core.tensor_parallel.mappings import gather_from_sequence_parallel_region

    # Every rank's end, which is all of a piece that is shorter; and also on the first rank, which
    # reads none of them but must be there when the gradients come back.
    ends: Tensor = gather_from_sequence_parallel_region(piece[-length:], group=group)
    before = ends[: rank_in(group) * min(length, len(piece))]
    return torch.cat([nothing, before])[-length:]


def following(piece: Tensor, length: int, group: "ProcessGroup | None") -> Tensor:
    """Fetch the positions after this rank's piece of a sequence that the group divides.

    Args:
        piece: [s / ranks, ...], this rank's piece.
        length: How many positions, no more than a piece has.
        group: The ranks, in the order of the sequence.

    Returns:
        [length, ...]: the first positions after the piece, zeros where the sequence has none. Their
        gradients go to the ranks that have them.
    """
    nothing = piece.new_zeros(length, *piece.shape[1:])
    if size_of(group) == 1:
        return nothing
    from megatron.core.tensor_parallel.mappings import gather_from_sequence_parallel_region

    # Every rank's beginning; also on the last rank, which reads none of them but must be there
    # when the gradients come back.
    begins: Tensor = gather_from_sequence_parallel_region(piece[:length], group=group)
    return torch.cat([begins, nothing])[(rank_in(group) + 1) * length :][:length]
