"""The tables of benchmarks/gpu/trainer.py: their reading of output, and when a row holds."""

import math
import tomllib

import pytest

from trainer_drills import Ended
from trainer_host import HOST_RECIPE
from trainer_runs import HALF, STEPS, Ran, read_losses
from trainer_tables import LAYOUTS, LEAST_NOISE, RECIPE, TIMES_NOISE, falls, within_noise

LINE = " [2026-11-26 00:44:23] iteration {:8d}/      20 | lm loss: {:.6E} | grad norm: 1.000 |"


def printed(losses: dict[int, float]) -> str:
    """Losses as upstream prints them: the first stays in the sum of the second."""
    lines = []
    for number, (step, loss) in enumerate(losses.items()):
        shown = (losses[step - 1] + loss) / 2 if number == 1 else loss
        lines.append(LINE.format(step, shown))
    return "\n".join(lines)


def ran(**apart: float) -> Ran:
    """A resumed run; ``at_13=0.1`` is a loss that far from the usual one."""
    usual = {step: 9.0 - step / 10 for step in range(HALF + 1, STEPS + 1)}
    losses = {step: loss + apart.get(f"at_{step}", 0.0) for step, loss in usual.items()}
    return Ran(code=0, losses=losses, text="", seconds=1.0)


def test_the_mean_in_the_second_line_of_a_run_is_undone() -> None:
    losses = {11: 8.402365, 12: 8.133678, 13: 8.142304}
    assert read_losses(printed(losses)) == pytest.approx(losses, abs=2e-6)
    assert read_losses(printed({1: 9.1})) == {1: 9.1}
    assert read_losses("nothing was printed") == {}
    (lost,) = read_losses(" iteration 1/ 20 | lm loss: nan |").values()
    assert math.isnan(lost)


def test_losses_that_fall_are_finite_and_all_there() -> None:
    assert falls([9.0, 8.9, 8.4])
    assert not falls([9.0, 8.9, 8.6])
    assert not falls([9.0, math.nan, 8.0])


def test_a_layout_is_held_to_the_noise_that_there_was_until_then() -> None:
    small = LEAST_NOISE / 2
    assert within_noise(ran(), ran(at_13=small), ran())
    assert not within_noise(ran(), ran(at_13=3 * LEAST_NOISE), ran())
    noise = ran(at_13=LEAST_NOISE)
    assert within_noise(ran(), ran(at_15=0.9 * TIMES_NOISE * LEAST_NOISE), noise)
    assert not within_noise(ran(), ran(at_12=0.9 * TIMES_NOISE * LEAST_NOISE), noise)
    assert not within_noise(ran(), ran(at_20=math.nan), noise)


def test_every_layout_is_a_recipe_of_the_same_model() -> None:
    for layout in LAYOUTS:
        for base in (RECIPE, HOST_RECIPE):
            text = layout.recipe(base)
            assert layout.parallelism in text
            assert layout.megatron in text
            assert f'"{layout.pattern or "DEDRER"}"' in text
            assert set(base.split()) <= set(text.replace("|", "").split())


def test_tables_on_the_host_are_the_other_runs_recipe_with_one_option_more() -> None:
    before, after = (tomllib.loads(text) for text in (RECIPE, HOST_RECIPE))
    assert after["seams"]["ngram_hash"].pop("tables") == "host"
    assert after == before


def test_a_refusal_is_read_from_what_a_rank_printed() -> None:
    message = """
[rank0]: megatron_seams.errors.base.Refusal: [SEAM-B11] one model on all 2 ranks
[rank0]:   found: rank 0 (on a): one plan; rank 1: silent for 15 s
[rank0]:   next: look at rank 1
"""
    ended = Ended(codes=(1, -15), texts=(message, message), seconds=1.0, stopped=None)
    assert ended.refusals() == [
        "[SEAM-B11] one model on all 2 ranks "
        "found: rank 0 (on a): one plan; rank 1: silent for 15 s"
    ]
    assert not ended.trained
