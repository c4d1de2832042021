"""The short causal convolution in front of the recurrence."""

import torch
from torch import Tensor
from torch.nn import functional


def causal_convolution(
    x: Tensor, weight: Tensor, position: Tensor | None = None, before: Tensor | None = None
) -> Tensor:
    """Convolve each channel over the tokens before it, inside its own document.

    It is a sum over lags, in which a token before the document's first counts as zero. Such a token
    is selected away, not multiplied by zero, so that not even a NaN leaks from one document into
    the next.

    Args:
        x: [B, S, C].
        weight: [C, taps]; the last tap weighs the token itself, the one before it the token before.
        position: [S] integers, the number of each token inside its document, from 0; None where
            the row is one document.
        before: [B, taps - 1, C], the tokens before the first one where a sequence is continued;
            None means zeros.

    Returns:
        [B, S, C] in x's dtype, summed in float32 at least.
    """
    steps, taps = x.shape[1], weight.shape[1]
    weight = weight.to(torch.promote_types(torch.float32, weight.dtype))
    if before is None:
        padded = functional.pad(x, (0, 0, taps - 1, 0))
    else:
        padded = torch.cat([before, x], dim=1)
    total = x * weight[:, -1]
    for lag in range(1, taps):
        earlier = padded[:, taps - 1 - lag :][:, :steps]
        if position is not None:
            earlier = torch.where((position >= lag)[:, None], earlier, 0)
        total = total + earlier * weight[:, -1 - lag]
    return total.to(x.dtype)
