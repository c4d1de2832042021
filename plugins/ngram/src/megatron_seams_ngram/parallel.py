"""What a tensor-parallel group is asked for; a group of None is one rank."""

from typing import TYPE_CHECKING

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
