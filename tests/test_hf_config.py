"""Configurations of Hugging Face's: of models with several parts, damaged, with any value."""

import json
from pathlib import Path
from typing import Any

import pytest

from hf_configs import DATA, PATTERNS, ROOT, command, pattern, read, written
from megatron_seams.errors import Refusal
from megatron_seams.recipes.hf_architectures import ARCHITECTURES
from megatron_seams.recipes.hf_config import read_hf_config

# --- a part of a larger configuration ----------------------------------------------------------


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


# --- files and texts ---------------------------------------------------------------------------


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
