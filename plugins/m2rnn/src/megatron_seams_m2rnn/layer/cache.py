"""The inference cache of a layer: its last tokens and its state."""

from typing import TYPE_CHECKING, Any

import attrs
import torch
from torch import Tensor

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

    It is in the same dictionary as upstream's own, as a pair with the batch in the second
    dimension, so that upstream's ``swap_key_value_dict`` reorders it too.

    Args:
        context: The context; at its ``sequence_len_offset`` 0 a sequence begins.
        layer_number: The 1-based global number of the layer.
        layout: The mixer's heads.
        x: [b, s, C], the convolution's inputs.
        taps: The convolution's.

    Raises:
        ValueError: The context continues a sequence that this layer has not seen, or the batch is
            larger than the context.
    """
    memory: dict[int, Any] = context.key_value_memory_dict
    begins = context.sequence_len_offset == 0
    if layer_number not in memory:
        if not begins:
            message = (
                f"the inference context is at token {context.sequence_len_offset}, of which layer "
                f"{layer_number} has seen none; start at token 0"
            )
            raise ValueError(message)
        batch = context.max_batch_size
        wide = torch.promote_types(torch.float32, x.dtype)
        memory[layer_number] = (
            x.new_zeros(taps - 1, batch, x.shape[-1]),
            x.new_zeros(layout.local.state, batch, layout.K, layout.V, dtype=wide),
        )
    first = context.batch_size_offset
    tokens, state = (part[:, first : first + x.shape[0]] for part in memory[layer_number])
    if tokens.shape[1] < x.shape[0]:
        message = f"a batch of {x.shape[0]} at {first} in a context of {context.max_batch_size}"
        raise ValueError(message)
    if begins:
        tokens.zero_()
        state.zero_()
    return Kept(tokens=tokens.transpose(0, 1), state=state.transpose(0, 1))
