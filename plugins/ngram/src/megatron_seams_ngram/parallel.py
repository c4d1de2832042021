"""What a tensor-parallel group is asked for; a group of None is one rank."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def size_of(group: "ProcessGroup | None") -> int:
    """Ranks in the group."""
    return 1 if group is None else group.size()


def rank_in(group: "ProcessGroup | None") -> int:
    """This process's rank in it."""
    return 0 if group is None else group.rank()


def summed(part: Tensor, group: "ProcessGroup | None") -> Tensor:
    """Add the parts of all ranks; every rank gets the whole, and each part the whole gradient."""
    if size_of(group) == 1:
        return part
    from megatron.core.tensor_parallel.mappings import reduce_from_tensor_model_parallel_region

    whole: Tensor = reduce_from_tensor_model_parallel_region(part, group=group)
    return whole


def summed_and_scattered(part: Tensor, group: "ProcessGroup | None") -> Tensor:
    """Add the parts [s, ...] of all ranks; each gets its own piece [s / ranks, ...] of the sum."""
    if size_of(group) == 1:
        return part
    from megatron.core.tensor_parallel.mappings import reduce_scatter_to_sequence_parallel_region

    piece: Tensor = reduce_scatter_to_sequence_parallel_region(part, group=group)
    return piece


def preceding(piece: Tensor, length: int, group: "ProcessGroup | None") -> Tensor:
    """The end of what the ranks before this one have of a sequence that is divided over the group.

    Args:
        piece: [s / ranks, ...], this rank's piece of the sequence.
        length: How many positions.
        group: The ranks, in the order of the sequence; None where the piece is all of it.

    Returns:
        [length, ...]: the last positions before the piece, zeros where the sequence has none.
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
