"""The sizes of a Hugging Face configuration, by Megatron's names."""

from collections.abc import Collection, Mapping
from typing import Any, Final

from megatron_seams.families import LATENT
from megatron_seams.recipes.hf_architectures import Architecture
from megatron_seams.recipes.hf_layers import EXPERTS
from megatron_seams.recipes.hf_values import Values

#: Megatron's whole numbers -> the keys that may hold them.
_WHOLE: Final[Mapping[str, tuple[str, ...]]] = {
    "hidden_size": ("hidden_size",),
    "ffn_hidden_size": ("intermediate_size",),
    "num_attention_heads": ("num_attention_heads",),
    "num_query_groups": ("num_key_value_heads",),
    "vocab_size": ("vocab_size",),
    "max_sequence_length": ("max_position_embeddings", "model_max_length"),
}
#: Its other numbers.
_NUMBERS: Final[Mapping[str, tuple[str, ...]]] = {
    "layernorm_epsilon": ("rms_norm_eps", "layer_norm_epsilon", "norm_eps", "layer_norm_eps"),
    "init_method_std": ("initializer_range",),
}
_GDN: Final = (
    "linear_conv_kernel_dim",
    "linear_key_head_dim",
    "linear_value_head_dim",
    "linear_num_key_heads",
    "linear_num_value_heads",
)
_MLA: Final[Mapping[str, str]] = {
    "kv_lora_rank": "kv_lora_rank",
    "qk_head_dim": "qk_nope_head_dim",
    "qk_pos_emb_head_dim": "qk_rope_head_dim",
    "v_head_dim": "v_head_dim",
}
_HEAD_WIDTH: Final = ("head_dim", "attention_head_dim")
_MAMBA: Final[Mapping[str, tuple[str, ...]]] = {
    "mamba_num_heads": ("mamba_num_heads", "mamba_n_heads", "n_mamba_heads"),
    "mamba_state_dim": ("ssm_state_size", "mamba_d_state", "state_size"),
    "mamba_num_groups": ("n_groups", "mamba_n_groups", "mamba_ngroups"),
}
_MAMBA_HEAD_WIDTH: Final = ("mamba_head_dim", "mamba_d_head", "mamba_headdim")
_EXPERT_WIDTH: Final = "moe_intermediate_size"
_SHARED_EXPERTS: Final = ("n_shared_experts", "num_shared_experts")
_BIASES: Final = (
    "attention_bias",
    "mlp_bias",
    "use_bias",
    "add_bias_linear",
    "mamba_proj_bias",
    "projectors_bias",
)
#: Activation of Hugging Face's -> of Megatron's.
_ACTIVATIONS: Final = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "relu": "relu",
    "relu2": "squared_relu",
}

#: Keys that change nothing about the model that is trained.
_BESIDE: Final = frozenset(
    {
        "architectures",
        "auto_map",
        "model_type",
        "transformers_version",
        "quantization_config",
        "output_router_logits",
        "output_attentions",
        "output_hidden_states",
        "return_dict",
        "num_logits_to_keep",
        "pretraining_tp",
        "chunk_size",
        "mamba_chunk_size",
        "expand",
        "mamba_expand",
        "mamba_ssm_cache_dtype",
        "rescale_prenorm_residual",
        "moe_shared_expert_overlap",
        "head_dim",
    }
)
#: Values at which a key says what Megatron does in any case.
_AS_MEGATRON: Final[Mapping[str, Any]] = {
    "conv_kernel": 4,
    "mamba_d_conv": 4,
    "use_conv_bias": True,
    "mamba_conv_bias": True,
    "mamba_hidden_act": "silu",
    "hidden_mamba_act": "silu",
    "time_step_min": 0.001,
    "time_step_max": 0.1,
    "time_step_floor": 1e-4,
    "time_step_limit": [0.0, float("inf")],
    "embedding_multiplier": 1.0,
    "residual_multiplier": 1.0,
    "logits_scaling": 1.0,
    "router_jitter_noise": 0.0,
    "moe_layer_freq": 1,
    "topk_method": "noaux_tc",
    "use_grouped_topk": True,
    "mtp_use_repeated_layer": False,
}


