"""on_ranks: results in the order of ranks, and a failure with the failing rank's own traceback."""

import os

import pytest
import torch
import torch.distributed as dist

from megatron_seams.runtime.cpu.ranks import RankFailed, on_ranks

pytestmark = pytest.mark.megatron


def add_up(offset):
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    total = torch.tensor([rank + offset])
    dist.all_reduce(total)
    dist.destroy_process_group()
    return rank, total


def join_twice():
    from megatron_seams.recipes.recipe import Parallelism
    from megatron_seams.runtime.cpu.world import cpu_world

    sizes = []
    for spread in (Parallelism(tensor_parallel=2), Parallelism(pipeline_parallel=2)):
        with cpu_world(spread) as groups:
            total = torch.ones(1)
            dist.all_reduce(total)
            sizes.append((groups.tp.size(), groups.pp.size(), int(total)))
    return sizes


def fail_on_one():
    if os.environ["RANK"] == "1":
        message = "out of luck"
        raise ValueError(message)


def exit_on_one():
    if os.environ["RANK"] == "1":
        os._exit(7)


@pytest.mark.fresh_ranks
def test_every_rank_returns_and_in_order():
    assert on_ranks(add_up, 10) == [(0, torch.tensor([21])), (1, torch.tensor([21]))]


def test_a_rank_joins_one_world_after_another():
    assert on_ranks(join_twice) == [[(2, 1, 2), (1, 2, 2)]] * 2


def test_a_failing_rank_is_named_with_its_traceback():
    with pytest.raises(RankFailed, match="out of luck") as caught:
        on_ranks(fail_on_one)
    assert "rank 1" in str(caught.value)
    assert "fail_on_one" in str(caught.value)


def test_a_rank_that_dies_is_no_result():
    with pytest.raises(RankFailed, match="rank 1"):
        on_ranks(exit_on_one)
