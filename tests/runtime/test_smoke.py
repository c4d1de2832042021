"""The smoke run: it trains every layer of a plan, and the model learns what no unigram can know."""

import io

import pytest
from rich.console import Console

from megatron_seams.recipes.recipe import Parallelism, Smoke

pytestmark = pytest.mark.megatron


def test_a_short_run_learns_more_than_byte_frequencies(plan_of, native):
    from megatron_seams.runtime.smoke.run import run_smoke

    plan = plan_of(
        "AE|AR",
        seams=("rider",),
        dialect="nam",
        families={"attention": "mla"} if native("mla") else {},
        megatron={"num_moe_experts": 16, "moe_router_topk": 4, "hidden_size": 4096},
        parallelism=Parallelism(pipeline_parallel=2),
    )
    out = io.StringIO()
    smoke = Smoke(batch=8, sequence=64, megatron={"hidden_size": 64, "ffn_hidden_size": 64})
    report = run_smoke(plan, smoke, None, 120, Console(file=out, width=120))
    assert len(report.losses) == 120
    # log 256 = 5.55 is what a model knows that has seen nothing.
    assert report.losses[0] > 5.0
    assert report.learned
    assert report.held_back_loss < report.unigram_entropy - 0.2
    assert 3.0 < report.unigram_entropy < 3.5
    shown = out.getvalue()
    assert "4 layers at toy width" in shown
    assert f"{report.held_back_loss:.3f}" in shown
    assert f"{report.unigram_entropy:.3f}" in shown


def test_a_run_repeats_to_the_last_bit(plan_of):
    from megatron_seams.runtime.smoke.run import run_smoke

    plan = plan_of("*-", megatron={"num_query_groups": 2})
    smoke = Smoke(batch=2, sequence=16)
    runs = [run_smoke(plan, smoke, None, 3, Console(file=io.StringIO())) for _ in range(2)]
    assert runs[0].losses == runs[1].losses
    assert runs[0].held_back_loss == runs[1].held_back_loss
    other = run_smoke(
        plan, Smoke(batch=2, sequence=16, seed=5), None, 3, Console(file=io.StringIO())
    )
    assert other.losses != runs[0].losses


def test_toy_settings_keep_what_is_no_size(plan_of):
    from megatron_seams.runtime.smoke.toy import toy_settings

    asked = {
        "hidden_size": 8192,
        "num_attention_heads": 64,
        "num_query_groups": 8,
        "kv_channels": 128,
        "num_moe_experts": 512,
        "moe_router_topk": 22,
        "moe_shared_expert_intermediate_size": 5376,
        "moe_router_score_function": "sigmoid",
        "moe_router_num_groups": 8,
        "normalization": "LayerNorm",
        "bf16": True,
    }
    toy = toy_settings(plan_of("*E", megatron=asked), Smoke(megatron={"hidden_size": 48}))
    expected = {
        "hidden_size": 48,  # [smoke.megatron] has the last word
        "vocab_size": 256,
        "num_attention_heads": 4,
        "num_query_groups": 2,  # heads shared keys before, and do still
        "kv_channels": 32,
        "num_moe_experts": 4,
        "moe_router_topk": 2,
        "moe_router_score_function": "sigmoid",
        "normalization": "LayerNorm",
        "bf16": False,
    }
    assert {key: toy[key] for key in expected} == expected
    assert toy["moe_shared_expert_intermediate_size"] < 512
    assert "moe_router_num_groups" not in toy
    assert "kv_lora_rank" not in toy


@pytest.mark.release
def test_a_recipe_that_sets_nothing_can_be_built(plan_of, native):
    from megatron_seams.runtime.smoke.run import run_smoke

    plan = plan_of(next(pattern for pattern in ("DE+-", "*E-") if native(pattern)))
    bare = type(plan)(name="bare", pattern=plan.pattern, surface=plan.surface, layers=plan.layers)
    report = run_smoke(bare, Smoke(batch=1, sequence=64), None, 1, Console(file=io.StringIO()))
    assert len(report.losses) == 1
