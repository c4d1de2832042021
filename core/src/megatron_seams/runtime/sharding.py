"""Parameters that are divided over tensor-parallel ranks, and their part in Megatron's checkpoints.

A checkpoint of Megatron's describes each tensor as a shard of a whole, so that a model saved at one
parallel size loads at another. Upstream's linears do this by themselves; :class:`ShardedModule`
does it for parameters of a seam's own, and for a parameter that holds several parts, each divided
by itself (:func:`sharded_parts`).

Importing this module imports torch. Megatron is imported when a state is asked for, so that a
module of torch alone runs without it.
"""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from megatron_seams.runtime.collectives import rank_in, size_of

if TYPE_CHECKING:
    from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory
    from torch.distributed import ProcessGroup

#: Upstream's ``sharded_offsets``: ``(axis, this shard, shards)`` for each dimension that upstream
#: puts before a tensor's own.
Offsets = tuple[tuple[int, int, int], ...]


def own_rows(x: Tensor, parts: Iterable[int], group: "ProcessGroup | None") -> Tensor:
    """Cut each part of ``x`` into equal blocks of rows and keep this rank's block of each.

    Args:
        x: [Σ parts, ...].
        parts: The rows of each part, in order; the ranks divide each.
        group: The ranks; None for a single one.

    Returns:
        [Σ parts / ranks, ...].
    """
    ranks = size_of(group)
    if ranks == 1:
        return x
    return torch.cat([part.chunk(ranks)[rank_in(group)] for part in torch.split(x, list(parts))])


class ShardedModule(nn.Module):
    """A module that describes its state, and its children's, to Megatron's checkpoints.

    Children with a ``sharded_state_dict`` describe themselves; the others are taken as whole on
    every rank. A module of Megatron's derives from both, from this one first.

    Attributes:
        tp_group: The tensor-parallel ranks; None for a single one. The subclass sets it.
    """

    tp_group: "ProcessGroup | None"

    def divided(self) -> Mapping[str, int]:
        """The module's own parameters and buffers that the ranks divide -> along which dimension.

        Those that are not named are whole on every rank.
        """
        return {}

    def divided_parts(self) -> Mapping[str, Mapping[str, int]]:
        """Parameters of several parts, each divided by itself along the first dimension.

        Returns:
            A parameter's name, after those of children (``in_proj.weight``) -> each part's name ->
            its rows on this rank, in order. A checkpoint has the parts one by one
            (:func:`sharded_parts`).
        """
        return {}

    def sharded_state_dict(
        self,
        prefix: str = "",
        sharded_offsets: Offsets = (),
        metadata: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Describe the state, as upstream calls it.

        Args:
            prefix: Of the keys.
            sharded_offsets: The dimensions that upstream puts before a tensor's own.
            metadata: Upstream's.

        Returns:
            Key -> upstream's ``ShardedTensor``, or ``ShardedObject`` for state that is no tensor.
        """
        from megatron.core.transformer.utils import (
            ensure_metadata_has_dp_cp_group,
            make_sharded_tensors_for_checkpoint,
            sharded_state_dict_default,
        )

        metadata = ensure_metadata_has_dp_cp_group(metadata)
        own: dict[str, Any] = {}
        self._save_to_state_dict(own, "", keep_vars=True)
        state: dict[str, Any] = make_sharded_tensors_for_checkpoint(
            own,
            prefix,
            dict(self.divided()),
            sharded_offsets,
            tp_group=self.tp_group,
            dp_cp_group=metadata["dp_cp_group"],
        )
        for name, child in self.named_children():
            state |= sharded_state_dict_default(
                child, f"{prefix}{name}.", sharded_offsets, metadata, tp_group=self.tp_group
            )
        for name, parts in self.divided_parts().items():
            key = f"{prefix}{name}"
            state[key] = sharded_parts(
                state[key], parts, tp_group=self.tp_group, sharded_offsets=sharded_offsets
            )
        return state


def sharded_parts(
    whole: "ShardedTensor",
    parts: Mapping[str, int],
    *,
    tp_group: "ProcessGroup | None",
    sharded_offsets: Offsets = (),
) -> "ShardedTensorFactory":
    """Describe a parameter of several parts to Megatron's checkpoints part by part.

    As one tensor it would be a row of blocks [q k v][q k v]…, one block for each tensor-parallel
    rank, and could not be read at another size. Part by part it can.

    Args:
        whole: The parameter as one tensor; gives the key, the data and the replica.
        parts: Each part's name -> its rows on this rank, in order.
        tp_group: The tensor-parallel ranks; None for a single one.
        sharded_offsets: Those that ``whole`` was made with.

    Returns:
        A factory of one sharded tensor for each part, with the part's name after the key, which
        joins them after a load. An optimizer makes the same of its own states.
    """
    from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory

    axis = len(sharded_offsets)
    place = (*sharded_offsets, (axis, rank_in(tp_group), size_of(tp_group)))

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
            for name, part in zip(parts, torch.split(tensor, list(parts.values())), strict=True)
        ]

    return ShardedTensorFactory(whole.key, whole.data, build, torch.cat, whole.replica_id)
