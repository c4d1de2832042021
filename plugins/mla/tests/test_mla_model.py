"""The seam in whole models, resolved and built as a user's are, on whichever Megatron is there."""

from typing import Any

import pytest

from megatron_seams.base.structure import structure
from megatron_seams.errors import CannotRunHere, Refusal
from megatron_seams.planning.environment import Environment, read_environment
from megatron_seams.planning.plan import Custom, Plan
from megatron_seams.planning.resolver import resolve
from megatron_seams.recipes.recipe import Recipe
from sparse_attention import sparse_backend, sparse_settings

pytestmark = [pytest.mark.megatron, pytest.mark.release]

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
    pattern: str,
    position_embedding_type: str,
    environment: Environment,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import torch
    from megatron.core.transformer.multi_latent_attention import MLASelfAttention

    from megatron_seams.runtime.backends.backend import choose_backend
    from megatron_seams.runtime.cpu.world import cpu_world
    from megatron_seams.runtime.model.build import build_model

    backend, settings = choose_backend(), {}
    if "D" in pattern:
        if environment.surface.of_family("dsa") is None:
            pytest.skip("this Megatron has no native sparse attention")
        backend, settings = sparse_backend(monkeypatch), sparse_settings()
    plan = plan_of(
        pattern, environment, position_embedding_type=position_embedding_type, **settings
    )
    latent = [layer.position - 1 for layer in plan.layers if layer.family == "mla"]
    assert latent == [0, 2]
    with cpu_world() as groups:
        model = build_model(plan, backend=backend, pg_collection=groups)
        ids = torch.randint(0, 64, (2, 16))
        loss = model(ids, torch.arange(16).expand(2, -1), None, labels=ids).mean()
        loss.backward()
    assert loss.isfinite()
    assert [name for name, weight in model.named_parameters() if weight.grad is None] == []
    for index in latent:
        layer = model.decoder.layers[index]
        assert layer.layer_number == index + 1
        assert isinstance(layer.self_attention, MLASelfAttention)
        assert type(layer.self_attention.core_attention) is backend.provider.core_attention()


def test_without_transformer_engine_the_fused_projection_is_the_two_that_it_stands_for(
    environment: Environment,
) -> None:
    from megatron_seams.runtime.cpu.world import cpu_world
    from megatron_seams.runtime.model.build import build_model

    plan = plan_of("L-", environment, mla_down_proj_fusion=True)
    with cpu_world() as groups:
        attention = build_model(plan, pg_collection=groups).decoder.layers[0].self_attention
    names = {name.rpartition(".")[0] for name, _ in attention.named_parameters()}
    assert {"linear_q_down_proj", "linear_kv_down_proj"} <= names
    assert "linear_qkv_down_proj" not in names


def test_where_sparse_attention_needs_a_kernel_the_refusal_says_which(
    environment: Environment,
) -> None:
    from megatron_seams.runtime.compat import NO_ROTATION
    from megatron_seams.runtime.model.build import build_model

    if environment.surface.of_family("dsa") is None or NO_ROTATION:
        pytest.skip("this Megatron has no sparse attention that insists on the kernel")
    with pytest.raises(Refusal) as refused:
        build_model(plan_of("LDL", environment, **sparse_settings()))
    (reason,) = refused.value.reasons
    assert isinstance(reason, CannotRunHere)
    assert reason.positions == (2,)
    assert "fast-hadamard-transform" in reason.found
