"""The TE-free backend: upstream's own layers over torch norms and attention.

It serves a CPU, and a GPU without Transformer Engine. Which layers there are, what they compute and
how they are spread over ranks stays upstream's. Only the parts that upstream takes from Transformer
Engine are replaced: the norms, the core attention, and the linears that Transformer Engine keeps
whole on every rank.
"""

from typing import TYPE_CHECKING, Any, Final

import torch
from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.models.backends import LocalSpecProvider
from megatron.core.models.gpt.moe_module_specs import get_moe_module_spec_for_backend
from megatron.core.ssm.mlp_layer import MLPLayer
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.attention import SelfAttention, SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.experimental_attention_variant.dsa import (
    DSAIndexer,
    DSAIndexerSubmodules,
    DSAttention,
    DSAttentionSubmodules,
)
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.mlp import MLPSubmodules
from megatron.core.transformer.multi_latent_attention import (
    MLASelfAttention,
    MLASelfAttentionSubmodules,
)
from megatron.core.transformer.multi_token_prediction import (
    MultiTokenPredictionBlock,
    MultiTokenPredictionBlockSubmodules,
    MultiTokenPredictionLayer,
    MultiTokenPredictionLayerSubmodules,
)
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_layer import (
    MoETransformerLayer,
    TransformerLayer,
    TransformerLayerSubmodules,
)

from megatron_seams.runtime import compat
from megatron_seams.runtime.backends.core_attention import LocalCoreAttention
from megatron_seams.runtime.backends.duplicated_linear import DuplicatedLinear
from megatron_seams.runtime.backends.norm import LocalNorm

if TYPE_CHECKING:
    from megatron.core.transformer.transformer_config import TransformerConfig

#: Families that this backend cannot build -> why.
_WHY_NOT: Final = {
    "mamba": "upstream's Mamba-2 mixer needs a CUDA device and the mamba-ssm kernels",
    "gdn": "upstream's gated delta net needs a CUDA device and the flash-linear-attention kernels",
    **(
        {}
        if compat.NO_ROTATION
        else {
            "dsa": "the indexer of this release's sparse attention needs a CUDA device and the "
            "fast-hadamard-transform kernel"
        }
    ),
}

#: Fields of the configuration that choose a kernel which is not here, with the same numbers.
_KERNELS: Final = {
    "transformer_impl": "local",
    "apply_rope_fusion": False,
    "bias_activation_fusion": False,
    "bias_dropout_fusion": False,
    "cross_entropy_loss_fusion": False,
    "dsa_kernel_backend": "none",
    "gradient_accumulation_fusion": False,
    "masked_softmax_fusion": False,
    "mla_down_proj_fusion": False,
    "moe_grouped_gemm": False,
    "moe_permute_fusion": False,
    "moe_router_fusion": False,
    "moe_shared_expert_overlap": False,
    "moe_token_dispatcher_type": "allgather",
    "use_fused_weighted_squared_relu": False,
    "use_transformer_engine_op_fuser": False,
}

#: Further fields on a CPU: weights are made there, and there is no CUDA stream.
_ON_CPU: Final = {
    "use_cpu_initialization": True,
    "batch_p2p_sync": False,
    "cuda_graph_impl": "none",
    "tp_comm_overlap": False,
}

_CAUSAL: Final = {"attn_mask_type": AttnMaskType.causal}


class LocalProvider(LocalSpecProvider):  # type: ignore[misc]  # Megatron ships no types
    """Upstream's local linears with norms and an attention that also run under Megatron's MLA."""

    def layer_norm(
        self, rms_norm: bool = False, for_qk: bool = False, has_residual: bool = False
    ) -> type[LocalNorm]:
        """The norm; its kind is read from the configuration when it is built."""
        del rms_norm, for_qk, has_residual
        return LocalNorm

    def core_attention(self) -> type[LocalCoreAttention]:
        """The parameter-free attention of q, k and v."""
        return LocalCoreAttention


class LocalBackend:
    """The backend for machines without Transformer Engine."""

    name: Final = "local"

    def __init__(self) -> None:
        self.provider = LocalProvider()

    def why_not(self, family: str) -> str | None:
        """Why layers of ``family`` cannot be built here; None if they can."""
        return _WHY_NOT.get(family)

    def settings(self) -> dict[str, Any]:
        """Fields of the configuration that this backend decides: kernels, never numbers."""
        return _KERNELS | ({} if torch.cuda.is_available() else _ON_CPU)

    def submodules(self, config: "TransformerConfig") -> compat.HybridStackSubmodules:
        """The native layers.

        Args:
            config: Decides whether queries and keys are normalized, which upstream's local linears
                cannot fuse.
        """
        return compat.native_submodules(
            attention_layer=_attention(config),
            mla_layer=_mla(config),
            dsa_layer=_dsa(),
            mlp_layer=_mlp(),
            moe_layer=_moe(self.provider),
            mtp_block_spec=_mtp(),
        )

    def final_norm(self) -> type[LocalNorm]:
        """The norm after the last layer, where upstream hard-codes Transformer Engine's."""
        return LocalNorm


