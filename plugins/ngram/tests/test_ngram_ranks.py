"""Both seams on two real ranks, by every parallelism that divides them, and through checkpoints.

What a rank computes is held to what one process computes. Each launch does all that its ranks can.
"""

import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from megatron_seams.base.structure import structure
from megatron_seams.planning.environment import read_environment
from megatron_seams.planning.plan import Plan
from megatron_seams.planning.resolver import resolve
from megatron_seams.recipes.recipe import Recipe
from megatron_seams.runtime.cpu.ranks import on_ranks

pytestmark = [pytest.mark.megatron, pytest.mark.release]

here = functools.cache(read_environment)

LENGTH, BATCH, VOCABULARY, EOD = 16, 2, 64, 3
ROWS = {"heads": 2, "table-rows": 100, "width": 4, "end-of-document-id": EOD}
#: What the released form of the memory has beside the paper's.
RELEASED = {"gate": "signed-sqrt", "bias": True, "table-rows": [100, 150]}
#: Weights that are zero at first, and what the tests fill them with instead.
ZERO = ("projection", "value", "taps", "key_bias", "value_bias")

#: What divides the tensors -> the position embedding, which decides where upstream scatters.
CASES = {
    "tensor": "rope",
    "sequence": "rope",
    "sequence, whole embedding": "learned_absolute",
}


#: A model with experts, whose tables are divided as they are.
EXPERTS = "*E*-"
OVER_EXPERTS = {"divided-over": "expert"}


def plan_of(
    pattern: str = "*-*-",
    positions: str = "rope",
    layers: tuple[int, ...] = (1, 2),
    over: Mapping[str, str] = {},
    **parallelism: Any,
) -> Plan:
    """A tiny model with both features, over what is installed."""
    experts = {"num_moe_experts": 4, "moe_router_topk": 2, "moe_ffn_hidden_size": 32}
    table = {
        "schema": 1,
        "model": {"name": "tiny", "pattern": pattern},
        "features": [{"family": "ngram"}, {"family": "engram", "layers": list(layers)}],
        "policy": {"pin": {"ngram": "ngram_hash", "engram": "engram"}},
        "seams": {"ngram_hash": {**ROWS, **over}, "engram": {**ROWS, **RELEASED, **over}},
        "megatron": {
            "vocab_size": VOCABULARY,
            "max_sequence_length": LENGTH,
            "hidden_size": 32,
            "ffn_hidden_size": 64,
            "num_attention_heads": 4,
            "position_embedding_type": positions,
            "normalization": "RMSNorm",
            "add_bias_linear": False,
            "hidden_dropout": 0.0,
            "attention_dropout": 0.0,
            **(experts if "E" in pattern else {}),
        },
        "parallelism": parallelism,
    }
    recipe, faults = structure(Recipe, table)
    assert recipe is not None, faults
    return resolve(recipe, here())


def is_ours(name: str) -> bool:
    return ".ngram_hash." in name or ".engram." in name


def batch() -> tuple[Tensor, Tensor]:
    ids = torch.randint(VOCABULARY, (BATCH, LENGTH), generator=torch.Generator().manual_seed(1))
    return ids, torch.arange(LENGTH).expand(BATCH, -1)


def model_of(plan: Plan, start: Path | None = None, **stage: bool) -> Any:
    """The model with nothing at zero, or as saved, in Megatron's own data-parallel wrapper."""
    from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig

    from megatron_seams.runtime.checkpoint import load_checkpoint
    from megatron_seams.runtime.model.build import build_model

    torch.manual_seed(7)
    model = build_model(plan, **stage)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, weight in sorted(model.named_parameters()):
            if is_ours(name) and name.endswith(ZERO):
                weight.normal_(std=0.5, generator=generator)
    if start is not None:
        load_checkpoint(model, start)
    return DistributedDataParallel(model.config, DistributedDataParallelConfig(), model)


def own_batch(groups: Any) -> tuple[Tensor, Tensor]:
    """A data-parallel rank's rows of two micro-batches; one rank has both."""
    ids, positions = batch()
    return (ids.flip(1), positions) if groups.dp.rank() else (ids, positions)


