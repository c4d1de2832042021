"""Losses, gradients and checkpoints in parallel layouts are those of one rank."""

from pathlib import Path

import pytest

import megatron_seams as ms
from layouts import Layout, compare
from megatron_seams.errors import NoProvider, Refusal
from megatron_seams.recipes.recipe import Parallelism

pytestmark = [pytest.mark.megatron]

RECIPE = Path(__file__).resolve().parents[2] / "recipes" / "nam-mini.toml"


@pytest.mark.parametrize(
    "layout",
    [
        Layout(
            name="TP2 + SP",
            parallelism=Parallelism(tensor_parallel=2, sequence_parallel=True),
            pattern="AEMR/AF",  # with n-grams rolled for MTP from piece to piece
        ),
        Layout(
            name="PP2, EP2",
            parallelism=Parallelism(pipeline_parallel=2, expert_parallel=2),
            pattern="AEM|ER",
        ),
    ],
    ids=lambda layout: layout.name,
)
def test_a_layout_trains_as_one_rank_does(layout, tmp_path):
    base = ms.load_recipe(RECIPE)
    try:
        layout.plan(base)
    except Refusal as refusal:
        if any(not isinstance(reason, NoProvider) for reason in refusal.reasons):
            raise
        pytest.skip("a seam of the recipe is not installed here")
    found = compare(layout, base, tmp_path)
    assert found.equal, found
