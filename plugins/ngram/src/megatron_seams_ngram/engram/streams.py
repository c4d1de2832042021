"""Parts that each residual stream has for itself; a model without hyper-connections has one."""

import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm


class StreamNorm(nn.Module):
    """RMSNorm of each stream by itself, with a weight of its own.

    Args:
        streams: How many.
        hidden: The elements of one.
        eps: Added to the mean square.
        dtype: Of the weight.
        device: Where it lies.

    Attributes:
        weight: [streams * hidden], ones at first.
    """

    def __init__(
        self, streams: int, hidden: int, *, eps: float, dtype: torch.dtype, device: torch.device
    ) -> None:
        super().__init__()
        self.streams, self.hidden, self.eps = streams, hidden, eps
        self.weight = nn.Parameter(torch.ones(streams * hidden, dtype=dtype, device=device))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``x``, [..., streams * hidden]."""
        if self.streams == 1:
            return rms_norm(x, (self.hidden,), self.weight, self.eps)
        normed = rms_norm(by_stream(x, self.streams), (self.hidden,), None, self.eps)
        return normed.flatten(start_dim=-2) * self.weight

    def extra_repr(self) -> str:
        """Show the sizes where torch prints the module."""
        return f"streams={self.streams}, hidden={self.hidden}, eps={self.eps}"


def by_stream(x: Tensor, streams: int) -> Tensor:
    """See [..., streams * hidden] as [..., streams, hidden]."""
    return x.reshape(*x.shape[:-1], streams, x.shape[-1] // streams)
