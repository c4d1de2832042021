"""The inference cache of a layer: the state after the tokens seen so far."""

import functools
from typing import TYPE_CHECKING

import attrs
import torch
from torch import Tensor

from megatron_seams.runtime.decoding import kept_state
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

    Args:
        context: The context.
        layer_number: The 1-based global number of the layer.
        layout: The mixer's sizes.
        batch: The rows of this call.
        like: A tensor of the layer's device and dtype.

    Raises:
        ValueError: As :func:`~megatron_seams.runtime.decoding.kept_state`.
    """
    zeros = functools.partial(like.new_zeros, dtype=torch.promote_types(torch.float32, like.dtype))

    def begin(rows: int) -> tuple[Tensor, Tensor]:
        of = (layout.local_heads, rows)
        return zeros(*of, layout.P, layout.N), zeros(*of, layout.A + layout.R * layout.N + layout.P)

    h, rest = kept_state(context, layer_number, batch=batch, begin=begin)
    return Kept(h=h, rest=rest, layout=layout)