def by_batches(model: Any, groups: Any) -> dict[str, Any]:
    """The gradients and losses of two micro-batches, here or over data-parallel ranks."""
    from megatron.core.distributed import finalize_model_grads

    model.zero_grad_buffer()
    ids, positions = batch()
    rows = [own_batch(groups)[0]] if groups.dp.size() > 1 else [ids, ids.flip(1)]
    losses = []
    for row in rows:
        loss = model(row, positions, None, labels=row).mean()
        (loss / len(rows)).backward()
        losses.append(loss.detach())
    with patch.object(torch.cuda, "current_stream", return_value=None):
        finalize_model_grads([model], pg_collection=groups)
    return {
        "losses": losses,
        "gradients": {
            name: weight.main_grad.clone()
            for name, weight in model.module.named_parameters()
            if is_ours(name)
        },
        "rows": {
            name: weight.detach().clone()
            for name, weight in model.module.named_parameters()
            if name.endswith("tables.weight")
        },
    }


def on_expert_ranks(plans: dict[str, Plan], folders: dict[str, Path]) -> dict[str, Any]:
    """A part of the tables of a checkpoint, what is computed with it, and a checkpoint of it."""
    from megatron_seams.errors import FeatureInvalid
    from megatron_seams.runtime.checkpoint import save_checkpoint
    from megatron_seams.runtime.cpu.world import cpu_world

    with cpu_world(plans["experts"].parallelism) as groups:
        model = model_of(plans["experts"], folders["experts"])
        found = by_batches(model, groups)
        save_checkpoint(model.module, "a receipt", folders["over experts"])
        found["norm"] = norm_of(model)
    with (
        cpu_world(plans["tensor"].parallelism),
        pytest.raises(FeatureInvalid, match=r"divided-over(?s:.*)2 tensor-parallel ranks"),
    ):
        model_of(plans["tensor"])
    return found


def norm_of(model: Any) -> float:
    """The norm of all gradients, as upstream's optimizer has it."""
    from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer

    optimizer = get_megatron_optimizer(
        OptimizerConfig(optimizer="sgd", lr=0.1), [model], use_gloo_process_groups=False
    )
    optimizer.prepare_grads()
    return float(optimizer.get_grad_norm())


def stepped(model: Any, groups: Any) -> dict[str, Any]:
    """One step of Adam by the gradients that upstream's own end of a batch leaves."""
    from megatron.core.distributed import finalize_model_grads

    embedded: list[Tensor] = []
    hook = model.module.embedding.word_embeddings.register_forward_hook(
        lambda _, __, out: embedded.append(out.detach().clone())
    )
    ids, positions = batch()
    before = logits(model)
    embedded.clear()
    model.zero_grad_buffer()
    for _ in range(2):  # micro-batches, which add up
        model(ids, positions, None, labels=ids).mean().backward()
    hook.remove()
    # 0.19 asks for the stream that it is on, and on a CPU does nothing with the answer.
    with patch.object(torch.cuda, "current_stream", return_value=None):
        finalize_model_grads([model], pg_collection=groups)
    gradients = {}
    for name, weight in model.module.named_parameters():
        weight.grad = weight.main_grad
        if is_ours(name):
            assert weight.grad_added_to_main_grad == name.endswith("tables.weight"), name
            gradients[name] = weight.main_grad.clone()
    torch.optim.Adam(model.module.parameters(), lr=0.01).step()
    return {
        "embedded": embedded[0],
        "before": before,
        "after": logits(model),
        "gradients": gradients,
    }


@torch.no_grad()
def logits(model: Any) -> Tensor:
    """The loss of each position, which no rank has a part of."""
    ids, positions = batch()
    losses: Tensor = model(ids, positions, None, labels=ids)
    return losses


