"""Whatever an input is made of, the audit goes on: in bounded time and memory, beside it."""

import json
from pathlib import Path
from typing import Any

import pytest

from hostile_inputs import INPUTS, SECONDS
from seam_support import run_python


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Input -> what came of it, in one process whose memory is bounded."""
    here = Path(__file__).parent
    done = run_python(
        here / "hostile_inputs.py", tmp_path_factory.mktemp("hostile"), path=[here], cwd=here
    )
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(lines) == len(INPUTS), done.stderr
    return {line["name"]: line for line in lines}


def test_there_are_many() -> None:
    assert len(INPUTS) >= 60


@pytest.mark.parametrize("name", INPUTS)
def test_an_input_is_a_finding_or_harmless_and_hides_nothing(
    name: str, results: dict[str, dict[str, Any]]
) -> None:
    found = results[name]
    assert found["codes"] == list(INPUTS[name].codes)
    assert found["good"]
    assert found["seconds"] < SECONDS
