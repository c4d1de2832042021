"""Upstream's MLA, with adapters for the hybrid stacks before 0.19.

All that differs between releases is here, each difference with the upstream fact behind it.
"""

import copy
import inspect
from typing import TYPE_CHECKING, Any, Final

from megatron.core.extensions.transformer_engine import set_save_original_input
from megatron.core.transformer.multi_latent_attention import FusedMLASelfAttention, MLASelfAttention
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
    if config.mla_down_proj_fusion:
        return HybridFusedMLASelfAttention
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


class HybridFusedMLASelfAttention(
    HybridMLASelfAttention,
    FusedMLASelfAttention,  # type: ignore[misc]  # Megatron ships no types
):
    """``FusedMLASelfAttention`` in a hybrid stack before 0.19: one linear goes down to q and kv.

    A checkpoint has the weights of both apart, as that of a layer without the fusion.
    """

    # Fact: until 0.18 the fused class inherits the three methods below from the unfused one, whose
    # two linears it does not have. Goes: with 0.18.

    def _backward_kv_proj(self) -> None:
        self.linear_kv_up_proj.backward_dw()
        self.linear_qkv_down_proj.backward_dw()

    def _backward_q_proj(self) -> None:
        self.linear_q_up_proj.backward_dw()

    def set_for_recompute_input_layernorm(self) -> None:
        """Keep the input of the linear behind the input norm, which fp8 then computes again."""
        set_save_original_input(self.linear_qkv_down_proj)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        # Fact: upstream saves the extra state of the one linear (Transformer Engine's, for fp8) as
        # that of each of the two, and finds both unexpected when it loads them.
        for part in ("linear_q_down_proj", "linear_kv_down_proj"):
            extra = state_dict.pop(f"{prefix}{part}._extra_state", None)
            if extra is not None:
                state_dict.setdefault(f"{prefix}linear_qkv_down_proj._extra_state", extra)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
