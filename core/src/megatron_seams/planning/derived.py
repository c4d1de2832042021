"""Fields of upstream's configuration that a recipe does not set: they follow from its plan.

Both roads to a model have them: :mod:`megatron_seams.runtime.model.settings` passes them, and the
arguments of a plan are compared with them.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from megatron_seams.families import LATENT
from megatron_seams.planning.lowering import lowered_pattern
from megatron_seams.planning.plan import Plan

#: Arguments of the model's constructor that whoever builds a model passes.
BUILDERS: Final = frozenset(
    {"config", "hybrid_layer_pattern", "hybrid_stack_spec", "mamba_stack_spec", "pg_collection"}
    | {"post_process", "pre_process", "vp_stage"}
)

#: `[megatron]` keys that another part of the recipe decides.
ELSEWHERE: Final[Mapping[str, str]] = MappingProxyType(
    {
        **dict.fromkeys(BUILDERS, "what builds the model"),
        "num_layers": "model.depth",
        "hybrid_layer_pattern": "model.pattern",
        "hybrid_override_pattern": "model.pattern",
        "hybrid_attention_ratio": "model.pattern",
        "hybrid_mlp_ratio": "model.pattern",
        "is_hybrid_model": "model.pattern",
        "mtp_num_layers": "the MTP suffix of model.pattern",
        "mtp_hybrid_override_pattern": "the MTP suffix of model.pattern",
        "pipeline_model_parallel_layout": "the '|' of model.pattern",
        "account_for_embedding_in_pipeline_split": "the '|' of model.pattern",
        "account_for_loss_in_pipeline_split": "the '|' of model.pattern",
        "virtual_pipeline_model_parallel_size": "the '|' of model.pattern",
        "tensor_model_parallel_size": "parallelism.tensor-parallel",
        "pipeline_model_parallel_size": "parallelism.pipeline-parallel",
        "expert_model_parallel_size": "parallelism.expert-parallel",
        "context_parallel_size": "parallelism.context-parallel",
        "sequence_parallel": "parallelism.sequence-parallel",
    }
)

#: Upstream's name for the symbol of sparse attention.
_SPARSE: Final = "DS_ATTENTION"


def is_latent(plan: Plan) -> bool:
    """Whether the model has upstream's configuration for latent attention."""
    return not plan.families.isdisjoint(LATENT)


def decided_fields(plan: Plan) -> dict[str, Any]:
    """Fields that layers and parallelism decide, over whatever else there is."""
    spread = plan.parallelism
    stages = len(plan.pattern.stages)
    virtual = stages // spread.pipeline_parallel if spread.pipeline_parallel > 1 else 1
    return {
        "num_layers": len(plan.layers),
        "mtp_num_layers": plan.pattern.mtp_depths or None,
        "is_hybrid_model": True,
        "multi_latent_attention": is_latent(plan),
        "tensor_model_parallel_size": spread.tensor_parallel,
        "sequence_parallel": spread.sequence_parallel,
        "pipeline_model_parallel_size": spread.pipeline_parallel,
        "virtual_pipeline_model_parallel_size": virtual if virtual > 1 else None,
        "expert_model_parallel_size": spread.expert_parallel,
        "context_parallel_size": spread.context_parallel,
    }


def usual_fields(plan: Plan, given: Mapping[str, Any]) -> dict[str, Any]:
    """Fields that upstream's trainer sets by itself, where nothing else sets them.

    No flag says them, so that the classes' own defaults cannot be had there. Each is assigned in
    `validate_args` or `core_transformer_config_from_args`.

    Args:
        plan: The model.
        given: The fields that are set.
    """
    virtual = decided_fields(plan)["virtual_pipeline_model_parallel_size"] is not None
    tensor = plan.parallelism.tensor_parallel
    dtype = _dtype(given)
    usual: dict[str, Any] = {
        "params_dtype": dtype,
        "pipeline_dtype": given.get("params_dtype", dtype),
        "deallocate_pipeline_outputs": True,
        # Only the interleaved schedule overlaps.
        "overlap_p2p_comm": virtual,
        "batch_p2p_comm": not given.get("overlap_p2p_comm", virtual),
        "cp_comm_type": "p2p",
        "tensor_parallel_num_weight_shards": tensor,
        "expert_tensor_parallel_num_weight_shards": given.get(
            "expert_tensor_parallel_size", tensor
        ),
    }
    if given.get("add_bias_linear", True):
        usual["add_qkv_bias"] = True
    sparse = plan.surface.of_constant(_SPARSE)
    if sparse is not None and sparse.symbol in lowered_pattern(plan):
        usual["experimental_attention_variant"] = "dsa"
    return usual


def _dtype(given: Mapping[str, Any]) -> str:
    """The name of the parameters' type, by the fields that choose it on upstream's command line."""
    if given.get("bf16"):
        return "bfloat16"
    return "float16" if given.get("fp16") else "float32"
