"""The inference cache of a layer: the state after the tokens seen so far."""

from typing import TYPE_CHECKING, Any

import attrs
import torch
from torch import Tensor

from megatron_seams_mamba3.ops.contract import State

if TYPE_CHECKING:
    from megatron.core.inference.contexts import StaticInferenceContext

    from megatron_seams_mamba3.layer.layout import Layout


@attrs.frozen(kw_only=True, eq=False)
class Kept:
    """One batch's part of a layer's cache; the tensors are views, written in place.

    Attributes:
        h: [b, H, P, N] of one rank's heads, float32 at least.
        rest: [b, H, A + R · N + P]: the angle, the last b and the last x.
        layout: The mixer's sizes.
    """

    h: Tensor
    rest: Tensor
    layout: "Layout"

    def state(self) -> State:
        """The state that the sequences continue."""
        of = self.layout
        angle, b, x = torch.split(self.rest, [of.A, of.R * of.N, of.P], dim=-1)
        return State(angle=angle, h=self.h, b=torch.unflatten(b, -1, (of.R, of.N)), x=x)

    def keep(self, state: State) -> None:
        """Write the state after the tokens that were seen now."""
        self.h.copy_(state.h.detach())
        rest = (state.angle, state.b.flatten(-2), state.x)
        self.rest.copy_(torch.cat([part.detach().to(self.rest.dtype) for part in rest], dim=-1))


def kept(
    context: "StaticInferenceContext",
    layer_number: int,
    layout: "Layout",
    *,
    batch: int,
    like: Tensor,
) -> Kept:
    """Find a layer's cache in upstream's inference context, or begin one.

    It is in the same dictionary as upstream's own, as a pair with the batch in the second
    dimension, so that upstream's ``swap_key_value_dict`` reorders it too.

    Args:
        context: The context; at its ``sequence_len_offset`` 0 a sequence begins.
        layer_number: The 1-based global number of the layer.
        layout: The mixer's sizes.
        batch: The rows of this call.
        like: A tensor of the layer's device and dtype.

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
        wide = torch.promote_types(torch.float32, like.dtype)
        shape = (layout.local_heads, context.max_batch_size)
        rest = layout.A + layout.R * layout.N + layout.P
        memory[layer_number] = (
            like.new_zeros(*shape, layout.P, layout.N, dtype=wide),
            like.new_zeros(*shape, rest, dtype=wide),
        )
    first = context.batch_size_offset
    h, rest = (part[:, first : first + batch] for part in memory[layer_number])
    if h.shape[1] < batch:
        message = f"a batch of {batch} at {first} in a context of {context.max_batch_size}"
        raise ValueError(message)
    if begins:
        h.zero_()
        rest.zero_()
    return Kept(h=h.transpose(0, 1), rest=rest.transpose(0, 1), layout=layout)
