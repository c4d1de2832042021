"""The loss that no causal model can go below: that of bytes drawn independently of one another.

A loss on a text proves no leak by itself, since nobody knows how well that text can be predicted.
Of bytes that are drawn one by one from known frequencies p, nothing can be predicted from those
before: let q be the probability that any model gives to the N bytes x, with each byte predicted
from what was drawn before it (the past of its own row, and of any other). Then q(x) / p(x) has the
mean sum_x p(x) q(x) / p(x) <= 1, and by Markov's inequality it exceeds 1 / delta with a probability
of at most delta. So but for that probability

    -log q(x) / N  >=  -log p(x) / N  -  log(1 / delta) / N,

whatever the model, its size and its training. The right side is known as soon as the bytes are
drawn; a loss below it was reached with bytes that were still to be predicted.
"""

import math
from typing import Final

import attrs
import torch
from torch import Tensor

#: The probability delta of a causal model below the bound.
CHANCE: Final = 1e-9


@attrs.frozen(kw_only=True, eq=False)
class IndependentBytes:
    """Bytes drawn one by one with a text's frequencies.

    Attributes:
        tokens: [b, s + 1] int64; each but the first of a row is predicted.
        bound: The least mean loss of a causal model on them, nats per byte.
    """

    tokens: Tensor
    bound: float


def draw_independent(
    text: Tensor, *, count: int, length: int, generator: torch.Generator
) -> IndependentBytes:
    """Draw windows of independent bytes.

    Args:
        text: [n] uint8, whose frequencies they have: a model that was trained on it knows them.
        count: The number of windows.
        length: The length of a window, at least 2.
        generator: The source of the bytes.
    """
    counts = torch.bincount(text.long(), minlength=256).double()
    shares = counts / counts.sum()
    drawn = torch.multinomial(shares, count * length, replacement=True, generator=generator)
    tokens = drawn.view(count, length)
    predicted = tokens[:, 1:]
    surprise = float(-shares[predicted].log().mean())
    bound = surprise + math.log(CHANCE) / predicted.numel()
    return IndependentBytes(tokens=tokens, bound=max(0.0, bound))
