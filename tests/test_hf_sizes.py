"""The sizes of a configuration of Hugging Face's, by Megatron's names."""

from pathlib import Path
from typing import Any

import pytest

from hf_configs import DATA, ROOT, command, read, refused, written
from megatron_seams.recipes.hf_config import read_hf_config
from megatron_seams.recipes.recipe import load_recipe


def test_a_released_configuration_has_the_sizes_of_its_recipe() -> None:
    released = read_hf_config(DATA / "nemotron_3_nano.json")
    shipped = load_recipe(ROOT / "recipes" / "nemotron-3-nano-30b-a3b.toml")
    assert released.recipe.model.pattern == shipped.model.pattern
    # Settings of training that a configuration of weights leaves out, and Megatron's defaults.
    training = {"moe_router_load_balancing_type", "moe_aux_loss_coeff", "moe_grouped_gemm"}
    assert set(shipped.megatron) - set(released.recipe.megatron) == training
    assert set(released.recipe.megatron) - set(shipped.megatron) == {"layernorm_epsilon"}
    for key, value in released.recipe.megatron.items():
        assert shipped.megatron.get(key, 1e-5) == value, key
    assert released.notes == ()


SIZES = {
    "granite_4": {
        "hidden_size": 1536,
        "num_query_groups": 4,
        "layernorm_epsilon": 1e-5,
        "position_embedding_type": "none",
        "share_embeddings_and_output_weights": True,
        "activation_func": "silu",
        "gated_linear_unit": True,
        "mamba_num_heads": 48,
        "mamba_head_dim": 64,
        "mamba_state_dim": 128,
        "mamba_num_groups": 1,
        "num_moe_experts": 64,
        "moe_router_topk": 6,
        "moe_ffn_hidden_size": 512,
        "moe_shared_expert_intermediate_size": 1024,
        "moe_aux_loss_coeff": 0.01,
        "vocab_size": 100352,
        "bf16": True,
    },
    "bamba": {
        "ffn_hidden_size": 14336,
        "mamba_head_dim": 64,  # "auto": twice the width over the heads
        "position_embedding_type": "rope",
        "rotary_percent": 0.5,
        "rotary_base": 10000,
        "share_embeddings_and_output_weights": False,
    },
    "qwen3_next": {
        "kv_channels": 256,
        "num_query_groups": 2,
        "linear_num_key_heads": 16,
        "linear_num_value_heads": 32,
        "linear_key_head_dim": 128,
        "linear_value_head_dim": 128,
        "linear_conv_kernel_dim": 4,
        "num_moe_experts": 512,
        "moe_router_topk": 10,
        "moe_shared_expert_intermediate_size": 512,
        "moe_shared_expert_gate": True,
        "layernorm_zero_centered_gamma": True,
        "attention_output_gate": True,
        "qk_layernorm": True,
        "rotary_base": 10_000_000,
        "rotary_percent": 0.25,
        "layernorm_epsilon": 1e-6,
    },
    "kimi_linear": {
        "q_lora_rank": None,
        "kv_lora_rank": 512,
        "qk_head_dim": 128,
        "qk_pos_emb_head_dim": 64,
        "v_head_dim": 128,
        "rope_type": "rope",
        "max_sequence_length": 1048576,
        "moe_router_score_function": "sigmoid",
        "moe_router_topk_scaling_factor": 2.446,
        "moe_shared_expert_intermediate_size": 1024,
    },
    "minimax_m2": {
        "moe_ffn_hidden_size": 1536,
        "moe_router_score_function": "sigmoid",
        "moe_router_enable_expert_bias": True,
        "rotary_percent": 0.5,
        "kv_channels": 128,
        "qk_layernorm": True,
    },
}


@pytest.mark.parametrize("name", SIZES)
def test_sizes_have_megatrons_names(name: str) -> None:
    found = read_hf_config(DATA / f"{name}.json").recipe.megatron
    assert {key: found[key] for key in SIZES[name]} == SIZES[name]
    assert found["hidden_dropout"] == found["attention_dropout"] == 0.0
    assert found["normalization"] == "RMSNorm"
    assert found["add_bias_linear"] is False


