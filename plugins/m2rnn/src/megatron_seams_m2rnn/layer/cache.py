"""The inference cache of a layer: its last tokens and its state."""

from typing import TYPE_CHECKING

import attrs
import torch
from torch import Tensor

from megatron_seams.runtime.decoding import kept_state

if TYPE_CHECKING:
    from megatron.core.inference.contexts import StaticInferenceContext

    from megatron_seams_m2rnn.layer.layout import Layout


@attrs.frozen(kw_only=True, eq=False)
class Kept:
    """One batch's part of a layer's cache; the tensors are views, written in place.

    Attributes:
        tokens: [b, taps - 1, C], the convolution's inputs at the last tokens.
        state: [b, N, K, V] on one rank, float32 at least.
    """

    tokens: Tensor
    state: Tensor

    def keep(self, x: Tensor, state: Tensor) -> None:
        """Write the tokens that were seen now, and the state after them.

        Args:
            x: [b, s, C], the convolution's inputs at the tokens that were seen now.
            state: [b, N, K, V], the state after the last of them.
        """
        reach = self.tokens.shape[1]
        seen = torch.cat([self.tokens, x.detach()], dim=1)
        self.tokens.copy_(seen[:, seen.shape[1] - reach :])
        self.state.copy_(state.detach())


def kept(
    context: "StaticInferenceContext", layer_number: int, layout: "Layout", x: Tensor, taps: int
) -> Kept:
    """Find a layer's cache in upstream's inference context, or begin one.

    Args:
        context: The context.
        layer_number: The 1-based global number of the layer.
        layout: The mixer's heads.
        x: [b, s, C], the convolution's inputs.
        taps: The convolution's.

    Raises:
        ValueError: As :func:`~megatron_seams.runtime.decoding.kept_state`.
    """

    def begin(rows: int) -> tuple[Tensor, Tensor]:
        wide = torch.promote_types(torch.float32, x.dtype)
        return (
            x.new_zeros(taps - 1, rows, x.shape[-1]),
            x.new_zeros(layout.local.state, rows, layout.K, layout.V, dtype=wide),
        )

    tokens, state = kept_state(context, layer_number, batch=x.shape[0], begin=begin)
    return Kept(tokens=tokens, state=state)
