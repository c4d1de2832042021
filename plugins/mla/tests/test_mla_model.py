"""The seam in whole models, resolved and built as a user's are, on whichever Megatron is there."""

from typing import Any

import pytest

from megatron_seams.environment import Environment, read_environment
from megatron_seams.errors import CannotRunHere, Refusal
from megatron_seams.plan import Custom, Plan
from megatron_seams.recipe import Recipe
from megatron_seams.resolver import resolve
from megatron_seams.strict import structure

pytestmark = pytest.mark.megatron

SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "max_sequence_length": 32,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "q_lora_rank": 12,
    "kv_lora_rank": 8,
    "qk_head_dim": 8,
    "qk_pos_emb_head_dim": 4,
    "v_head_dim": 8,
    "rope_type": "rope",
    "normalization": "RMSNorm",
    "add_bias_linear": False,
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
}


@pytest.fixture(scope="module")
def environment() -> Environment:
    return read_environment()


def plan_of(pattern: str, environment: Environment, **settings: Any) -> Plan:
    """The plan for upstream's symbols, and L for latent attention."""
    table = {
        "schema": 1,
        "model": {"name": pattern, "pattern": pattern},
        "dialect": {"tokens": {"L": "mla"}},
        "megatron": SIZES | settings,
    }
    recipe, faults = structure(Recipe, table)
    assert recipe is not None, faults
    return resolve(recipe, environment)


def slots(plan: Plan) -> list[str]:
    """The slot of each layer of latent attention, with the seam's name where it is one's."""
    return [
        f"{layer.provider.seam.name} on {layer.provider.slot}"
        if isinstance(layer.provider, Custom)
        else layer.provider.slot
        for layer in plan.layers
        if layer.family == "mla"
    ]


def test_the_seam_builds_exactly_where_megatron_does_not(environment: Environment) -> None:
    native = environment.surface.of_family("mla")
    expected = "mla_layer" if native else "mla on attention_layer"
    assert slots(plan_of("L-L", environment)) == [expected] * 2


def test_beside_native_sparse_attention_the_next_legal_slot_carries_it(
    environment: Environment,
) -> None:
    if environment.surface.of_family("dsa") is None:
        pytest.skip("this Megatron has no native sparse attention")
    native = environment.surface.of_family("mla")
    expected = "mla_layer" if native else "mla on mamba_layer"
    assert slots(plan_of("DLL", environment)) == [expected] * 2


@pytest.mark.parametrize("position_embedding_type", ["none", "rope"])
@pytest.mark.parametrize("pattern", ["L-L", "LDL"])
def test_a_model_trains(
    pattern: str, position_embedding_type: str, environment: Environment
) -> None:
    import torch

    from megatron_seams.runtime.build import build_model
    from megatron_seams.runtime.cpu import cpu_world

    sparse = {"dsa_indexer_n_heads": 2, "dsa_indexer_head_dim": 16, "dsa_indexer_topk": 4}
    if "D" in pattern and environment.surface.of_family("dsa") is None:
        pytest.skip("this Megatron has no native sparse attention")
    if "D" in pattern:
        sparse["dsa_indexer_loss_coeff"] = 0.01
        if "dsa_indexer_rotate_activation" in environment.settings().config_fields:
            sparse["dsa_indexer_rotate_activation"] = False
    plan = plan_of(
        pattern,
        environment,
        position_embedding_type=position_embedding_type,
        **(sparse if "D" in pattern else {}),
    )
    with cpu_world() as groups:
        try:
            model = build_model(plan, pg_collection=groups)
        except Refusal as refusal:
            # The whole plan is sound; this release's sparse attention needs a GPU.
            assert [type(reason) for reason in refusal.reasons] == [CannotRunHere]  # noqa: PT017
            pytest.skip(refusal.reasons[0].found)
        ids = torch.randint(0, 64, (2, 16))
        loss = model(ids, torch.arange(16).expand(2, -1), None, labels=ids).mean()
        loss.backward()
    assert loss.isfinite()
    assert [name for name, weight in model.named_parameters() if weight.grad is None] == []
