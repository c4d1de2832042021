"""Which backend runs where, and the warning or error where it cannot."""

import pytest
import torch

from megatron_seams.base.structure import structure
from megatron_seams.errors import CannotRunHere
from megatron_seams_m2rnn.ops import naive as reference
from megatron_seams_m2rnn.ops import torch_loop
from megatron_seams_m2rnn.ops.cpu import recurrence as cpu
from megatron_seams_m2rnn.ops.dispatch import choose
from megatron_seams_m2rnn.options import BACKENDS, Options

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


def test_a_cpu_runs_the_compiled_backend_unless_told_otherwise() -> None:
    assert choose(None, CPU) is cpu.recurrence
    assert choose("cpu", CPU) is cpu.recurrence
    assert choose("torch", CPU) is torch_loop.recurrence
    assert choose("reference", CPU) is reference.recurrence


def test_backends_written_in_torch_run_on_any_device() -> None:
    for device in (GPU, torch.device("meta")):
        assert choose("torch", device) is torch_loop.recurrence
        assert choose("reference", device) is reference.recurrence


def test_the_cpu_backend_refuses_tensors_that_are_elsewhere() -> None:
    with pytest.raises(CannotRunHere, match=r"'cpu'.*cuda:0"):
        choose("cpu", GPU)


def test_a_device_without_a_backend_of_its_own_gets_none_unasked() -> None:
    with pytest.raises(CannotRunHere, match=r"on meta(?s:.*)choose backend 'torch'"):
        choose(None, torch.device("meta"))


def test_a_name_that_there_is_not_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(ValueError, match=f"{', '.join(BACKENDS)}; found 'metal'"):
        choose("metal", CPU)


@pytest.mark.parametrize("name", BACKENDS)
def test_a_recipe_may_choose_the_backend(name: str) -> None:
    options, faults = structure(Options, {"backend": name})
    assert not faults
    assert options is not None
    assert options.backend == name
    assert Options().backend is None


def test_a_recipe_with_a_backend_that_there_is_not_is_refused() -> None:
    options, faults = structure(Options, {"backend": "metal"})
    assert options is None
    assert faults[0].key == "backend"
