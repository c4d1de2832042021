"""Upstream's MLA, with an adapter for the hybrid stacks before 0.19.

All that differs between releases is here, each difference with the upstream fact behind it.
"""

import copy
import inspect
from typing import TYPE_CHECKING, Any, Final

from megatron.core.transformer.multi_latent_attention import MLASelfAttention
from packaging.version import Version

if TYPE_CHECKING:
    from megatron.core.transformer.transformer_config import MLATransformerConfig

#: The first release whose hybrid stack builds MLA itself.
NATIVE_SINCE: Final = Version("0.19")


def attention_class(config: "MLATransformerConfig", megatron_version: Version) -> type:
    """Choose upstream's class itself, or the adapter where this release and this model need it.

    Args:
        config: The model's configuration.
        megatron_version: The release that builds the model.
    """
    # Fact: the hybrid stack of 0.17 passes `pp_layer_offset` to the `attention_layer` slot and its
    # model passes rotary embeddings, neither of which its MLA takes. Goes: with 0.17.
    refuses = "pp_layer_offset" not in inspect.signature(MLASelfAttention.__init__).parameters
    # Fact: until 0.18, MLA passes its core attention the inputs of sparse attention wherever the
    # configuration has it; with DSA and MLA layers in one model it has it for both. Goes: with
    # 0.18.
    sparse = megatron_version < NATIVE_SINCE and config.experimental_attention_variant == "dsa"
    return HybridMLASelfAttention if refuses or sparse else MLASelfAttention


class HybridMLASelfAttention(MLASelfAttention):  # type: ignore[misc]  # Megatron ships no types
    """``MLASelfAttention`` with the arguments that the hybrid stacks before 0.19 give a layer.

    It adds no parameter and no buffer, and changes no number that a forward pass computes.
    ``rotary_pos_emb`` is not used, since MLA has positions of its own. The layer is never sparse,
    and its own copy of the configuration says so.
    """

    def __init__(
        self,
        config: "MLATransformerConfig",
        *args: Any,
        pp_layer_offset: int | None = None,
        **kwargs: Any,
    ) -> None:
        dense = copy.copy(config)
        dense.experimental_attention_variant = None
        super().__init__(dense, *args, **kwargs)
        # Upstream's attention keeps it under this name for inference; MLA of 0.17 does not pass it.
        self._pp_layer_offset = pp_layer_offset

    def forward(self, *args: Any, rotary_pos_emb: Any = None, **kwargs: Any) -> Any:
        """As upstream's, [s, b, h] -> ([s, b, h], bias), with positions of its own."""
        del rotary_pos_emb
        return super().forward(*args, **kwargs)
