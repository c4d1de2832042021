"""The layer under ``torch.compile``, on a CPU and without a compiler."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from megatron_seams.runtime.cpu.world import gloo_world

sys.path.append(str(Path(__file__).parent))

from test_mixer import HIDDEN, layer  # beside this file, which is on no path

pytestmark = [pytest.mark.megatron]

#: The suite runs with it, since Megatron would compile its own functions.
DISABLED = "TORCHDYNAMO_DISABLE"


@pytest.mark.skipif(DISABLED not in os.environ, reason="the next test runs here")
def test_a_layer_compiles_in_a_process_in_which_torch_does() -> None:
    asked = (f"{__file__}::test_a_compiled_layer_computes_what_the_layer_does", "-q")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *asked, "-p", "no:cacheprovider"],
        env={name: value for name, value in os.environ.items() if name != DISABLED},
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "1 passed" in done.stdout, done.stdout[-2000:] + done.stderr[-2000:]


@pytest.mark.skipif(DISABLED in os.environ, reason="the test before runs it")
def test_a_compiled_layer_computes_what_the_layer_does() -> None:
    traced = []

    def as_it_is(graph: torch.fx.GraphModule, _: list[Tensor]) -> Any:
        traced.append(graph)
        return graph.forward

    with gloo_world() as groups:
        model, hidden = layer(groups), torch.randn(10, 2, HIDDEN)
        outcomes = []
        for run in (model, torch.compile(model, backend=as_it_is)):
            out = run(hidden)
            outcomes.append([out, *torch.autograd.grad(out.sum(), list(model.parameters()))])
    assert traced
    for x, other in zip(*outcomes, strict=True):
        torch.testing.assert_close(x, other)