def on_tensor_ranks(plans: dict[str, Plan], folders: dict[str, Path]) -> dict[str, Any]:
    """Every plan's step; a checkpoint saved; and one that a single rank saved, loaded."""
    from megatron_seams.runtime.checkpoint import load_checkpoint, save_checkpoint
    from megatron_seams.runtime.cpu.world import cpu_world

    found: dict[str, Any] = {}
    with cpu_world(plans["tensor"].parallelism) as groups:
        for name in CASES:
            model = model_of(plans[name])
            found[name] = stepped(model, groups)
            if name == "tensor":
                save_checkpoint(model.module, "a receipt", folders["divided"])
                other = model_of(plans[name])
                load_checkpoint(other.module, folders["stepped"])
                found["loaded"] = logits(other)
    return found


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """The same on one rank, and what two ranks made of it."""
    from megatron_seams.runtime.checkpoint import load_checkpoint, save_checkpoint
    from megatron_seams.runtime.cpu.world import cpu_world

    names = ("start", "stepped", "divided", "of one layer", "experts", "over experts")
    folders = {name: tmp_path_factory.mktemp(name.replace(" ", "-")) for name in names}
    found: dict[str, Any] = {}
    with cpu_world() as groups:
        for positions in ("rope", "learned_absolute"):
            model = model_of(plan_of(positions=positions))
            if positions == "rope":
                save_checkpoint(model.module, "a receipt", folders["start"])
            found[positions] = stepped(model, groups)
            if positions == "rope":
                save_checkpoint(model.module, "a receipt", folders["stepped"])
        model = model_of(plan_of(layers=(1,)))
        save_checkpoint(model.module, "a receipt", folders["of one layer"])
        found["of one layer"] = stepped(model, groups)
        model = model_of(plan_of(EXPERTS))
        save_checkpoint(model.module, "a receipt", folders["experts"])
        found["experts"] = by_batches(model, groups)
        found["experts"]["norm"] = norm_of(model)
        plans = {
            "experts": plan_of(EXPERTS, over=OVER_EXPERTS, **{"expert-parallel": 2}),
            "tensor": plan_of(over=OVER_EXPERTS, **{"tensor-parallel": 2}),
        }
        found["expert ranks"] = on_ranks(on_expert_ranks, plans, folders)
        model = model_of(plan_of(EXPERTS))
        with torch.no_grad():
            for name, weight in model.module.named_parameters():
                if name.endswith("tables.weight"):
                    weight.zero_()
        load_checkpoint(model.module, folders["over experts"])
        found["experts loaded"] = by_batches(model, groups)
        scattered = {"tensor-parallel": 2, "sequence-parallel": True}
        plans = {
            "tensor": plan_of(**{"tensor-parallel": 2}),
            "sequence": plan_of(**scattered),
            # With positions of its own the embedding is scattered only once they are added.
            "sequence, whole embedding": plan_of(positions="learned_absolute", **scattered),
        }
        found["ranks"] = on_ranks(on_tensor_ranks, plans, folders)
        model = model_of(plan_of())
        load_checkpoint(model.module, folders["divided"])
        found["loaded"] = logits(model)
        two = {"pipeline-parallel": 2}
        plans = {
            "rope": (plan_of("*-|*-", **two), folders["start"]),
            # Two chunks of the model on each rank, of which the first has one layer.
            "of one layer": (
                plan_of("*|-|*|-", layers=(1,), **two),
                folders["of one layer"],
            ),
        }
        found["stages"] = on_ranks(on_stages, plans)
        yield found


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=2e-4, atol=2e-6)


@pytest.mark.parametrize("case", CASES)
def test_two_tensor_ranks_compute_what_one_computes(single: dict[str, Any], case: str) -> None:
    alone, ranks = single[CASES[case]], [rank[case] for rank in single["ranks"]]
    for rank in ranks:
        close(rank["before"], alone["before"])
        close(rank["after"], alone["after"])
    assert not torch.allclose(alone["before"], alone["after"], rtol=1e-3)


@pytest.mark.parametrize("case", CASES)
def test_what_enters_the_decoder_is_the_same_bitwise(single: dict[str, Any], case: str) -> None:
    # Of every row one rank has the values and the others zeros, so that no sum is rounded.
    expected = single[CASES[case]]["embedded"]
    ranks = [rank[case]["embedded"] for rank in single["ranks"]]
    if case == "sequence":
        assert torch.equal(torch.cat(ranks), expected.transpose(0, 1))
    else:
        assert all(torch.equal(rank, expected) for rank in ranks)


@pytest.mark.parametrize("case", CASES)
def test_two_tensor_ranks_have_the_gradients_of_one(single: dict[str, Any], case: str) -> None:
    expected = single[CASES[case]]["gradients"]
    first, second = (rank[case]["gradients"] for rank in single["ranks"])
    assert len(expected) == 2 + 2 * 9
    for name, gradient in expected.items():
        assert gradient.abs().sum() > 0, name
        if name.endswith("tables.weight"):
            close(torch.cat([first[name], second[name]]), gradient)
        else:
            close(first[name], gradient)
            close(second[name], gradient)


