"""The example runs: every try is built by the registry, trained a little and asked."""

import importlib.util
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.megatron

EXAMPLE = Path(__file__).parent.parent / "examples" / "state_tracking.py"


def test_the_example_trains_every_block_and_asks_it(capsys: pytest.CaptureFixture[str]) -> None:
    spec = importlib.util.spec_from_file_location("mamba3_state_tracking", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    example.BATCH, example.QUESTIONS, example.RATES = 16, 32, (2e-2,)
    example.BLOCKS = example.BLOCKS[:2]
    turning, real = example.main(["--steps", "20"])
    assert capsys.readouterr().out.count("Mamba-3, angles at zero") == 2
    assert turning.parameters == real.parameters
    for one in (turning, real):
        assert one.accuracy.shape == (256,)
        assert 0 <= one.trained <= 1
    bits, parities = example.draw(5, 3, torch.Generator().manual_seed(0))
    assert parities.tolist() == [[sum(row[: n + 1]) % 2 for n in range(5)] for row in bits.tolist()]


def test_angles_that_are_held_stay_at_zero() -> None:
    spec = importlib.util.spec_from_file_location("mamba3_state_tracking", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    block = example.BLOCKS[1]
    with example.cpu_world(seed=1):
        model = example.build_model(example.planned(block))
        mixer = model.decoder.layers[0].mixer
        example.hold_angles_at_zero(mixer)
        example.train(model, 2e-2, 2)
        assert not mixer.in_proj.weight[-mixer.layout.A :].any()
        assert mixer.in_proj.weight[: -mixer.layout.A].any()