def read_sizes(
    values: Values, architecture: Architecture, families: Collection[str]
) -> dict[str, Any]:
    """The ``[megatron]`` table of a configuration; faults are left with ``values``.

    Args:
        values: The configuration, of which the layers have been read.
        architecture: What it fixes.
        families: The model's layers, of which sizes are wanted.
    """
    found: dict[str, Any] = {}
    for field, keys in _WHOLE.items():
        found[field] = values.whole(*keys)
    for field, keys in _NUMBERS.items():
        found[field] = values.number(*keys)
    found |= _besides(values, architecture)
    found |= _attention(values, families) | _mamba(values, architecture, families)
    found |= _linear(values, families) | _experts(values, architecture, families)
    found |= architecture.fixed
    for family, fixed in architecture.fixed_of.items():
        found |= fixed if family in families else {}
    found |= _positions(values, architecture, families)
    given = {field: value for field, value in found.items() if value is not None}
    # Without it queries are projected in one step; the class would take a rank of its own.
    return given | ({"q_lora_rank": found["q_lora_rank"]} if "q_lora_rank" in found else {})


def uncarried(values: Values) -> list[str]:
    """The keys, with their values, that change the model and that no setting carries."""
    return [
        f"{key} = {_short(value)}"
        for key, value in sorted(values.unread().items())
        if key not in _BESIDE
        and not key.startswith(("_", "use_cache", "use_mamba", "use_mem_eff"))
        and not key.endswith(("_token_id", "_token_index", "torch_dtype"))
        and _AS_MEGATRON.get(key, ...) != value
    ]


def _short(value: Any) -> str:
    return f"{value!r:.40}" if not isinstance(value, dict) else "{…}"


def _besides(values: Values, architecture: Architecture) -> dict[str, Any]:
    """Norms, biases, embeddings, activation, dropout and the type of the weights."""
    biases = {key: flag for key in _BIASES if (flag := values.flag(key)) is not None}
    biased = bool(biases) and all(biases.values())
    if not biased:  # Megatron gives a bias to all linears or to none
        values.leave(*(key for key, flag in biases.items() if flag))
    kind = values.text("torch_dtype", "dtype")
    tied = values.flag("tie_word_embeddings")
    return {
        "normalization": "RMSNorm",
        "add_bias_linear": biased,
        "share_embeddings_and_output_weights": architecture.tied if tied is None else tied,
        "hidden_dropout": values.number("hidden_dropout") or 0.0,
        "attention_dropout": values.number("attention_dropout") or 0.0,
        "fp32_residual_connection": values.flag("residual_in_fp32") or None,
        "qk_layernorm": values.flag("use_qk_norm") or None,
        "bf16": True if kind == "bfloat16" else None,
        "fp16": True if kind == "float16" else None,
        **_activation(values, architecture),
    }


def _activation(values: Values, architecture: Architecture) -> dict[str, Any]:
    """The feed-forward layers' activation, with or without a gate."""
    keys = ("mlp_hidden_act", "hidden_act", "hidden_activation")
    name = values.text(*keys) or ("silu" if architecture.gated else "relu2")
    if name not in _ACTIVATIONS:
        values.leave(*keys)
    gate = {"gated_linear_unit": True} if architecture.gated else {}
    return {"activation_func": _ACTIVATIONS.get(name)} | gate


def _attention(values: Values, families: Collection[str]) -> dict[str, Any]:
    width = values.whole(*_HEAD_WIDTH)
    latent = not LATENT.isdisjoint(families)
    ranks = {field: values.whole(key) for field, key in _MLA.items()}
    if latent:
        return ranks | {"q_lora_rank": values.whole("q_lora_rank")}
    return {"kv_channels": width} if "attention" in families else {}


