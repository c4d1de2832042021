"""Parameters that ranks divide: each rank's rows, and what a checkpoint calls them."""

from typing import Any

import pytest
import torch
from torch import nn

from megatron_seams.runtime.sharding import ShardedModule, own_rows, sharded_parts

PARTS = {"q": 4, "k": 2, "v": 6}


class Rank:
    """As much of a process group as is asked for."""

    def __init__(self, rank: int, size: int) -> None:
        self._rank, self._size = rank, size

    def rank(self) -> int:
        return self._rank

    def size(self) -> int:
        return self._size


def rows(rank: int, size: int) -> torch.Tensor:
    group: Any = Rank(rank, size)
    return own_rows(torch.arange(12), PARTS.values(), group)


def test_each_rank_has_its_block_of_each_part() -> None:
    assert rows(0, 2).tolist() == [0, 1, 4, 6, 7, 8]
    assert rows(1, 2).tolist() == [2, 3, 5, 9, 10, 11]
    whole = torch.arange(12)
    assert own_rows(whole, PARTS.values(), None) is whole


@pytest.mark.megatron
@pytest.mark.release
def test_a_parameter_of_several_parts_is_saved_part_by_part_as_one_rank_would_have_it() -> None:
    from megatron.core.dist_checkpointing.mapping import ShardedTensor

    wholes: dict[str, list[int]] = {}
    for rank in range(2):
        group: Any = Rank(rank, 2)
        mine = rows(rank, 2)
        offsets = ((0, 3, 5),)  # the fourth of five layers, which upstream puts before
        whole = ShardedTensor.from_rank_offsets(
            "layers.weight", mine, *offsets, (1, rank, 2), replica_id=(0, 0, 0), prepend_axis_num=1
        )
        local = {name: size // 2 for name, size in PARTS.items()}
        factory = sharded_parts(whole, local, tp_group=group, sharded_offsets=offsets)
        made = factory.build()
        assert [part.key for part in made] == [f"layers.weight.{name}" for name in PARTS]
        for part, (name, size) in zip(made, PARTS.items(), strict=True):
            assert part.global_shape == (5, size)
            assert part.global_offset == (3, rank * size // 2)
            assert part.replica_id == (0, 0, 0)
            wholes.setdefault(name, []).extend(part.data.tolist())
        joined = factory.merge_fn([part.data for part in made])
        assert torch.equal(joined, mine)
    assert wholes == {"q": [0, 1, 2, 3], "k": [4, 5], "v": [6, 7, 8, 9, 10, 11]}


@pytest.mark.megatron
@pytest.mark.release
def test_a_module_names_its_parameters_of_several_parts_those_of_children_too() -> None:
    from megatron.core.dist_checkpointing.dict_utils import nested_values
    from megatron.core.dist_checkpointing.mapping import ShardedTensor, apply_factories

    from megatron_seams.runtime.cpu.world import cpu_world

    class Mixer(ShardedModule):
        def __init__(self, tp_group: Any) -> None:
            super().__init__()
            self.tp_group = tp_group
            self.taps = nn.Parameter(torch.arange(3.0))
            self.linear = nn.Linear(2, 3, bias=False)

        def divided(self) -> dict[str, int]:
            return {"taps": 0}

        def divided_parts(self) -> dict[str, dict[str, int]]:
            return {"taps": {"q": 1, "v": 2}, "linear.weight": {"q": 2, "v": 1}}

    with cpu_world() as groups:
        mixer = Mixer(groups.tp)
        state = mixer.sharded_state_dict("a.")
        apply_factories(state)
        found = {
            part.key: part.data.shape
            for part in nested_values(state)
            if isinstance(part, ShardedTensor)
        }
    assert found == {
        "a.taps.q": (1,),
        "a.taps.v": (2,),
        "a.linear.weight.q": (2, 2),
        "a.linear.weight.v": (1, 2),
    }
