"""The parts of a mixer around its recurrence: linears, divided parameters, the first time steps."""

import functools
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn import functional

from megatron_seams.runtime.mixers import (
    DT_FLOOR,
    Projections,
    initial_dt_bias,
    parameter_device,
    split_parameter,
)


class Rank:
    """As much of a process group as is asked for."""

    def __init__(self, rank: int, size: int) -> None:
        self._rank, self._size = rank, size

    def rank(self) -> int:
        return self._rank

    def size(self) -> int:
        return self._size


class Linear:
    """Keeps what it is built with."""

    def __init__(self, *sizes: int, **settings: Any) -> None:
        self.sizes, self.settings, self.weight = sizes, settings, SimpleNamespace()


def test_the_linears_are_the_backends_with_the_parts_that_upstream_reshards_by() -> None:
    backend = SimpleNamespace(
        column_parallel_linear=lambda: Linear, row_parallel_linear=lambda: Linear
    )
    config: Any = SimpleNamespace(init_method="a", output_layer_init_method="b")
    group: Any = Rank(0, 2)
    linears = Projections.of(backend)
    into = linears.into({"q": 4, "f": 2}, width=8, config=config, tp_group=group)
    assert into.sizes == (8, 6)
    assert into.settings["init_method"] == "a"
    assert into.weight.partition_sizes == [2, 1]
    out_of = linears.out_of(4, width=8, config=config, tp_group=group)
    assert out_of.sizes == (4, 8)
    assert out_of.settings["init_method"] == "b"
    assert out_of.settings["input_is_parallel"]


@pytest.mark.megatron
def test_a_divided_parameter_has_this_ranks_rows_and_upstreams_marks() -> None:
    group: Any = Rank(1, 2)
    split = functools.partial(split_parameter, torch.arange(8.0), group)
    one: Any = split()
    assert one.tolist() == [4, 5, 6, 7]
    assert one.tensor_model_parallel
    assert one.partition_dim == 0
    assert not hasattr(one, "partition_sizes")
    several: Any = split(parts=(2, 6))
    assert several.tolist() == [1, 5, 6, 7]
    assert several.partition_sizes == [1, 3]


def test_parameters_are_made_where_the_model_is() -> None:
    config: Any = SimpleNamespace(use_cpu_initialization=True)
    assert parameter_device(config) == "cpu"


def test_time_steps_are_drawn_log_uniformly_between_their_ends() -> None:
    torch.manual_seed(0)
    dt = functional.softplus(initial_dt_bias(100_000, "cpu").double())
    assert 0.999e-3 < dt.min() < 1.01e-3
    assert 0.099 < dt.max() < 0.1001
    assert abs(dt.log().mean() - math.log(1e-2)) < 0.02
    least = functional.softplus(initial_dt_bias(100, "cpu", smallest=1e-9, largest=1e-8).double())
    assert torch.allclose(least, torch.tensor(DT_FLOOR, dtype=torch.float64), rtol=1e-3)
