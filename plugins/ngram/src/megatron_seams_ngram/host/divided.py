"""Where a distributed optimizer, which steps a part of every parameter, has those beside the rows.

It keeps neither the parameters nor all of their groups: each data-parallel rank has slices, and a
parameter may have none on a rank. Its groups are the same on all ranks, in the same order.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn


def is_divided(native: Any) -> bool:
    """Whether an optimizer of upstream's is a distributed one that steps something."""
    from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

    return isinstance(native, DistributedOptimizer) and not native.is_stub_optimizer


def group_divided(native: Any, beside: Sequence[nn.Parameter]) -> int | None:
    """Find the group of some parameters; a collective over the ranks that share the optimizer.

    Args:
        native: A distributed optimizer.
        beside: Parameters; the same ones on every rank.

    Returns:
        The least number of a group that has one of them on some rank; None if the optimizer has
        none of them, and then nothing is asked of other ranks.
    """
    every = {id(one) for buffer in native.buffers for one in buffer.param_index_map}
    if not any(id(one) in every for one in beside):
        return None
    here = native.model_param_group_index_map
    numbers = [here[one][0] for one in beside if one in here]
    none = len(native.param_groups)
    group = native.data_parallel_group
    gpu = dist.get_backend(group) == "nccl"
    device = torch.device("cuda", torch.cuda.current_device()) if gpu else torch.device("cpu")
    least = torch.tensor([min(numbers, default=none)], device=device)
    dist.all_reduce(least, op=dist.ReduceOp.MIN, group=group)
    found = int(least)
    return None if found == none else found


def counts_here(native: Any) -> bool:
    """Whether this rank counts what all data-parallel ranks have alike in a gradient's norm.

    A distributed optimizer adds up its ranks' parts of the norm; any other takes the norm of whole
    gradients on each data-parallel rank.
    """
    return not is_divided(native) or native.data_parallel_group.rank() == 0
