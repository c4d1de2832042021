"""The exchanges between ranks: what each returns on two ranks, and what its gradient is."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from megatron_seams.runtime.collectives import (
    following,
    gathered,
    preceding,
    rank_in,
    replicated,
    size_of,
    summed,
    summed_and_scattered,
)

pytestmark = pytest.mark.megatron

#: What this rank has, and the weight of each element of a result in its loss: other on each rank.
Numbers = dict[str, list[float]]


def on_a_rank() -> Numbers:
    """Each exchange of this rank's numbers, and their gradients."""
    from megatron_seams.recipes.recipe import Parallelism
    from megatron_seams.runtime.cpu.world import cpu_world

    with cpu_world(Parallelism(tensor_parallel=2)) as groups:
        tp = groups.tp
        found: Numbers = {"group": [size_of(tp), rank_in(tp)]}

        def take(name: str, exchange: Callable[[Tensor], Tensor], *, alike: bool = False) -> None:
            x = torch.tensor([1.0, 2.0]) + 10 * tp.rank()
            x.requires_grad_()
            y = exchange(x)
            weight = 1.0 if alike else 1.0 + tp.rank()
            (weight * y * torch.arange(1.0, y.numel() + 1)).sum().backward()
            assert x.grad is not None
            found[name] = y.tolist()
            found[f"{name}, gradient"] = x.grad.tolist()

        take("replicated", lambda x: replicated(x, tp))
        take("summed", lambda x: summed(x, tp), alike=True)
        take("summed for each", lambda x: replicated(summed(x, tp), tp))
        take("scattered", lambda x: summed_and_scattered(x, tp))
        take("gathered", lambda x: torch.cat(gathered([x[:1], x[1:]], tp)))
        take("preceding", lambda x: preceding(x, 1, tp))
        take("preceding, longer than a piece", lambda x: preceding(x, 3, tp))
        take("following", lambda x: following(x, 1, tp))
        return found


@pytest.fixture(scope="module")
def found() -> Any:
    from megatron_seams.runtime.cpu.ranks import on_ranks

    return on_ranks(on_a_rank, world_size=2)


@pytest.mark.parametrize(
    ("name", "values", "gradients"),
    [
        # The ranks' losses weigh 1 and 2, and the elements 1, 2, 3, 4.
        ("replicated", ([1, 2], [11, 12]), ([3, 6], [3, 6])),
        ("summed", ([12, 14], [12, 14]), ([1, 2], [1, 2])),
        ("summed for each", ([12, 14], [12, 14]), ([3, 6], [3, 6])),
        ("scattered", ([12], [14]), ([1, 2], [1, 2])),
        ("gathered", ([1, 11, 2, 12], [1, 11, 2, 12]), ([3, 9], [6, 12])),
        ("preceding", ([0], [2]), ([0, 2], [0, 0])),
        ("preceding, longer than a piece", ([0, 0, 0], [0, 1, 2]), ([4, 6], [0, 0])),
        ("following", ([11], [0]), ([0, 0], [1, 0])),
    ],
)
def test_two_ranks_exchange_values_and_gradients(
    found: list[Numbers], name: str, values: Any, gradients: Any
) -> None:
    assert tuple(rank[name] for rank in found) == values
    assert tuple(rank[f"{name}, gradient"] for rank in found) == gradients


def test_a_rank_knows_its_place_and_no_group_is_one_rank(found: list[Numbers]) -> None:
    assert [rank["group"] for rank in found] == [[2, 0], [2, 1]]
    assert (size_of(None), rank_in(None)) == (1, 0)


def test_a_single_rank_exchanges_nothing() -> None:
    x = torch.arange(3.0)
    assert replicated(x, None) is x
    assert summed(x, None) is x
    assert summed_and_scattered(x, None) is x
    assert gathered([x], None)[0] is x
    assert preceding(x, 2, None).tolist() == [0, 0]
    assert following(x, 2, None).tolist() == [0, 0]
