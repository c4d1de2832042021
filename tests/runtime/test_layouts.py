"""Layouts that upstream takes and trains: parts that mix attentions, empty and uneven stages."""

import pytest

from megatron_seams.recipes.pipeline import FIRST, LAST
from megatron_seams.recipes.recipe import Parallelism
from megatron_seams.runtime.cpu.ranks import on_ranks
from sparse_attention import sparse_backend, sparse_settings

from .conftest import MLA, MOE

pytestmark = [pytest.mark.megatron, pytest.mark.release]

LENGTH = 8


@pytest.mark.usefixtures("world")
@pytest.mark.parametrize("pattern", ["DEDE/*E", "*-*-/-D"])
def test_a_part_may_have_an_attention_that_may_not_stand_beside_the_others(
    pattern, plan_of, native, monkeypatch
):
    import torch

    from megatron_seams.runtime.model.build import build_model

    if not native("dsa"):
        pytest.skip("this Megatron has no sparse attention")
    backend = sparse_backend(monkeypatch)
    plan = plan_of(pattern, megatron=MLA | MOE | sparse_settings() | {"num_query_groups": 4})
    model = build_model(plan, backend=backend)
    ids = torch.randint(0, 64, (2, LENGTH))
    positions = torch.arange(LENGTH).expand(2, -1)
    ones = torch.ones(2, LENGTH)
    model(ids, positions, None, labels=ids, loss_mask=ones).float().mean().backward()
    assert [name for name, weight in model.named_parameters() if weight.grad is None] == []


def train_a_step(plan):
    """A step of this rank's stages; the layers that it has, and its loss where it has one."""
    import torch
    from megatron.core.pipeline_parallel.schedules import get_forward_backward_func

    from megatron_seams.runtime.cpu.world import cpu_world
    from megatron_seams.runtime.model.build import build_model

    with cpu_world(plan.parallelism) as groups:
        stage, last = groups.pp.rank(), groups.pp.size() - 1
        model = build_model(plan, pre_process=stage == 0, post_process=stage == last)
        ids = torch.randint(0, 64, (2, LENGTH), generator=torch.Generator().manual_seed(1))
        positions = torch.arange(LENGTH).expand(2, -1)

        def forward(_, module):
            out = module(ids, positions, None, labels=ids if stage == last else None)
            return out, lambda losses: (losses.mean(), {"loss": losses.mean()})

        losses = get_forward_backward_func()(
            forward_step_func=forward,
            data_iterator=None,
            model=model,
            num_microbatches=1,
            seq_length=LENGTH,
            micro_batch_size=2,
            forward_only=False,
        )
        return {
            "layers": [layer.layer_number for layer in model.decoder.layers],
            "loss": [round(float(each["loss"]), 5) for each in losses],
            "without gradient": [
                name for name, weight in model.named_parameters() if weight.grad is None
            ],
        }


@pytest.mark.parametrize(
    ("pattern", "sizes"),
    [("|*-", {}), ("*-|", {}), ("*-*-", {FIRST: 1}), ("*-*-", {FIRST: 3, LAST: 1})],
)
def test_each_rank_builds_and_trains_the_layers_of_its_stage(pattern, sizes, plan_of):
    plan = plan_of(pattern, megatron=sizes, parallelism=Parallelism(pipeline_parallel=2))
    ranks = on_ranks(train_a_step, plan)
    for rank, found in enumerate(ranks):
        assert found["layers"] == [it.position for it in plan.layers if it.rank == rank]
        assert found["without gradient"] == []
    (loss,) = ranks[1]["loss"]
    assert 0 < loss < 5  # of 64 words, by chance 4.2
