"""Models of different sizes train one after another in one process, each in a world of its own."""

from typing import Any

import pytest
import torch

from sparse_attention import sparse_backend, sparse_settings

pytestmark = [pytest.mark.megatron, pytest.mark.release]

ROUTED = {
    "num_moe_experts": 4,
    "moe_router_topk": 2,
    "moe_ffn_hidden_size": 32,
    "moe_router_load_balancing_type": "aux_loss",
    "moe_aux_loss_coeff": 0.01,
}
LATENT = {
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_head_dim": 8,
    "qk_pos_emb_head_dim": 8,
    "v_head_dim": 12,
    "rope_type": "rope",
}


@pytest.mark.parametrize(
    ("smaller", "larger", "settings"),
    [
        pytest.param("*/*", "*/*/*", {}, id="MTP depths"),
        pytest.param("*E", "*EEE", ROUTED, id="routers"),
        pytest.param("D-", "D-DD", None, id="indexers"),
    ],
)
def test_a_larger_model_trains_after_a_smaller_one(
    plan_of: Any,
    native: Any,
    monkeypatch: pytest.MonkeyPatch,
    smaller: str,
    larger: str,
    settings: dict[str, Any] | None,
) -> None:
    from megatron_seams.runtime.cpu.world import cpu_world
    from megatron_seams.runtime.model.build import build_model
    from megatron_seams.runtime.model.next_token import NextTokenBatch

    if "D" in smaller and not native("D"):
        pytest.skip("this Megatron has no sparse attention in its hybrid stack")
    backend = None
    if settings is None:
        settings, backend = {**LATENT, **sparse_settings()}, sparse_backend(monkeypatch)
    batch = NextTokenBatch.of(torch.arange(9).unsqueeze(0)).training()
    for pattern in (smaller, larger, smaller):
        with cpu_world():
            model = build_model(plan_of(pattern, megatron=settings), backend=backend)
            loss = model(**batch).sum()
            loss.backward()
            assert torch.isfinite(loss)


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({"RANK": "0", "WORLD_SIZE": "2"}, "MASTER_ADDR, beside RANK and WORLD_SIZE"),
        ({"WORLD_SIZE": "many"}, "WORLD_SIZE=many"),
        ({"MASTER_PORT": "http"}, "MASTER_PORT=http"),
        ({"RANK": "-1"}, "RANK=-1"),
        ({"RANK": "2"}, "the ranks of WORLD_SIZE=2 begin at 0"),
    ],
    ids=str,
)
def test_variables_that_no_launcher_leaves_so_are_refused(
    variables: dict[str, str], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from megatron_seams.errors import LaunchInvalid
    from megatron_seams.runtime.cpu.world import gloo_world

    whole = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}
    given = variables if len(variables) == 2 else whole | variables
    for name in whole:
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(LaunchInvalid, match="unset RANK and WORLD_SIZE") as refused, gloo_world():
        pass
    assert says in str(refused.value)
