"""The example runs: every try is built by the registry, trained a little and asked."""

import importlib.util
from pathlib import Path

import pytest

from megatron_seams.runtime.parity import Parity

pytestmark = pytest.mark.megatron

EXAMPLE = Path(__file__).parent.parent / "examples" / "state_tracking.py"


def test_the_example_trains_every_block_and_asks_it(capsys: pytest.CaptureFixture[str]) -> None:
    spec = importlib.util.spec_from_file_location("state_tracking", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    example.TASK, example.RATES = Parity(batch=16, questions=32), (2e-2,)
    recurrent, attention, larger = example.main(["--steps", "40"]).values()
    printed = capsys.readouterr().out
    assert printed.count("M2RNN, positions none") == 2  # the try, and that it is the best
    assert printed.count("attention, positions") == 3
    assert printed.count("attention, MLP, positions") == 2
    # Of about one size; and the recurrent one is no coin any more.
    assert 0.9 < recurrent.parameters / attention.parameters < 1.1
    for one in (recurrent, attention, larger):
        assert one.accuracy.shape == (256,)
        assert 0 <= one.trained <= 1
    assert recurrent.accuracy[:2].min() == 1.0
