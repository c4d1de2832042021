"""Upstream's MLA where the hybrid stack of its release does not know it."""

import copy
from typing import TYPE_CHECKING, Any

from megatron.core.transformer.multi_latent_attention import MLASelfAttention

if TYPE_CHECKING:
    from megatron.core.transformer.transformer_config import MLATransformerConfig


class HybridMLASelfAttention(MLASelfAttention):  # type: ignore[misc]  # Megatron ships no types
    """``MLASelfAttention`` with the arguments that the hybrid stacks before 0.19 give a layer.

    It adds no parameter, no buffer and no arithmetic. Two facts of upstream stand between:

    - The stack passes ``pp_layer_offset``, which the MLA of 0.17 rejects. Only inference reads it,
      and the seam does not support inference.
    - Until 0.18, MLA hands its core attention the inputs of sparse attention wherever the
      configuration says so; with DSA and MLA layers in one model it says so for both. This layer
      is never sparse, so its own copy of the configuration does not.
    """

    def __init__(
        self,
        config: "MLATransformerConfig",
        *args: Any,
        pp_layer_offset: int | None = None,
        **kwargs: Any,
    ) -> None:
        del pp_layer_offset
        dense = copy.copy(config)
        dense.experimental_attention_variant = None
        super().__init__(dense, *args, **kwargs)
