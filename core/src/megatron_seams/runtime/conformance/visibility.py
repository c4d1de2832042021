"""The rules on what the output at a token may depend on: its past, in its own row."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from torch import Tensor

from megatron_seams.runtime.conformance import rules
from megatron_seams.runtime.conformance.models import logits_of, tokens
from megatron_seams.runtime.smoke.toy import VOCABULARY

if TYPE_CHECKING:
    from megatron_seams.runtime.compat import HybridModel


def check_causal(model: "HybridModel", documents: PackedSeqParams | None = None) -> None:
    """The tokens from t on change no logit before t, for every t.

    Both passes have the same shapes, so that rounding is the same too and the comparison is of
    bits: a leak is found however small it is.

    Args:
        model: The small model.
        documents: The documents of one packed row; without them the rows have one each.

    Raises:
        RuleBroken: A logit before t differs.
    """
    keywords = {} if documents is None else {"packed_seq_params": documents}
    inputs = tokens(rows=1)[:, :-1] if documents is not None else tokens()[:, :-1]
    logits = _outputs(model, **keywords)
    expected = logits(inputs)
    for start in range(1, inputs.shape[1]):
        found = logits(_changed(inputs, from_token=start))
        earlier = _first_difference(found[:, :start], expected[:, :start])
        if earlier is not None:
            where = "a packed row" if documents is not None else "a row"
            rules.CAUSAL.broken(
                f"with other tokens from {start} on in {where}, the logits at token {earlier[1]} "
                f"differ (by up to {earlier[2]:.2g})"
            )


def check_rows_apart(model: "HybridModel") -> None:
    """The tokens of one row change no logit of another.

    Raises:
        RuleBroken: A logit of another row differs.
    """
    inputs = tokens()[:, :-1]
    logits = _outputs(model)
    expected = logits(inputs)
    for row in range(inputs.shape[0]):
        changed = inputs.clone()
        changed[row] = _changed(inputs[row : row + 1], from_token=0)
        others = [other for other in range(inputs.shape[0]) if other != row]
        differs = _first_difference(logits(changed)[others], expected[others])
        if differs is not None:
            rules.ROWS_APART.broken(
                f"with other tokens in row {row}, the logits of row {others[differs[0]]} differ "
                f"at token {differs[1]} (by up to {differs[2]:.2g})"
            )


def _outputs(model: "HybridModel", **keywords: PackedSeqParams) -> Callable[[Tensor], Tensor]:
    def logits(inputs: Tensor) -> Tensor:
        with torch.no_grad():
            return logits_of(model, inputs, **keywords)

    return logits


def _changed(inputs: Tensor, *, from_token: int) -> Tensor:
    """The same tokens [b, s] before ``from_token``, and from it on other ones at every place."""
    generator = torch.Generator().manual_seed(13)
    shift = torch.randint(1, VOCABULARY, inputs.shape, generator=generator)
    shift[:, :from_token] = 0
    return (inputs + shift) % VOCABULARY


def _first_difference(found: Tensor, expected: Tensor) -> tuple[int, int, float] | None:
    """Row and token of the first logit [b, s, v] that differs, and the greatest difference."""
    differs = (found != expected).any(dim=-1)
    if not differs.any():
        return None
    row, token = differs.nonzero()[0].tolist()
    return row, token, float((found - expected).abs().max())
