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

SIZES = {"state-size": 8, "head-dim": 8, "chunk-size": 4}


@pytest.fixture(scope="module", params=[None, 2], ids=["SISO", "MIMO"])
def model(request: pytest.FixtureRequest) -> Iterator[Any]:
    """Two layers of a whole model, for inference."""
    ranks = {} if request.param is None else {"mimo-rank": request.param}
    asked = recipe(
        "K-K",
        tokens={"K": "mamba3"},
        megatron=decoded.SETTINGS,
        seams={"mamba3": SIZES | ranks},
        runtime={"inference": True},
    )
    with cpu_world(), torch.no_grad():
        yield decoded.moved(build_model(plan(asked, read_environment())))


class TestMamba3(decoded.Decoded):
    """A mixer that keeps the state, and the angle, B and x of the last token."""
