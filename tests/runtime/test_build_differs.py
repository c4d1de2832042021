"""A Megatron whose stack differs by one line never trains: the built model is not the plan's."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.megatron]

PROGRAM = Path(__file__).parent / "changed_stack.py"
#: A plan without a mamba layer is not touched by what is done to their slot.
HARMLESS_WITHOUT_SEAMS = {"slots exchanged"}


@pytest.fixture(scope="module")
def outcomes() -> dict[str, dict[str, Any]]:
    """Change -> what became of a plan with seams and of a native one."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", PROGRAM], capture_output=True, text=True, check=True
    )
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return {line.pop("change"): line for line in lines}


def test_the_stack_as_released_trains(outcomes: dict[str, dict[str, Any]]) -> None:
    as_released = outcomes.pop("none")
    assert as_released["seams"]["trained"] > 0
    assert as_released["native"]["trained"] > 0


def test_no_changed_stack_trains_and_the_layers_are_named(
    outcomes: dict[str, dict[str, Any]],
) -> None:
    changes = outcomes.keys() - {"none"}
    assert len(changes) >= 15
    for change in changes:
        for plan, outcome in outcomes[change].items():
            if plan == "native" and change in HARMLESS_WITHOUT_SEAMS:
                continue
            assert outcome.get("codes") == ["SEAM-B10"], (change, plan, outcome)
            assert outcome["positions"], (change, plan, outcome)


@pytest.mark.parametrize(
    ("change", "plan", "positions", "says"),
    [
        ("a shared block", "seams", [2], "the very object of layer 1"),
        ("an item assigned", "native", [3], "the very object of layer 1"),
        ("another item assigned", "seams", [1], "not what slot mamba_layer built"),
        ("another symbol", "native", [2, 4, 6], "where its slot's spec says MLPLayer"),
        ("slots exchanged", "seams", [1, 4], "which no seam built"),
        ("layers swapped", "native", [1, 2], "has the number 2"),
        ("numbers from two", "seams", [2], "asks the slot for layer 2"),
        ("another configuration", "native", [1, 2, 3, 4, 5, 6], "another configuration"),
        ("a module more", "native", [1, 2, 3, 4, 5, 6], "['extra']"),
        ("a slice", "seams", [1, 2, 3, 4, 5, 6], "the stack has 5"),
    ],
)
def test_the_message_names_the_layers_and_what_stands_there(
    outcomes: dict[str, dict[str, Any]], change: str, plan: str, positions: list[int], says: str
) -> None:
    outcome = outcomes[change][plan]
    assert outcome["positions"] == positions
    assert says in outcome["found"][0]