def test_a_checkpoint_of_two_tensor_ranks_loads_on_one_and_the_other_way(
    single: dict[str, Any],
) -> None:
    ranks = single["ranks"]
    close(single["loaded"], ranks[0]["tensor"]["after"])
    for rank in ranks:
        close(rank["loaded"], single["rope"]["after"])


def test_expert_ranks_with_a_batch_each_compute_what_one_computes_of_both(
    single: dict[str, Any],
) -> None:
    alone, ranks = single["experts"], single["expert ranks"]
    for rank, expected in zip(ranks, alone["losses"], strict=True):
        close(rank["losses"][0], expected)
    assert not torch.allclose(*alone["losses"], rtol=1e-3)
    for name, gradient in alone["gradients"].items():
        assert gradient.abs().sum() > 0, name
        parts = [rank["gradients"][name] for rank in ranks]
        if name.endswith("tables.weight"):
            assert len(parts[0]) * 2 == len(gradient)
            close(torch.cat(parts), gradient)
            assert torch.equal(
                torch.cat([rank["rows"][name] for rank in ranks]), alone["rows"][name]
            )
        else:
            for part in parts:
                close(part, gradient)
    for rank in ranks:
        assert rank["norm"] == pytest.approx(alone["norm"], rel=1e-4)


def test_a_checkpoint_of_two_expert_ranks_loads_on_one(single: dict[str, Any]) -> None:
    loaded, alone = single["experts loaded"], single["experts"]
    for name, rows in alone["rows"].items():
        assert torch.equal(loaded["rows"][name], rows)
    for found, expected in zip(loaded["losses"], alone["losses"], strict=True):
        close(found, expected)


def on_stages(plans: dict[str, tuple[Plan, Path]]) -> dict[str, Any]:
    """One rank's stages of each plan under upstream's own pipeline schedules."""
    from megatron_seams.runtime.cpu.world import cuda_on_cpu, gloo_world

    found = {}
    for name, (plan, start) in plans.items():
        chunks = len(plan.pattern.stages) // plan.parallelism.pipeline_parallel
        virtual = chunks if chunks > 1 else None
        with (
            cuda_on_cpu(),
            gloo_world(plan.parallelism, virtual_pipeline_parallel=virtual) as groups,
        ):
            found[name] = scheduled(plan, start, groups.pp.rank(), chunks)
    return found


def scheduled(plan: Plan, start: Path, rank: int, chunks: int) -> dict[str, Any]:
    """Two micro-batches through this rank's stages; the gradients of both seams by chunk."""
    from megatron.core.pipeline_parallel.schedules import get_forward_backward_func

    models = []
    for chunk in range(chunks):
        stage: dict[str, Any] = {
            "pre_process": rank == chunk == 0,
            "post_process": rank == 1 and chunk == chunks - 1,
        }
        if chunks > 1:
            stage["vp_stage"] = chunk
        models.append(model_of(plan, start, **stage))
    ids, positions = batch()
    losses: list[Tensor] = []

    def forward(_: Any, model: Any) -> Any:
        # Upstream's data path gives the ids to the first stage alone.
        given = (ids, positions) if model.module.pre_process else (None, None)
        last = model.module.post_process
        out = model(*given, None, labels=ids if last else None)
        if last:
            losses.append(out.detach().clone())
        return out, lambda of_tokens: (of_tokens.mean(), {})

    get_forward_backward_func()(
        forward_step_func=forward,
        data_iterator=[None] * chunks,
        model=models,
        num_microbatches=2,
        seq_length=LENGTH,
        micro_batch_size=BATCH,
        forward_only=False,
    )
    gradients = [
        {
            name: weight.main_grad.clone()
            for name, weight in model.module.named_parameters()
            if is_ours(name)
        }
        for model in models
    ]
    return {"losses": losses, "gradients": gradients}


@pytest.mark.parametrize("case", ["rope", "of one layer"])
def test_stages_have_the_features_on_the_first_and_compute_what_one_computes(
    single: dict[str, Any], case: str
) -> None:
    first, last = (rank[case] for rank in single["stages"])
    on_the_first, *elsewhere = [*first["gradients"], *last["gradients"]]
    assert not any(elsewhere)
    assert first["losses"] == []
    close(last["losses"][0], single[case]["before"])
    for name, gradient in single[case]["gradients"].items():
        # The schedule takes the mean over the micro-batches, which the step above does not.
        close(on_the_first[name] * 2, gradient)
