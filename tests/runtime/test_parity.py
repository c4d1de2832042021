"""The parity task: its data, and the table of tries."""

import pytest
import torch

from megatron_seams.runtime.parity import Answers, Parity


def test_after_each_bit_the_parity_of_all_so_far_is_asked_for() -> None:
    bits, parities = Parity().draw(5, 3, torch.Generator().manual_seed(0))
    assert bits.shape == (3, 5)
    assert parities.tolist() == [[sum(row[: n + 1]) % 2 for n in range(5)] for row in bits.tolist()]


def test_the_best_try_of_each_block_at_the_trained_lengths_counts(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def answers(trained: float) -> Answers:
        return Answers(parameters=1234, accuracy=torch.full((256,), 0.5), trained=trained)

    tries = {
        "a": [(f"a, {x}", lambda x=x: answers(x)) for x in (0.5, 0.9, 0.7)],
        "b": [("b", lambda: answers(0.6))],
        "none": [],
    }
    best = Parity().compare(tries)
    assert {name: one.trained for name, one in best.items()} == {"a": 0.9, "b": 0.6}
    shown = capsys.readouterr().out
    assert [shown.count(name) for name in ("a, 0.5", "a, 0.9", "a, 0.7")] == [1, 2, 1]
    assert "1,234   50.0%   50.0%   50.0%   50.0%" in shown
