"""RMSNorm of B and C over a head's state, with one weight for all groups."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from megatron_seams.runtime.collectives import replicated
from megatron_seams.runtime.sharding import ShardedModule

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

#: The authors' module has it as a constant, whatever the model's own.
EPS = 1e-5


class StateNorm(ShardedModule):
    """Divide each group's N channels by their root mean square.

    Args:
        size: N.
        tp_group: The tensor-parallel ranks; each has the whole weight and uses it for groups of its
            own, so that its gradient is summed over them.
        device: Where the weight is.
        dtype: The weight's.
    """

    tp_group: "ProcessGroup"

    def __init__(
        self,
        size: int,
        *,
        tp_group: "ProcessGroup",
        device: torch.device | int | str,
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        self.tp_group = tp_group
        self.weight = nn.Parameter(torch.ones(size, device=device, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise [..., N], in float32 at least; the result is in x's dtype."""
        wide = torch.promote_types(torch.float32, x.dtype)
        weight = replicated(self.weight, self.tp_group).to(wide)
        return functional.rms_norm(x.to(wide), weight.shape, weight, EPS).to(x.dtype)


class HeadNorm(ShardedModule):
    """Divide each head's P channels by their root mean square, then gate them.

    Args:
        weight: [heads · P] of this rank, divided over the ranks.
        size: P.
        tp_group: The tensor-parallel ranks.
    """

    tp_group: "ProcessGroup"

    def __init__(self, weight: nn.Parameter, size: int, *, tp_group: "ProcessGroup") -> None:
        super().__init__()
        self.weight, self.size, self.tp_group = weight, size, tp_group

    def forward(self, y: Tensor, gate: Tensor) -> Tensor:
        """Normalise and gate [..., heads, P], in float32 at least; the result is in y's dtype."""
        wide = torch.promote_types(torch.float32, y.dtype)
        weight = torch.unflatten(self.weight, 0, (-1, self.size)).to(wide)
        normal = functional.rms_norm(y.to(wide), (self.size,), eps=EPS)
        return (normal * weight * functional.silu(gate.to(wide))).to(y.dtype)

    def divided(self) -> dict[str, int]:
        """The weight: each rank has its heads' part."""
        return {"weight": 0}