def _mamba(values: Values, architecture: Architecture, families: Collection[str]) -> dict[str, Any]:
    found = {field: values.whole(*keys) for field, keys in _MAMBA.items()}
    auto = values.value(*_MAMBA_HEAD_WIDTH) == "auto"
    width = None if auto else values.whole(*_MAMBA_HEAD_WIDTH)
    if architecture.name == "mamba2":  # it has no other heads, and names these without a prefix
        found["mamba_num_heads"], width = values.whole("num_heads"), values.whole("head_dim")
    hidden, heads = values.whole("hidden_size"), found["mamba_num_heads"]
    if width is None and hidden and heads:
        width = (values.whole("mamba_expand", "expand") or 2) * hidden // heads
    if "mamba" not in families:
        return {}
    return found | {"mamba_head_dim": width}


def _linear(values: Values, families: Collection[str]) -> dict[str, Any]:
    found = {key: values.whole(key) for key in _GDN}
    return found if "gdn" in families else {}


def _experts(
    values: Values, architecture: Architecture, families: Collection[str]
) -> dict[str, Any]:
    shared = values.whole(
        "moe_shared_expert_intermediate_size",
        "shared_expert_intermediate_size",
        "shared_intermediate_size",
    )
    width = values.whole(_EXPERT_WIDTH)
    number = values.whole(*_SHARED_EXPERTS)
    if architecture.experts_width != _EXPERT_WIDTH:
        width = values.whole(architecture.experts_width)
    if shared is None and number and width:
        shared = number * width
    normalized = values.flag("norm_topk_prob", "moe_renormalize")
    scored = values.text("scoring_func", "moe_router_activation_func")
    values.value("use_routing_bias")
    groups, of = values.whole("n_group", "num_expert_group"), values.whole("topk_group")
    scaling = values.number("routed_scaling_factor")
    found = {
        "num_moe_experts": values.whole(*EXPERTS),
        "moe_router_topk": values.whole("num_experts_per_tok", "num_experts_per_token"),
        "moe_ffn_hidden_size": width,
        "moe_shared_expert_intermediate_size": shared or None,
        "moe_latent_size": values.whole("moe_latent_size"),
        "moe_router_topk_scaling_factor": None if scaling == 1.0 else scaling,
        "moe_aux_loss_coeff": values.number("router_aux_loss_coef", "aux_loss_alpha"),
        "moe_router_score_function": scored,
    }
    if (groups or 1) > 1:
        found |= {"moe_router_num_groups": groups, "moe_router_group_topk": of}
    if normalized is False:
        found["moe_router_pre_softmax"] = True
    if "moe" in families:
        return found
    # Granite's experts beside a dense layer of its own: without them that layer is the model's.
    dense = values.whole("shared_intermediate_size")
    return {"ffn_hidden_size": dense} if dense else {}


def _positions(
    values: Values, architecture: Architecture, families: Collection[str]
) -> dict[str, Any]:
    """Rotary positions, which newer configurations keep in a table."""
    table = values.table("rope_parameters", "rope_scaling")
    key = architecture.position
    kind = "rope" if key == "rope" else "none"
    if key not in ("rope", "none"):
        kind = "rope" if values.value(key) == "rope" else "none"
    base = values.number("rope_theta") or values.inside(table, "rope_theta")
    part = values.number("partial_rotary_factor")
    part = part or values.inside(table, "partial_rotary_factor")
    hidden, heads = values.whole("hidden_size"), values.whole("num_attention_heads")
    width, rotated = values.whole(*_HEAD_WIDTH), values.whole("rotary_dim", "attn_rotary_emb")
    width = width or (hidden // heads if hidden and heads else None)
    if part is None and rotated and width:
        part = rotated / width
    if kind == "none":
        return {"position_embedding_type": kind, "rotary_percent": None}
    scaled = table.get("rope_type", table.get("type", "default"))
    if scaled not in ("default", None):
        values.leave("rope_parameters", "rope_scaling")
    found: dict[str, Any] = {"position_embedding_type": kind}
    if base:
        found["rotary_base"] = int(base) if float(base).is_integer() else base
    if not LATENT.isdisjoint(families):
        found["rope_type"] = "rope"  # latent attention's is scaled by default
    return found | ({} if part is None else {"rotary_percent": part})
