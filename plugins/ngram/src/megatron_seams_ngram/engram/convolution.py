"""The short causal convolution over positions, which stops where the document begins."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from megatron_seams.runtime.collectives import preceding, rank_in

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def causal_convolution(
    x: Tensor,
    weight: Tensor,
    *,
    dilation: int,
    starts: Tensor | None,
    group: "ProcessGroup | None" = None,
) -> Tensor:
    """Convolve each channel with taps of its own: y(t) = Σ_i w_i · x(t - i · dilation).

    Args:
        x: [s, b, h]; with ``group``, this rank's piece [s / ranks, b, h].
        weight: [h, taps], w_0 for the position itself.
        dilation: Positions from tap to tap.
        starts: [b, s] or [1, s] int64, of the whole sequence: the first position of each token's
            document, before which every tap is zero; None where a row is one document.
        group: The ranks that the sequence is divided over.

    Returns:
        As ``x``.
    """
    length, taps = len(x), weight.shape[1]
    span = (taps - 1) * dilation
    whole = torch.cat([preceding(x, span, group), x])
    first = length * rank_in(group)
    positions = torch.arange(first, first + length, device=x.device)
    y = x * weight[:, 0]
    for tap in range(1, taps):
        back = tap * dilation
        earlier = whole[span - back : span - back + length]
        if starts is not None:
            inside = positions - back >= starts[:, first : first + length]
            earlier = earlier * inside.t().unsqueeze(-1)
        y = y + earlier * weight[:, tap]
    return y
