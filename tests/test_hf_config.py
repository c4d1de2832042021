"""Hugging Face configurations as recipes: layers in every published form, MTP, sizes, refusals."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from megatron_seams.cli import cli
from megatron_seams.errors import RecipeInvalid, Refusal
from megatron_seams.recipes.hf_architectures import ARCHITECTURES
from megatron_seams.recipes.hf_config import HfModel, read_hf_config
from megatron_seams.recipes.recipe import load_recipe

DATA = Path(__file__).parent / "data" / "hf"
ROOT = Path(__file__).resolve().parent.parent


def written(tmp_path: Path, config: Any) -> Path:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config), encoding="utf-8")
    return path


def read(tmp_path: Path, **config: Any) -> HfModel:
    return read_hf_config(written(tmp_path, config))


def pattern(tmp_path: Path, **config: Any) -> str:
    return read(tmp_path, **config).recipe.model.pattern


def refused(tmp_path: Path, config: Any) -> list[str]:
    """The ``found`` of each reason against a configuration."""
    with pytest.raises(Refusal) as found:
        read_hf_config(written(tmp_path, config))
    assert all(isinstance(reason, RecipeInvalid) for reason in found.value.reasons)
    return [reason.found for reason in found.value.reasons]


def command(*arguments: str | Path, code: int) -> str:
    """Both streams of a command."""
    done = CliRunner().invoke(cli, [str(part) for part in arguments], prog_name="registry")
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    assert done.exit_code == code, done.output
    return done.output


# --- a hybrid's own pattern -------------------------------------------------------------------


@pytest.mark.parametrize(
    "config",
    [
        {"hybrid_override_pattern": "ME*-"},
        {"hybrid_override_pattern": ["M", "E", "*", "-"]},
        {"hybrid_override_pattern": ["mamba", "moe", "attention", "mlp"]},
        {"layers_block_type": ["mamba", "moe", "attention", "mlp"]},
        {"layers_block_type": ["linear_attention", "moe", "full_attention", "mlp"]},
        {"layer_types": ["mamba", "moe", "attention", "mlp"]},
        {
            "hybrid_override_pattern": "ME*-",
            "layers_block_type": ["mamba", "moe", "attention", "mlp"],
        },
        {"hybrid_override_pattern": None, "layer_types": ["mamba", "moe", "attention", "mlp"]},
    ],
    ids=lambda config: "+".join(config),
)
def test_one_model_in_every_form_is_one_recipe(config: dict[str, Any], tmp_path: Path) -> None:
    expected = read(tmp_path, model_type="nemotron_h", hybrid_override_pattern="ME*-").recipe
    assert read(tmp_path, model_type="nemotron_h", **config).recipe == expected
    assert expected.model.pattern == "ME*-"
    assert expected.dialect.tokens == {}


@pytest.mark.parametrize("depth", [4, "4", 4.0, None, ...])
def test_a_depth_that_fits_or_is_not_stated_is_right(depth: Any, tmp_path: Path) -> None:
    stated = {} if depth is ... else {"num_hidden_layers": depth}
    for main in ("M-M*", "M-|M*"):
        assert pattern(tmp_path, hybrid_override_pattern=main, **stated) == main
    assert pattern(tmp_path, hybrid_override_pattern="M-M*/*-/*-", **stated) == "M-M*/*-/*-"


@pytest.mark.parametrize("depth", [5, "5", 3, True, "four", [4], 0])
def test_a_depth_that_does_not_fit_is_refused_by_its_key(depth: Any, tmp_path: Path) -> None:
    config = {"hybrid_override_pattern": "M-M*/*-", "num_hidden_layers": depth}
    (found,) = refused(tmp_path, config)
    assert "num_hidden_layers" in found
    assert f"{depth!r}".strip("'") in found


def test_stages_and_mtp_parts_are_not_counted_as_layers(tmp_path: Path) -> None:
    main = "MEM*E" * 4
    config = {"hybrid_override_pattern": f"{main}/*E/*E", "num_hidden_layers": 20}
    assert pattern(tmp_path, **config) == f"{main}/*E/*E"
    assert "has 20 layers" in refused(tmp_path, config | {"num_hidden_layers": 26})[0]


def test_letters_of_a_fork_are_refused_one_by_one(tmp_path: Path) -> None:
    path = written(tmp_path, {"model_type": "nemotron_h", "hybrid_override_pattern": "M-M*-CR"})
    printed = command("resolve", path, code=2)
    assert "token 'C'" in printed
    assert "token 'R'" in printed
    assert "refused: 2 reasons" in printed


@pytest.mark.parametrize("value", [4, {"M": 1}, [1, 2]])
def test_a_pattern_of_another_type_is_called_that(value: Any, tmp_path: Path) -> None:
    (found,) = refused(tmp_path, {"model_type": "nemotron_h", "hybrid_override_pattern": value})
    assert found.startswith(f"hybrid_override_pattern is {value!r}")


@pytest.mark.parametrize("value", ["", []])
def test_a_pattern_without_layers_is_called_that(value: Any, tmp_path: Path) -> None:
    config = {"model_type": "nemotron_h", "hybrid_override_pattern": value, "num_hidden_layers": 0}
    assert "hybrid_override_pattern spells no layer" in refused(tmp_path, config)


def test_a_key_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"hybrid_override_pattern": "M*", "hybrid_override_pattern": "MM"}')
    with pytest.raises(Refusal) as found:
        read_hf_config(path)
    assert [reason.found for reason in found.value.reasons] == [
        "key 'hybrid_override_pattern' is there twice"
    ]


def test_layers_of_different_sizes_are_refused(tmp_path: Path) -> None:
    config = {"model_type": "nemotron_h_puzzle", "hybrid_override_pattern": "ME"}
    (found,) = refused(tmp_path, config | {"block_configs": [{"n_routed_experts": 8}]})
    assert "block_configs" in found


# --- multi-token prediction -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mtp", "suffix"),
    [
        ({"num_nextn_predict_layers": 1, "mtp_hybrid_override_pattern": "*E"}, "/*E"),
        ({"num_nextn_predict_layers": 2, "mtp_hybrid_override_pattern": ["*", "E"]}, "/*E/*E"),
        ({"num_nextn_predict_layers": "1", "mtp_layers_block_type": ["attention", "moe"]}, "/*E"),
        ({"num_nextn_predict_layers": 1, "mtp_layers_block_type": ["full_attention"]}, "/*"),
        ({"num_nextn_predict_layers": 0, "mtp_hybrid_override_pattern": "*E"}, ""),
        ({"num_nextn_predict_layers": None, "mtp_hybrid_override_pattern": None}, ""),
        ({"mtp_layers_block_type": ["full_attention", "moe"]}, ""),
    ],
    ids=str,
)
@pytest.mark.parametrize("main", ["hybrid_override_pattern", "layers_block_type"])
def test_mtp_depths_become_the_patterns_suffix(
    mtp: dict[str, Any], suffix: str, main: str, tmp_path: Path
) -> None:
    layers = "ME" if main == "hybrid_override_pattern" else ["mamba", "moe"]
    assert pattern(tmp_path, model_type="nemotron_h", **{main: layers}, **mtp) == f"ME{suffix}"


@pytest.mark.parametrize(
    "mtp",
    [
        {"num_nextn_predict_layers": 1},
        {"num_nextn_predict_layers": 1, "mtp_hybrid_override_pattern": ""},
        {"num_nextn_predict_layers": -1, "mtp_hybrid_override_pattern": "*E"},
        {"num_nextn_predict_layers": "some", "mtp_hybrid_override_pattern": "*E"},
        {"num_nextn_predict_layers": 1, "mtp_layers_block_type": ["attention", "router"]},
    ],
    ids=str,
)
def test_mtp_depths_without_layers_are_refused_by_their_keys(
    mtp: dict[str, Any], tmp_path: Path
) -> None:
    found = refused(tmp_path, {"model_type": "nemotron_h", "hybrid_override_pattern": "ME", **mtp})
    assert "num_nextn_predict_layers" in found[0] or "mtp_" in found[0]


@pytest.mark.parametrize(
    "mtp",
    [
        {"num_nextn_predict_layers": 1, "mtp_hybrid_override_pattern": "*E"},
        {"num_nextn_predict_layers": 2, "mtp_hybrid_override_pattern": "*-"},
        {"num_nextn_predict_layers": 3},
        {"num_nextn_predict_layers": 0},
    ],
    ids=str,
)
def test_mtp_in_two_places_that_differ_is_refused(mtp: dict[str, Any], tmp_path: Path) -> None:
    (found,) = refused(tmp_path, {"hybrid_override_pattern": "ME/*E/*E", **mtp})
    assert "MTP parts" in found
    agreed = {"num_nextn_predict_layers": 2, "mtp_hybrid_override_pattern": "*E"}
    assert pattern(tmp_path, hybrid_override_pattern="ME/*E/*E", **agreed) == "ME/*E/*E"


# --- the architectures ------------------------------------------------------------------------

#: File in tests/data/hf -> its pattern, and the blocks that no Megatron builds.
PATTERNS = {
    "nemotron_3_nano": ("MEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEMEM*EMEMEMEME", {}),
    "granite_4": ("MEMEMEMEME*EMEME", {}),
    "bamba": ("M-M-*-M-M-*-", {}),
    "qwen3_next": ("GEGEGE*EGEGEGE*E", {}),
    "minimax_m2": ("*E*E*E*E/*E/*E/*E", {}),
    "kimi_linear": ("K-KEKE+EKEKEKE+E", {"K": "kda"}),
    "jamba": ("s-sEs-sE*-sEs-sE", {"s": "mamba1"}),
    "zamba2": ("MMhMMh", {"h": "shared_transformer_mamba"}),
    "falcon_h1": ("p-p-p-p-", {"p": "parallel_attention_mamba"}),
    "minimax": ("lElElElElElElE*E", {"l": "lightning_attention"}),
}


@pytest.mark.parametrize("name", PATTERNS)
def test_a_published_architecture_has_its_layers(name: str) -> None:
    recipe = read_hf_config(DATA / f"{name}.json").recipe
    assert (recipe.model.pattern, recipe.dialect.tokens) == PATTERNS[name]


def test_every_fixture_is_read() -> None:
    assert {path.stem for path in DATA.glob("*.json")} == set(PATTERNS)


@pytest.mark.parametrize("name", [name for name, (_, foreign) in PATTERNS.items() if not foreign])
def test_native_blocks_are_planned_and_their_double_layers_are_said(name: str) -> None:
    printed = command("resolve", DATA / f"{name}.json", code=0)
    assert ("is two of Megatron's" in printed) == (name != "nemotron_3_nano")


@pytest.mark.parametrize("name", [name for name, (_, foreign) in PATTERNS.items() if foreign])
def test_a_foreign_block_is_refused_by_architecture_and_block(name: str) -> None:
    printed = command("resolve", DATA / f"{name}.json", code=2)
    (family,) = PATTERNS[name][1].values()
    assert f"[SEAM-R01] a provider for family '{family}'" in printed
    assert f"found: {name}'s block '" in printed
    assert "refused: 1 reason" in printed


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"full_attention_interval": 2, "num_hidden_layers": 4}, "GE*EGE*E"),
        ({"full_attention_interval": 2, "num_hidden_layers": "2"}, "GE*E"),
        ({"layer_types": ["linear_attention", "full_attention"], "mlp_only_layers": [0]}, "G-*E"),
        ({"layer_types": ["linear_attention", "full_attention"], "num_experts": 0}, "G-*-"),
        (
            {
                "layer_types": ["linear_attention"] * 4,
                "num_experts": 8,
                "decoder_sparse_step": 2,
                "full_attention_interval": 5,
            },
            "G-GEG-GE",
        ),
    ],
    ids=str,
)
def test_periods_and_lists_of_qwen(config: dict[str, Any], expected: str, tmp_path: Path) -> None:
    assert pattern(tmp_path, model_type="qwen3_next", **config) == expected


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"attn_layer_period": 4, "attn_layer_offset": 2, "num_hidden_layers": 4}, "sEsE*EsE"),
        ({"layers_block_type": ["mamba", "attention"], "num_experts": 1}, "s-*-"),
        ({"layers_block_type": ["mamba", "attention"], "num_experts": 2}, "sE*E"),
        (
            {
                "attn_layer_period": 2,
                "attn_layer_offset": 1,
                "expert_layer_period": 3,
                "expert_layer_offset": 2,
                "num_hidden_layers": 4,
            },
            "s-*-sE*-",
        ),
    ],
    ids=str,
)
def test_periods_and_lists_of_jamba(config: dict[str, Any], expected: str, tmp_path: Path) -> None:
    assert pattern(tmp_path, model_type="jamba", **config) == expected


@pytest.mark.parametrize(
    ("kind", "config", "expected"),
    [
        ("granitemoehybrid", {"layer_types": ["mamba", "attention"]}, "ME*E"),
        (
            "granitemoehybrid",
            {"layers_block_type": ["mamba", "attention"], "num_local_experts": 0},
            "M-*-",
        ),
        ("bamba", {"layer_types": ["linear_attention", "full_attention"]}, "M-*-"),
        ("minimax", {"layer_types": ["full_attention", "full_attention"]}, "*E*E"),
        (
            "zamba",
            {"attn_layer_period": 3, "attn_layer_offset": 1, "num_hidden_layers": 7},
            "sshshss",
        ),
        ("zamba2", {"hybrid_layer_ids": [1], "num_hidden_layers": 3}, "MhM"),
        ("kimi_linear", {"layer_types": ["linear_attention", "full_attention"]}, "KE+E"),
        (
            "kimi_linear",
            {
                "layer_types": ["linear_attention", "full_attention"],
                "mlp_layer_types": ["dense", "sparse"],
                "num_nextn_predict_layers": 1,
            },
            "K-+E/+E",
        ),
        ("mamba2", {"num_hidden_layers": 3}, "MMM"),
        ("lfm2", {"layer_types": ["conv", "full_attention"]}, "c-*-"),
        (
            "recurrent_gemma",
            {"block_types": ["recurrent", "attention"], "num_hidden_layers": 3},
            "r-w-r-",
        ),
        (
            "qwen3_5_moe_text",
            {"full_attention_interval": 2, "num_hidden_layers": 2, "mtp_num_hidden_layers": 1},
            "GE*E/*E",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_further_forms(kind: str, config: dict[str, Any], expected: str, tmp_path: Path) -> None:
    assert pattern(tmp_path, model_type=kind, **config) == expected


def test_an_architecture_is_known_by_its_models_class(tmp_path: Path) -> None:
    config = {"architectures": ["FalconH1ForCausalLM"], "num_hidden_layers": 1}
    assert pattern(tmp_path, **config) == "p-"


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"layer_types": ["linear_attention"] * 3, "full_attention_interval": 3}, "different"),
        ({"layer_types": ["linear_attention"] * 3, "num_hidden_layers": 4}, "num_hidden_layers"),
        ({"layer_types": ["linear_attention", "sliding"]}, "qwen3_next's"),
        ({"layer_types": "linear_attention"}, "list of names"),
        ({"full_attention_interval": 0, "num_hidden_layers": 4}, "full_attention_interval is 0"),
        ({"full_attention_interval": 4}, "no number of layers"),
        ({"num_hidden_layers": 48}, "none of layers_block_type"),
        ({"attn_layer_period": 2, "attn_layer_offset": 2, "num_hidden_layers": 4}, "attn_layer"),
        ({"layer_types": ["full_attention"], "mlp_layer_types": ["sparse"] * 2}, "each of 1"),
        ({"layer_types": ["full_attention"], "mlp_layer_types": ["both"]}, "sparse or dense"),
        ({"layer_types": ["full_attention"], "moe_layer_freq": [1, 0]}, "moe_layer_freq"),
    ],
    ids=str,
)
def test_layers_that_contradict_themselves_are_refused(
    config: dict[str, Any], says: str, tmp_path: Path
) -> None:
    found = refused(tmp_path, {"model_type": "qwen3_next", **config})
    assert says in " ".join(found)


def test_kimis_lists_must_be_all_layers(tmp_path: Path) -> None:
    lists = {"kda_layers": [1, 2], "full_attn_layers": [4]}
    config = {"model_type": "kimi_linear", "num_hidden_layers": 4, "linear_attn_config": lists}
    assert "1 to 4" in refused(tmp_path, config)[0]


@pytest.mark.parametrize("indices", [[2], [-1], [0, 5]])
def test_indices_are_those_of_layers(indices: list[int], tmp_path: Path) -> None:
    config = {"model_type": "bamba", "num_hidden_layers": 2, "attn_layer_indices": indices}
    assert "the layers are 0 to 1" in refused(tmp_path, config)[0]
    assert pattern(tmp_path, **config | {"attn_layer_indices": []}) == "M-M-"


def test_minimaxs_types_are_two(tmp_path: Path) -> None:
    assert "[2]" in refused(tmp_path, {"model_type": "minimax", "attn_type_list": [0, 2]})[0]


def test_an_unknown_architecture_is_named_with_its_blocks(tmp_path: Path) -> None:
    config = {"model_type": "acme", "layer_types": ["loop", "full_attention", "loop"]}
    (found,) = refused(tmp_path, config)
    assert "architecture acme" in found
    assert "loop, full_attention" in found
    (found,) = refused(tmp_path, {"model_type": "llama", "num_hidden_layers": 32})
    assert "architecture llama" in found


def test_a_pattern_of_an_unknown_architecture_is_read_and_that_is_said(tmp_path: Path) -> None:
    found = read(tmp_path, model_type="acme", hybrid_override_pattern="M-")
    assert found.recipe.model.pattern == "M-"
    assert "names no architecture that is known" in found.notes[0]


# --- a part of a larger configuration -----------------------------------------------------------


@pytest.mark.parametrize("place", ["llm_config", "text_config", "thinker_config.text_config"])
def test_a_nested_language_model_is_read_and_its_place_is_said(place: str, tmp_path: Path) -> None:
    config: Any = {"model_type": "nemotron_h", "hybrid_override_pattern": "M*", "hidden_size": 64}
    for key in reversed(place.split(".")):
        config = {
            "model_type": "some_omni",
            "vision_config": {"num_hidden_layers": 27},
            key: config,
        }
    found = read_hf_config(written(tmp_path, config))
    assert found.recipe.model.pattern == "M*"
    assert found.recipe.megatron["hidden_size"] == 64
    assert f"only {place} is read" in found.notes[0]


def test_the_top_is_read_before_a_part(tmp_path: Path) -> None:
    part = {"model_type": "nemotron_h", "layer_types": ["attention"]}
    config = {"model_type": "nemotron_h", "hybrid_override_pattern": "ME", "text_config": part}
    assert pattern(tmp_path, **config) == "ME"


def test_a_model_of_parts_is_found_by_its_layers_and_tied_at_its_top(tmp_path: Path) -> None:
    part = {
        "model_type": "qwen3_5_moe_text",
        "full_attention_interval": 2,
        "num_hidden_layers": 2,
    }
    config = {"model_type": "qwen3_5_moe", "text_config": part, "tie_word_embeddings": True}
    found = read(tmp_path, **config).recipe
    assert found.model.pattern == "GE*E"
    assert found.megatron["share_embeddings_and_output_weights"] is True


# --- sizes ------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("name", PATTERNS)
def test_no_value_of_any_key_is_more_than_a_refusal(name: str, tmp_path: Path) -> None:
    config = json.loads((DATA / f"{name}.json").read_text(encoding="utf-8"))
    wrong = (None, True, 0, -1, 10**400, 1e300, "9" * 5000, "", "x", [], [1], ["x"], {}, {"x": 1})
    read_ones, places = 0, set()
    for key in (*config, "rope_parameters", "mlp_layer_types", "moe_layer_freq", "mlp_only_layers"):
        for value in wrong:
            try:
                read_hf_config(written(tmp_path, config | {key: value}))
                read_ones += 1
            except Refusal as refusal:  # and nothing else
                places |= {reason.file for reason in refusal.reasons} or {f"{key} = {value}"}
    assert read_ones > len(config)
    assert places == {str(tmp_path / "config.json")}


# --- files and texts ----------------------------------------------------------------------------


def test_a_byte_order_mark_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps({"hybrid_override_pattern": "M*-"}).encode())
    assert read_hf_config(path).recipe.model.pattern == "M*-"


def test_infinity_is_a_number(tmp_path: Path) -> None:
    assert (
        pattern(tmp_path, hybrid_override_pattern="M", time_step_limit=[0.0, float("inf")]) == "M"
    )


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"[1, 2]", "its top level is a list, not an object"),
        (b'"M"', "its top level is 'M', not an object"),
        (b'{"hybrid_override_pattern": "M",}', "line 1"),
        ('{"hybrid_override_pattern": "M"}'.encode("utf-16"), "utf-8"),
        (b"{}", "no hybrid_override_pattern and no model_type"),
    ],
)
def test_what_is_no_configuration_is_said_once(data: bytes, says: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(data)
    printed = command("resolve", path, code=2)
    assert says in printed
    assert "refused: 1 reason" in printed


def test_every_architecture_is_in_the_table_of_the_documentation() -> None:
    page = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    for name in ARCHITECTURES:
        assert f"`{name}`" in page
