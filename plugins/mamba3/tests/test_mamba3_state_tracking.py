"""The example runs: every try is built by the registry, trained a little and asked."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from megatron_seams.runtime.cpu.world import cpu_world
from megatron_seams.runtime.model.build import build_model
from megatron_seams.runtime.parity import Parity

pytestmark = pytest.mark.megatron

EXAMPLE = Path(__file__).parent.parent / "examples" / "state_tracking.py"


@pytest.fixture
def example() -> Any:
    spec = importlib.util.spec_from_file_location("mamba3_state_tracking", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.TASK, module.RATES = Parity(batch=16, questions=32), (2e-2,)
    return module


def test_the_example_trains_every_block_and_asks_it(
    example: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    del example.BLOCKS["recurrent"]
    turning, real = example.main(["--steps", "20"]).values()
    assert capsys.readouterr().out.count("Mamba-3, angles at zero") == 2
    assert turning.parameters == real.parameters
    for one in (turning, real):
        assert one.accuracy.shape == (256,)
        assert 0 <= one.trained <= 1


def test_a_block_that_nothing_builds_is_left_out(
    example: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    example.BLOCKS = {"none": example.Block(family="unheard_of")}
    assert example.main([]) == {}
    assert "none: nothing that is installed builds it" in capsys.readouterr().out


def test_angles_that_are_held_stay_at_zero(example: Any) -> None:
    name = "Mamba-3, angles at zero"
    with cpu_world(seed=1):
        model = build_model(example.planned(name, example.BLOCKS[name]))
        mixer = model.decoder.layers[0].mixer
        example.hold_angles_at_zero(model)
        example.TASK.train(model, 2e-2, 2)
        assert not mixer.in_proj.weight[-mixer.layout.A :].any()
        assert mixer.in_proj.weight[: -mixer.layout.A].any()
