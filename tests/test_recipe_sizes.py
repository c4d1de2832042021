"""The sizes of the recipes: whole, known to every supported Megatron, as large as published."""

from pathlib import Path
from typing import Any

import pytest

import megatron_releases
from megatron_seams.planning.arguments import native_arguments
from megatron_seams.planning.environment import read_environment
from megatron_seams.planning.resolver import resolve
from megatron_seams.recipes.pattern import Pattern, parse_pattern
from megatron_seams.recipes.recipe import load_recipe

RECIPES = sorted((Path(__file__).resolve().parent.parent / "recipes").glob("*.toml"))
#: What Megatron has no default for, or a default that no published hybrid model has.
STATED = {
    "add_bias_linear",
    "attention_dropout",
    "ffn_hidden_size",
    "hidden_dropout",
    "hidden_size",
    "max_sequence_length",
    "normalization",
    "num_attention_heads",
    "position_embedding_type",
    "share_embeddings_and_output_weights",
    "vocab_size",
}
#: The same where the model has such layers.
STATED_OF = {
    "M": {"mamba_head_dim", "mamba_num_groups", "mamba_state_dim"},
    "*": {"kv_channels", "num_query_groups"},
    "E": {"moe_ffn_hidden_size", "moe_router_topk", "num_moe_experts"},
}
#: Parameters, and how far off the sizes may be: 0 where a count is published.
#: Nemotron 3 Nano 4B: the verification card of NVIDIA-NeMo/Megatron-Bridge. Others: their names.
PARAMETERS = {
    "nemotron-3-nano-4b": (3_973_556_832, 0.0),
    "nemotron-3-nano-30b-a3b": (30e9, 0.06),
    "nemotron-3-super": (120e9, 0.06),
    "nemotron-h-8b": (8e9, 0.06),
    "nemotron-h-47b": (47e9, 0.06),
    "nemotron-h-56b": (56e9, 0.06),
    "nemotron-nano-9b-v2": (9e9, 0.06),
    "mamba2-hybrid-8b": (8.6e9, 0.02),
}


def sizes(name: str) -> tuple[Pattern, dict[str, Any]]:
    recipe = load_recipe(next(path for path in RECIPES if path.stem == name))
    model = recipe.model
    return parse_pattern(model.pattern, dialect=model.dialect, depth=model.depth), recipe.megatron


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_states_what_its_model_is_built_from(path: Path) -> None:
    pattern, stated = sizes(path.stem)
    wanted = STATED.union(*(keys for token, keys in STATED_OF.items() if token in pattern.tokens))
    if "mamba" in load_recipe(path).families:  # its M is Mamba-3, of which Megatron knows no sizes
        wanted -= STATED_OF["M"]
    assert wanted <= set(stated)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_says_where_its_sizes_are_from(path: Path) -> None:
    comment = path.read_text(encoding="utf-8").partition("\nschema")[0]
    assert "NVIDIA" in comment or "cppmega" in comment or "this project's own" in comment


@pytest.mark.parametrize("release", ["0.17", "0.18", "0.19"])
@pytest.mark.parametrize(
    "path",
    [path for path in RECIPES if not path.stem.startswith("nam")],
    ids=lambda path: path.stem,
)
def test_every_supported_megatron_has_arguments_for_a_published_model(
    path: Path, release: str
) -> None:
    environment = read_environment(megatron_releases.wheel(release))
    plan = resolve(load_recipe(path), environment)
    printed = native_arguments(plan, environment.settings()).words
    for flag, key in (("--hidden-size", "hidden_size"), ("--padded-vocab-size", "vocab_size")):
        assert printed[printed.index(flag) + 1] == str(plan.megatron[key])
    assert "--position-embedding-type" in printed
    assert "--bf16" in printed


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_published_model_has_as_many_parameters_as_published(name: str) -> None:
    published, tolerance = PARAMETERS[name]
    assert parameters(*sizes(name)) == pytest.approx(published, rel=tolerance, abs=0)


def parameters(pattern: Pattern, m: dict[str, Any]) -> int:
    """The parameters of the decoder, the embeddings and the output layer; MTP depths apart."""
    of_layer = {token: layer(token, m) for token in set(pattern.tokens)}
    embeddings = 2 * m["vocab_size"] * m["hidden_size"]
    return sum(of_layer[token] for token in pattern.tokens) + embeddings + m["hidden_size"]


def layer(kind: str, m: dict[str, Any]) -> int:
    """The parameters of one layer without biases, its norm included; the feed-forward ungated."""
    hidden = m["hidden_size"]
    if kind == "*":
        width, groups = m["kv_channels"], m["num_query_groups"]
        heads = m["num_attention_heads"]
        return hidden + hidden * width * (heads + 2 * groups) + heads * width * hidden
    if kind == "-":
        return hidden + 2 * hidden * m["ffn_hidden_size"]
    if kind == "E":
        experts, inner = m["num_moe_experts"], m.get("moe_latent_size") or hidden
        router = (hidden + 1) * experts  # with the bias that balances the load
        latent = 2 * hidden * inner if inner != hidden else 0
        routed = experts * 2 * inner * m["moe_ffn_hidden_size"]
        shared = 2 * hidden * m["moe_shared_expert_intermediate_size"]
        return hidden + router + latent + routed + shared
    assert kind == "M"
    heads, states = m["mamba_num_heads"], 2 * m["mamba_num_groups"] * m["mamba_state_dim"]
    inner = heads * m["mamba_head_dim"]
    projected = hidden * (2 * inner + states + heads) + inner * hidden
    convolved = (inner + states) * (4 + 1)  # four taps and a bias
    return hidden + projected + convolved + 3 * heads + inner
