"""Some 300 changes of the stack's source by a generator: none is read and then builds otherwise.

A source that the reader refuses builds nothing. One that it reads is run, and a model that is built
holds the layers that the surface of the changed source says, with their numbers, its MTP
depths included.
"""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.megatron]

PROGRAM = Path(__file__).parent / "changed_source.py"
COUNT, SEED = 320, 13
#: A reader that refused everything would be right about every change.
READ, BUILT = 35, 25


@pytest.fixture(scope="module")
def outcomes() -> list[dict[str, Any]]:
    """The outcome of each change: why it is unknown, or what each pattern built."""
    command = [sys.executable, "-W", "ignore", PROGRAM, str(COUNT), str(SEED)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def test_no_surface_is_read_that_its_execution_contradicts(outcomes: list[dict[str, Any]]) -> None:
    made = [outcome for outcome in outcomes if outcome["change"] != "nothing"]
    assert len(made) == COUNT
    assert len({outcome["module"] for outcome in made}) == 2
    for outcome in made:
        for became in outcome.get("built", ()):
            assert became.startswith(("as read", "refused: ", "stopped: ")), outcome


def test_the_source_as_released_is_read_and_built(outcomes: list[dict[str, Any]]) -> None:
    for outcome in outcomes:
        if outcome["change"] == "nothing":
            assert set(outcome["built"]) == {"as read"}


def test_what_changes_no_layer_is_still_read(outcomes: list[dict[str, Any]]) -> None:
    became = [Counter(outcome["built"]) for outcome in outcomes if "built" in outcome]
    assert len(became) >= READ
    assert sum(set(one) == {"as read"} for one in became) >= BUILT


def test_a_refusal_names_the_file_and_what_is_not_known(outcomes: list[dict[str, Any]]) -> None:
    refused = [outcome for outcome in outcomes if "unknown" in outcome]
    assert refused
    for outcome in refused:
        assert f"{outcome['module']}.py" in outcome["unknown"]
