"""RMSNorm over channels that are split over ranks."""

from typing import TYPE_CHECKING

import torch
from megatron.core.tensor_parallel.layers import set_tensor_model_parallel_attributes
from torch import Tensor, nn
from torch.nn import functional

from megatron_seams.runtime.collectives import replicated, summed
from megatron_seams.runtime.sharding import ShardedModule

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class SplitRMSNorm(ShardedModule):
    """Divide by the root mean square over the channels of *all* tensor-parallel ranks.

    The paper normalises over all N·V channels of the mixer. A norm over each rank's own would cost
    no exchange, but would make another model of every tensor-parallel size; this one exchanges a
    number for each token.

    Args:
        size: Channels on all ranks.
        eps: Added to the mean square.
        tp_group: The tensor-parallel ranks, each with an equal share of the channels.
        device: Where the weight is.
        dtype: The weight's.
    """

    tp_group: "ProcessGroup"

    def __init__(
        self,
        size: int,
        *,
        eps: float,
        tp_group: "ProcessGroup",
        device: torch.device | int | str,
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        self.size, self.eps, self.tp_group = size, eps, tp_group
        share = size // tp_group.size()
        self.weight = nn.Parameter(torch.ones(share, device=device, dtype=dtype))
        set_tensor_model_parallel_attributes(self.weight, is_parallel=True, dim=0, stride=1)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise [..., size / ranks]; the statistic is float32 at least."""
        if self.tp_group.size() == 1:
            return functional.rms_norm(x, (self.size,), self.weight, self.eps)
        wide = x.to(torch.promote_types(torch.float32, x.dtype))
        squares = summed(wide.square().sum(-1, keepdim=True), self.tp_group)
        # Each rank goes on to divide channels of its own.
        squares = replicated(squares, self.tp_group)
        return (wide * torch.rsqrt(squares / self.size + self.eps)).to(x.dtype) * self.weight

    def divided(self) -> dict[str, int]:
        """The weight: each rank has its channels' part."""
        return {"weight": 0}
