"""Recurrent inference: steps through the kept state are the whole sequence at once."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

import decoded
from megatron_seams.planning.environment import read_environment
from megatron_seams.runtime.cpu.world import cpu_world
from megatron_seams.runtime.model.build import build_model
from seam_support import plan, recipe

pytestmark = pytest.mark.megatron


@pytest.fixture(scope="module")
def model() -> Iterator[Any]:
    """Two recurrent layers of a whole model, for inference."""
    asked = recipe(
        "R-R",
        tokens={"R": "recurrent"},
        megatron=decoded.SETTINGS,
        seams={"m2rnn": {"heads": 4, "K": 6, "V": 5}},
        runtime={"inference": True},
    )
    with cpu_world(), torch.no_grad():
        yield decoded.moved(build_model(plan(asked, read_environment())))


class TestM2RNN(decoded.Decoded):
    """A mixer that keeps the convolution's last tokens and the matrix state."""
