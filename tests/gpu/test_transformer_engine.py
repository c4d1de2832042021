"""Seams in layers of Transformer Engine: recompute equal to none, fp8 that trains or is refused."""

import contextlib

import pytest

pytestmark = [pytest.mark.megatron, pytest.mark.usefixtures("groups")]

SIZES = {
    "hidden_size": 256,
    "ffn_hidden_size": 512,
    "num_attention_heads": 4,
    "vocab_size": 512,
    "max_sequence_length": 128,
    "position_embedding_type": "rope",
    "normalization": "RMSNorm",
    "add_bias_linear": False,
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
    "share_embeddings_and_output_weights": False,
    "gradient_accumulation_fusion": False,
    "attention_backend": "unfused",
    "num_moe_experts": 4,
    "moe_router_topk": 2,
    "moe_ffn_hidden_size": 256,
}
PRECISIONS = {
    "fp32": {},
    "bf16": {"bf16": True, "params_dtype": "bfloat16", "pipeline_dtype": "bfloat16"},
}
RECOMPUTE = {
    "full": {
        "recompute_granularity": "full",
        "recompute_method": "uniform",
        "recompute_num_layers": 1,
    },
    "selective": {"recompute_granularity": "selective"},
}


@pytest.fixture(scope="module")
def groups():
    """One process on one GPU, with Megatron's groups and its own random number tracker."""
    import torch
    import torch.distributed as dist
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

    dist.init_process_group("nccl", store=dist.HashStore(), rank=0, world_size=1)
    torch.cuda.set_device(0)
    parallel_state.initialize_model_parallel()
    model_parallel_cuda_manual_seed(1234)
    print("card:", torch.cuda.get_device_name())
    yield
    parallel_state.destroy_model_parallel()
    dist.destroy_process_group()


def plan_of(pattern, heads=16, **megatron):
    import megatron_seams as ms
    from megatron_seams.base.structure import structure
    from megatron_seams.recipes.recipe import Recipe

    recipe, faults = structure(
        Recipe,
        {
            "schema": 1,
            "model": {"name": pattern, "pattern": pattern},
            "dialect": {"tokens": {"R": "recurrent"}},
            "features": [{"family": "ngram"}],
            "seams": {"m2rnn": {"heads": heads}, "ngram_hash": {"heads": 4, "table-rows": 1024}},
            "megatron": {**SIZES, **megatron},
        },
    )
    assert recipe is not None, faults
    return ms.resolve(recipe, ms.read_environment())


def gradients(plan, weights=None, context=contextlib.nullcontext):
    """The loss and every gradient of one step, on given weights; and the weights."""
    import torch
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

    from megatron_seams.runtime.model.build import build_model

    model_parallel_cuda_manual_seed(1234)
    torch.manual_seed(1)
    model = build_model(plan).cuda()
    if weights is not None:
        model.load_state_dict(weights)
    model.train()
    ids = torch.randint(0, 512, (2, 128), generator=torch.Generator().manual_seed(1)).cuda()
    positions = torch.arange(128, device="cuda").expand(2, -1)
    with context():
        loss = model(ids, positions, None, labels=ids).float().mean()
    loss.backward()
    found = {name: p.grad.float() for name, p in model.named_parameters() if p.grad is not None}
    return float(loss), found, model.state_dict()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_recompute_gives_the_gradients_of_none(precision):
    plain, wanted, weights = gradients(plan_of("*ER-", **PRECISIONS[precision]))
    assert 0 < plain < 20
    for name, settings in RECOMPUTE.items():
        loss, found, _ = gradients(plan_of("*ER-", **PRECISIONS[precision], **settings), weights)
        assert found.keys() == wanted.keys()
        scale = max(float(each.abs().max()) for each in wanted.values())
        worst = max(float((found[key] - wanted[key]).abs().max()) for key in wanted)
        print(
            f"{precision} {name}: loss differs {abs(loss - plain):.2e}, "
            f"gradients {worst:.2e} of at most {scale:.2e}"
        )
        assert abs(loss - plain) <= 1e-6 * plain
        assert worst <= (1e-6 if precision == "fp32" else 1e-2) * scale


@pytest.mark.parametrize("recipe", ["tensorwise", "delayed"])
def test_fp8_trains_with_widths_that_fit(recipe):
    import torch

    plan = plan_of("*R-", **PRECISIONS["bf16"], fp8="hybrid", fp8_recipe=recipe)
    loss, found, _ = gradients(plan)
    print(f"fp8 {recipe}: loss {loss:.4f}, {len(found)} gradients")
    assert 0 < loss < 20
    assert all(bool(torch.isfinite(each).all()) for each in found.values())


def test_fp8_is_refused_at_build_where_a_width_does_not_fit():
    from megatron_seams.errors import Refusal
    from megatron_seams.runtime.model.build import build_model

    plan = plan_of("*R-", heads=3, **PRECISIONS["bf16"], fp8="hybrid", fp8_recipe="delayed")
    with pytest.raises(Refusal, match="multiples of 16") as refused:
        build_model(plan)
    print(refused.value)