def test_sizes_are_those_of_the_layers_that_there_are(tmp_path: Path) -> None:
    experts = {"n_routed_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
    dense = read(tmp_path, model_type="nemotron_h", hybrid_override_pattern="*-", **experts)
    assert not [key for key in dense.recipe.megatron if key.startswith(("moe", "num_moe", "mamba"))]
    assert dense.notes == ()


def test_granites_dense_models_have_the_width_of_their_one_feed_forward(tmp_path: Path) -> None:
    found = read(
        tmp_path,
        model_type="granitemoehybrid",
        layer_types=["mamba"],
        num_local_experts=0,
        intermediate_size=512,
        shared_intermediate_size=4096,
    )
    assert found.recipe.megatron["ffn_hidden_size"] == 4096


@pytest.mark.parametrize(
    ("given", "settings"),
    [
        ({"torch_dtype": "float16"}, {"fp16": True}),
        ({"dtype": "bfloat16"}, {"bf16": True}),
        ({"mlp_hidden_act": "silu"}, {"activation_func": "silu"}),
        ({"attention_bias": True, "mlp_bias": True}, {"add_bias_linear": True}),
        ({"residual_in_fp32": True}, {"fp32_residual_connection": True}),
        ({"tie_word_embeddings": True}, {"share_embeddings_and_output_weights": True}),
        ({"n_group": 8, "topk_group": 4}, {"moe_router_num_groups": 8, "moe_router_group_topk": 4}),
        ({"moe_latent_size": 32}, {"moe_latent_size": 32}),
        ({"norm_topk_prob": False}, {"moe_router_pre_softmax": True}),
        ({"hidden_size": "64"}, {"hidden_size": 64}),
    ],
    ids=str,
)
def test_a_key_becomes_the_setting_that_it_means(
    given: dict[str, Any], settings: dict[str, Any], tmp_path: Path
) -> None:
    found = read(tmp_path, model_type="nemotron_h", hybrid_override_pattern="ME", **given)
    assert found.recipe.megatron.items() >= settings.items()
    assert found.notes == ()


@pytest.mark.parametrize(
    "left",
    [
        {"residual_multiplier": 0.22},
        {"conv_kernel": 3},
        {"sliding_window": 4096},
        {"use_bias": True, "mlp_bias": False},
        {"mlp_hidden_act": "gelu_pytorch_tanh"},
        {"some_new_gate": True},
    ],
    ids=str,
)
def test_what_no_setting_carries_is_said(left: dict[str, Any], tmp_path: Path) -> None:
    path = written(tmp_path, {"model_type": "nemotron_h", "hybrid_override_pattern": "M-", **left})
    key, value = next(iter(left.items()))
    for name in ("resolve", "args"):
        assert f"no setting of Megatron carries {key} = {value!r}" in command(name, path, code=0)


def test_scaled_rotary_positions_are_said(tmp_path: Path) -> None:
    rope = {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}, "rope_theta": 1e6}
    found = read(tmp_path, model_type="bamba", layer_types=["attention"], **rope)
    assert found.recipe.megatron["rotary_base"] == 1_000_000
    assert "rope_scaling" in found.notes[-1]
    newer = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}
    found = read(tmp_path, model_type="bamba", layer_types=["attention"], **newer)
    assert found.recipe.megatron["rotary_base"] == 1_000_000
    assert not [note for note in found.notes if "carries" in note]


@pytest.mark.parametrize(
    ("key", "value"),
    [("hidden_size", True), ("hidden_size", [1]), ("tie_word_embeddings", "no"), ("n_groups", 1.5)],
)
def test_a_size_of_another_type_is_refused_by_its_key(key: str, value: Any, tmp_path: Path) -> None:
    config = {"model_type": "nemotron_h", "hybrid_override_pattern": "M-", key: value}
    (found,) = refused(tmp_path, config)
    assert found.startswith(f"{key} is {value!r}")
