"""Choosing a kernel: a name is taken or refused, and a slow stand-in never comes silently."""

import warnings

import pytest
import torch

from megatron_seams.errors import CannotRunHere
from megatron_seams.runtime.extensions import SlowBackend
from megatron_seams.runtime.kernels import Kernel, choose_kernel

CPU, META = torch.device("cpu"), torch.device("meta")


def never() -> str:
    raise AssertionError("it was loaded and not chosen")


def chosen(
    name: str | None,
    device: torch.device = CPU,
    *,
    seam: str,
    preferred: tuple[str, ...] = ("fast", "slow"),
    fault: str | None = None,
) -> str:
    kernels = {
        "fast": Kernel(load=(lambda: "fast") if fault is None else never, fault=lambda _: fault),
        "slow": Kernel(load=lambda: "slow"),
    }
    return choose_kernel(
        name, device, seam=seam, kernels=kernels, preferred=preferred, advice="install it"
    )


def test_a_name_is_taken_and_without_one_the_best() -> None:
    with warnings.catch_warnings(action="error"):
        assert chosen("slow", seam="a") == "slow"
        assert chosen(None, seam="a") == "fast"
        assert chosen(None, seam="a", preferred=("slow",)) == "slow"


def test_a_stand_in_is_named_once_with_the_reason_where_the_operator_was_called() -> None:
    def operator() -> str:
        return chosen(None, seam="b", fault="no compiler")

    def layer() -> str:
        return operator()

    told = "'b' has no backend 'fast' here, and the slower 'slow' stands in: no compiler"
    with pytest.warns(SlowBackend, match=told) as warned:
        assert layer() == "slow"
    assert warned[0].lineno == layer.__code__.co_firstlineno + 1
    with warnings.catch_warnings(action="error"):
        assert layer() == "slow"


def test_a_named_kernel_that_cannot_run_is_refused_and_not_replaced() -> None:
    with pytest.raises(CannotRunHere, match=r"SEAM-B05.*'fast' of seam 'c'.*on cpu") as caught:
        chosen("fast", seam="c", fault="no compiler")
    assert (caught.value.found, caught.value.next) == ("no compiler", "install it")


def test_a_device_without_a_kernel_of_its_own_gets_none_unasked() -> None:
    with pytest.raises(CannotRunHere, match=r"on meta(?s:.*)install it"):
        chosen(None, META, seam="d", preferred=())
    assert chosen("slow", META, seam="d", preferred=()) == "slow"


def test_an_unknown_name_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(ValueError, match="fast, slow; found 'other'"):
        chosen("other", seam="e")
