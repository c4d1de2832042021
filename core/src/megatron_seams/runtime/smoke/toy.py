"""The native settings of a plan's model at toy width, for the smoke run."""

from collections.abc import Mapping
from typing import Any, Final

from megatron_seams.planning.plan import Plan
from megatron_seams.recipes.recipe import Smoke
from megatron_seams.runtime import compat

#: The tokens are bytes.
VOCABULARY: Final = 256

_WIDTH: Final = 128
_HEADS: Final = 4
_HEAD_WIDTH: Final = _WIDTH // _HEADS

#: Settings of every toy model, over the recipe's: small, in fp32, without dropout.
_SMALL: Final = {
    "vocab_size": VOCABULARY,
    "hidden_size": _WIDTH,
    "ffn_hidden_size": 2 * _WIDTH,
    "num_attention_heads": _HEADS,
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
    "bf16": False,
    "fp16": False,
    "params_dtype": "float32",
}

#: Settings that the recipe goes over, as published hybrid models have them.
_USUAL: Final = {"normalization": "RMSNorm", "add_bias_linear": False}

#: Sizes of one family's layers.
_OF_FAMILY: Final[Mapping[str, Mapping[str, Any]]] = {
    "moe": {"moe_ffn_hidden_size": _WIDTH},
    "mla": {
        "q_lora_rank": _WIDTH // 2,
        "kv_lora_rank": _WIDTH // 2,
        "qk_head_dim": _HEAD_WIDTH,
        "qk_pos_emb_head_dim": _HEAD_WIDTH // 2,
        "v_head_dim": _HEAD_WIDTH,
    },
    "dsa": {
        "dsa_indexer_n_heads": _HEADS,
        "dsa_indexer_head_dim": _HEAD_WIDTH,
        "dsa_indexer_topk": 32,
        # A Hadamard rotation of queries and keys alike leaves their products as they are; it is
        # there for the range of a low-precision kernel, which the toy does not use.
        **compat.NO_ROTATION,
    },
    "mamba": {"mamba_head_dim": _HEAD_WIDTH, "mamba_state_dim": 32, "mamba_num_groups": 2},
    "gdn": {
        "linear_key_head_dim": _HEAD_WIDTH,
        "linear_value_head_dim": _HEAD_WIDTH,
        "linear_num_key_heads": _HEADS,
        "linear_num_value_heads": _HEADS,
    },
}

#: Settings of one family's layers that the recipe goes over.
_USUAL_OF_FAMILY: Final[Mapping[str, Mapping[str, Any]]] = {
    "mla": {"rope_type": "rope"},
    "dsa": {"rope_type": "rope", "dsa_indexer_loss_coeff": 0.01},
    "gdn": {"linear_conv_kernel_dim": 4},
}

#: Sizes that many models do not have: taken only where the recipe sets them.
_IF_ASKED: Final = {
    "kv_channels": _HEAD_WIDTH,
    "mamba_num_heads": 2 * _HEADS,
    "moe_latent_size": _WIDTH // 2,
    "moe_shared_expert_intermediate_size": _WIDTH,
}

#: Settings of the recipe that a toy is too small for, or that spread it over ranks.
_DROPPED: Final = (
    "moe_router_group_topk",
    "moe_router_num_groups",
    "num_layers_in_first_pipeline_stage",
    "num_layers_in_last_pipeline_stage",
)


def toy_settings(plan: Plan, smoke: Smoke) -> dict[str, Any]:
    """The plan's native settings, with every size reduced to a toy's.

    Norms, activations, routing and position embeddings stay the recipe's.

    Args:
        plan: The model.
        smoke: The recipe's ``[smoke]``; its ``[smoke.megatron]`` has the last word.

    Returns:
        Upstream's field and argument names -> values.
    """
    asked = {key: value for key, value in plan.megatron.items() if key not in _DROPPED}
    # Sparse attention selects for a latent one.
    families = plan.families | ({"mla"} if "dsa" in plan.families else set())
    usual: dict[str, Any] = dict(_USUAL)
    small: dict[str, Any] = dict(_SMALL)
    for family in sorted(families):
        usual |= _USUAL_OF_FAMILY.get(family, {})
        small |= _OF_FAMILY.get(family, {})
    small |= {key: size for key, size in _IF_ASKED.items() if asked.get(key)}
    if asked.get("num_query_groups"):
        shared = asked["num_query_groups"] < asked.get("num_attention_heads", _HEADS)
        small["num_query_groups"] = _HEADS // 2 if shared else _HEADS
    if "moe" in families:
        small["num_moe_experts"] = min(4, asked.get("num_moe_experts") or 4)
        small["moe_router_topk"] = min(2, asked.get("moe_router_topk") or 2)
    small["max_sequence_length"] = smoke.sequence
    return usual | asked | small | smoke.megatron
