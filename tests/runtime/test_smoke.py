"""The smoke run: it trains every layer of a plan, and the model learns what no unigram can know."""

import io

import attrs
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
    assert not report.leaks
    assert report.unigram_entropy - 0.3 < report.causal_bound < report.independent_loss
    shown = out.getvalue()
    assert "4 layers at toy width" in shown
    assert f"{report.held_back_loss:.3f}" in shown
    assert f"{report.unigram_entropy:.3f}" in shown
    assert f"no causal model below {report.causal_bound:.3f} nats per byte: no leak" in shown
    assert "next:" not in shown


def test_a_layer_that_sees_the_next_byte_reaches_what_no_causal_model_can(plan_of, monkeypatch):
    from decay.mixer import DecayMixer

    from megatron_seams.runtime.smoke.run import run_smoke

    def forward(mixer, hidden_states, **_):
        following, _ = mixer.in_proj(hidden_states.roll(-1, dims=0))
        return mixer.out_proj(following)

    monkeypatch.setattr(DecayMixer, "forward", forward)
    plan = plan_of("X-X-", seams=("decay",), tokens={"X": "decay"})
    smoke = Smoke(batch=8, sequence=64, learning_rate=5e-3)
    out = io.StringIO()
    report = run_smoke(plan, smoke, None, 40, Console(file=out, width=120))
    assert report.leaks
    assert report.independent_loss < report.causal_bound - 0.5
    shown = out.getvalue()
    assert f"no causal model below {report.causal_bound:.3f} nats per byte: a layer SEES" in shown
    assert "next: `pytest --seam decay`, whose rule 'causal'" in shown


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


#: Settings of a wide recipe that are no sizes, each another than Megatron's default.
HELD = {
    "normalization": "RMSNorm",
    "add_bias_linear": False,
    "activation_func": "squared_relu",
    "hidden_dropout": 0.2,
    "attention_dropout": 0.3,
    "position_embedding_type": "rope",
    "share_embeddings_and_output_weights": True,
    "layernorm_epsilon": 1e-3,
    "init_method_std": 0.014,
    "moe_router_score_function": "sigmoid",
    "moe_router_topk_scaling_factor": 2.5,
    "rotary_base": 500_000,
}


def bare(plan_of, pattern, **megatron):
    """A plan with these settings alone."""
    import attrs

    return attrs.evolve(plan_of(pattern), megatron=megatron)


def test_what_is_no_size_is_the_recipes(plan_of):
    from megatron_seams.runtime.smoke.toy import Replaced, toy_settings

    asked = {"hidden_size": 8192, "bf16": True, "num_moe_experts": 512, **HELD}
    toy = toy_settings(bare(plan_of, "*E-", **asked), Smoke(sequence=64))
    assert {key: toy[key] for key in HELD} == HELD
    found = Replaced.between(asked, toy)
    assert found.changed == {
        "hidden_size": (8192, 128),
        "bf16": (True, False),
        "num_moe_experts": (512, 4),
    }
    assert set(found.added) == {
        "ffn_hidden_size",
        "max_sequence_length",
        "moe_ffn_hidden_size",
        "moe_router_topk",
        "num_attention_heads",
        "vocab_size",
    }


@pytest.mark.parametrize(
    "setting",
    [{"normalization": "LayerNorm"}, {"add_bias_linear": True}, {"hidden_dropout": 0.1}, {}],
    ids=str,
)
def test_nothing_but_sizes_is_set_for_dense_layers(plan_of, setting):
    from megatron_seams.runtime.smoke.toy import toy_settings

    toy = toy_settings(bare(plan_of, "*-", **setting), Smoke())
    sizes = {"hidden_size", "ffn_hidden_size", "num_attention_heads"}
    assert set(toy) == {*sizes, "vocab_size", "max_sequence_length", *setting}


def test_a_recipe_of_a_toys_width_keeps_its_sizes(plan_of):
    from megatron_seams.runtime.smoke.toy import Replaced, toy_settings

    asked = {
        "hidden_size": 48,
        "ffn_hidden_size": 60,
        "num_attention_heads": 3,
        "num_query_groups": 3,
        "num_moe_experts": 6,
        "moe_router_topk": 3,
        "moe_ffn_hidden_size": 20,
        "add_bias_linear": False,
        "vocab_size": 512,
        "max_sequence_length": 128,
    }
    toy = toy_settings(bare(plan_of, "*E-", **asked), Smoke(sequence=128))
    found = Replaced.between(asked, toy)
    assert found.changed == {"vocab_size": (512, 256)}
    assert found.added == {}
    assert list(found.lines("toy width")) == ["toy width replaces vocab_size 512 -> 256"]


def test_a_run_says_what_it_replaces_and_builds_what_it_says(plan_of):
    from megatron_seams.runtime.smoke.run import run_smoke

    asked = {"hidden_size": 8192, "num_attention_heads": 64, "moe_grouped_gemm": True, **HELD}
    asked |= {"normalization": "LayerNorm", "moe_router_num_groups": 8, "moe_router_group_topk": 4}
    plan = bare(plan_of, "*E-", **asked)
    out = io.StringIO()
    run_smoke(plan, Smoke(batch=1, sequence=16), None, 1, Console(file=out, width=1000))
    replaced, added, backend, _ = out.getvalue().splitlines()[:4]
    assert replaced == (
        "toy width replaces hidden_size 8192 -> 128, num_attention_heads 64 -> 4, "
        "moe_router_num_groups 8 -> none, moe_router_group_topk 4 -> none"
    )
    assert added.startswith("toy width sets what the recipe leaves open: ffn_hidden_size 256, ")
    assert backend == "backend 'local' replaces moe_grouped_gemm true -> false"


def test_a_run_of_the_toys_own_settings_replaces_nothing(plan_of):
    from megatron_seams.runtime.smoke.run import run_smoke
    from megatron_seams.runtime.smoke.toy import toy_settings

    smoke = Smoke(batch=1, sequence=16)
    asked = toy_settings(bare(plan_of, "*-"), smoke)
    out = io.StringIO()
    run_smoke(bare(plan_of, "*-", **asked), smoke, None, 1, Console(file=out, width=1000))
    assert "replaces" not in out.getvalue()
    assert "leaves open" not in out.getvalue()


@pytest.mark.release
def test_a_recipe_that_sets_nothing_can_be_built(plan_of, native):
    from megatron_seams.runtime.smoke.run import run_smoke

    plan = plan_of(next(pattern for pattern in ("DE+-", "*E-") if native(pattern)))
    bare = attrs.evolve(plan, name="bare", megatron={})
    report = run_smoke(bare, Smoke(batch=1, sequence=64), None, 1, Console(file=io.StringIO()))
    assert len(report.losses) == 1
