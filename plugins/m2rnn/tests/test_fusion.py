"""Which kernels the mixer's elementwise steps get: those of training, in recomputation too."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from megatron_seams_m2rnn.layer.fusion import fused


class OnGpu(Tensor):
    """A tensor that says that it is on a GPU."""

    is_cuda = property(lambda _: True)  # type: ignore[assignment]  # as torch's own


@pytest.fixture
def wanted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[bool, ...]]:
    """The specialisation of each call of a compiled function: gradients, and whose."""
    calls: list[tuple[bool, ...]] = []

    def compile_(function: Any) -> Any:
        def compiled(*given: Any) -> Tensor:
            of = (each is not None and each.requires_grad for each in given)
            calls.append((torch.is_grad_enabled(), *of))
            result: Tensor = function(*given)
            return result

        return compiled

    monkeypatch.setattr(torch, "compile", compile_)
    return calls


def on_gpu(*shape: int, needs: bool = False) -> Tensor:
    return torch.randn(*shape).as_subclass(OnGpu).requires_grad_(needs)  # type: ignore[no-any-return]


def scaled(x: Tensor, weight: Tensor, position: Tensor | None) -> Tensor:
    assert position is None or position.dtype == torch.int64
    return x * weight


def test_recomputation_gets_the_kernels_of_the_pass_with_gradients(
    wanted: list[tuple[bool, ...]],
) -> None:
    function, weight = fused(scaled), nn.Parameter(torch.randn(4))
    position = torch.arange(4)
    plain = function(on_gpu(3, 4, needs=True), weight, position, training=True)
    with torch.no_grad():
        first = function(on_gpu(3, 4), weight, position, training=True)
    assert wanted == [(True, True, True, False)] * 2
    assert plain.requires_grad
    assert not first.requires_grad


def test_a_frozen_weight_stays_frozen(wanted: list[tuple[bool, ...]]) -> None:
    function, weight = fused(scaled), nn.Parameter(torch.randn(4), requires_grad=False)
    with torch.no_grad():
        function(on_gpu(3, 4), weight, None, training=True)
    assert wanted == [(True, True, False, False)]


def test_nothing_is_compiled_on_a_cpu_or_outside_of_training(
    wanted: list[tuple[bool, ...]],
) -> None:
    function, weight = fused(scaled), nn.Parameter(torch.randn(4))
    function(torch.randn(3, 4), weight, None, training=True)
    function(on_gpu(3, 4), weight, None, training=False)
    with torch.inference_mode():
        function(on_gpu(3, 4), weight, None, training=True)
    assert wanted == []
