"""Runs of models with both seams on one rank and over tensor, expert and pipeline ranks."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from plugins.ngram.tests.tiny import LENGTH, SETTINGS, VOCABULARY, planned
from torch import Tensor

from megatron_seams.planning.plan import Plan

BATCH, EOD = 2, 3
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
            **SETTINGS,
            "position_embedding_type": positions,
            **(experts if "E" in pattern else {}),
        },
        "parallelism": parallelism,
    }
    return planned(table)


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