def _attention(config: "TransformerConfig") -> ModuleSpec:
    qk_norm = LocalNorm if config.qk_layernorm else None
    return ModuleSpec(
        module=TransformerLayer,
        submodules=TransformerLayerSubmodules(
            input_layernorm=LocalNorm,
            self_attention=ModuleSpec(
                module=SelfAttention,
                params=_CAUSAL,
                submodules=SelfAttentionSubmodules(
                    linear_qkv=ColumnParallelLinear,
                    core_attention=LocalCoreAttention,
                    linear_proj=RowParallelLinear,
                    q_layernorm=qk_norm,
                    k_layernorm=qk_norm,
                ),
            ),
            self_attn_bda=get_bias_dropout_add,
            # Transformer Engine fuses this norm into the linear; one name in both checkpoints.
            sharded_state_dict_keys_map={
                "input_layernorm.": "self_attention.linear_qkv.layer_norm_"
            },
        ),
    )


def _mla(config: "TransformerConfig") -> ModuleSpec:
    normalized = bool(config.qk_layernorm)
    with_q_lora = normalized and getattr(config, "q_lora_rank", None) is not None
    return ModuleSpec(
        module=TransformerLayer,
        submodules=TransformerLayerSubmodules(
            input_layernorm=LocalNorm,
            self_attention=ModuleSpec(
                module=MLASelfAttention,
                params=_CAUSAL,
                submodules=MLASelfAttentionSubmodules(
                    linear_q_proj=ColumnParallelLinear,
                    linear_q_down_proj=ColumnParallelLinear,
                    linear_q_up_proj=ColumnParallelLinear,
                    linear_kv_down_proj=ColumnParallelLinear,
                    linear_kv_up_proj=ColumnParallelLinear,
                    core_attention=LocalCoreAttention,
                    linear_proj=RowParallelLinear,
                    q_layernorm=LocalNorm if with_q_lora else IdentityOp,
                    kv_layernorm=LocalNorm if normalized else IdentityOp,
                ),
            ),
            self_attn_bda=get_bias_dropout_add,
            sharded_state_dict_keys_map={
                "self_attention.q_layernorm.": "self_attention.linear_q_up_proj.layer_norm_",
                "self_attention.kv_layernorm.": "self_attention.linear_kv_up_proj.layer_norm_",
            },
        ),
    )


def _dsa() -> ModuleSpec:
    indexer = ModuleSpec(
        module=DSAIndexer,
        submodules=DSAIndexerSubmodules(
            linear_wq_b=DuplicatedLinear,
            linear_wk=DuplicatedLinear,
            k_norm=LocalNorm,
            linear_weights_proj=DuplicatedLinear,
        ),
    )
    return ModuleSpec(
        module=TransformerLayer,
        submodules=TransformerLayerSubmodules(
            input_layernorm=LocalNorm,
            self_attention=ModuleSpec(
                module=compat.SparseSelfAttention,
                params=_CAUSAL,
                submodules=compat.SparseSelfAttentionSubmodules(
                    linear_q_proj=ColumnParallelLinear,
                    linear_q_down_proj=ColumnParallelLinear,
                    linear_q_up_proj=ColumnParallelLinear,
                    linear_kv_down_proj=ColumnParallelLinear,
                    linear_kv_up_proj=ColumnParallelLinear,
                    core_attention=ModuleSpec(
                        module=DSAttention, submodules=DSAttentionSubmodules(indexer=indexer)
                    ),
                    linear_proj=RowParallelLinear,
                    q_layernorm=IdentityOp,
                    kv_layernorm=IdentityOp,
                ),
            ),
            self_attn_bda=get_bias_dropout_add,
        ),
    )


def _mlp() -> ModuleSpec:
    return ModuleSpec(
        module=MLPLayer,
        submodules=TransformerLayerSubmodules(
            pre_mlp_layernorm=LocalNorm,
            mlp=compat.dense_mlp(
                MLPSubmodules(linear_fc1=ColumnParallelLinear, linear_fc2=RowParallelLinear)
            ),
            mlp_bda=get_bias_dropout_add,
            sharded_state_dict_keys_map={"pre_mlp_layernorm.": "mlp.linear_fc1.layer_norm_"},
        ),
    )


def _moe(provider: LocalProvider) -> ModuleSpec:
    # The number of experts is read from the configuration; upstream's helper only wants not None.
    experts = get_moe_module_spec_for_backend(provider, num_experts=1, moe_grouped_gemm=False)
    return ModuleSpec(
        module=MoETransformerLayer,
        submodules=TransformerLayerSubmodules(
            pre_mlp_layernorm=LocalNorm, mlp=experts, mlp_bda=get_bias_dropout_add
        ),
    )


def _mtp() -> ModuleSpec:
    layer = ModuleSpec(
        module=MultiTokenPredictionLayer,
        submodules=MultiTokenPredictionLayerSubmodules(
            enorm=LocalNorm,
            hnorm=LocalNorm,
            eh_proj=ColumnParallelLinear,
            mtp_model_layer=None,  # upstream nests a plain stack of the native submodules here
            layer_norm=LocalNorm,
        ),
    )
    return ModuleSpec(
        module=MultiTokenPredictionBlock,
        submodules=MultiTokenPredictionBlockSubmodules(layer_specs=[layer]),
    )
