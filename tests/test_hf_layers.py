"""The layers of a configuration of Hugging Face's, in every form that models publish them."""

from pathlib import Path
from typing import Any

import pytest

from hf_configs import DATA, PATTERNS, command, pattern, read, refused, written
from megatron_seams.errors import Refusal
from megatron_seams.recipes.hf_config import read_hf_config

# --- a hybrid's own pattern --------------------------------------------------------------------


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


# --- multi-token prediction --------------------------------------------------------------------


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


# --- the architectures -------------------------------------------------------------------------


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
