"""Parameters that hold several parts, each of which is split over the ranks by itself."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def own_rows(x: Tensor, widths: Iterable[int], group: "ProcessGroup") -> Tensor:
    """Cut each part of ``x`` into equal blocks of rows and keep this rank's block of each.

    Args:
        x: [Σ widths, ...].
        widths: The rows of each part, in order.
        group: The ranks.

    Returns:
        [Σ widths / ranks, ...].
    """
    ranks, rank = group.size(), group.rank()
    if ranks == 1:
        return x
    return torch.cat([part.chunk(ranks)[rank] for part in torch.split(x, list(widths))])


def sharded_parts(
    whole: ShardedTensor,
    widths: Mapping[str, int],
    sharded_offsets: tuple[tuple[int, int, int], ...],
    tp_group: "ProcessGroup",
) -> ShardedTensorFactory:
    """Describe a fused parameter to Megatron's checkpoints part by part.

    As one tensor it would be a row of blocks [q k v][q k v]…, one block for each tensor-parallel
    rank, and could not be read at another size. Part by part it can.

    Args:
        whole: The parameter as one tensor; gives the key, the data and the replica.
        widths: Each part's name and its rows on this rank, in order.
        sharded_offsets: Those that ``whole`` was made with.
        tp_group: The tensor-parallel ranks.

    Returns:
        What gives one sharded tensor for each part, with the part's name after the key, and joins
        them after a load. An optimizer makes the same of its own states.
    """
    axis = len(sharded_offsets)
    place = (*sharded_offsets, (axis, tp_group.rank(), tp_group.size()))

    def build(
        key: str, tensor: Tensor, replica_id: Any, flattened_range: slice | None
    ) -> list[ShardedTensor]:
        return [
            ShardedTensor.from_rank_offsets(
                f"{key}.{name}",
                part,
                *place,
                replica_id=replica_id,
                prepend_axis_num=axis,
                flattened_range=flattened_range,
            )
            for name, part in zip(widths, torch.split(tensor, list(widths.values())), strict=True)
        ]

    return ShardedTensorFactory(whole.key, whole.data, build, torch.cat, whole.replica_id)
