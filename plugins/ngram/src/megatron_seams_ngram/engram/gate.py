"""The gate: from the score of a key and a query to the part of the value that passes."""

from typing import Final

from torch import Tensor

from megatron_seams_ngram.engram.options import Gate

_LEAST: Final = 1e-6


def gate_of(scores: Tensor, form: Gate) -> Tensor:
    """The gate of each score, between 0 and 1, of the scores' shape."""
    if form == "signed-sqrt":
        # The bound is under the root: a score that is nearly nothing becomes one of 0.001.
        scores = scores.sign() * scores.abs().clamp_min(_LEAST).sqrt()
    return scores.sigmoid()
