"""Whatever an input is made of, the audit goes on: in bounded time and memory, beside it."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from hostile_inputs import INPUTS, SECONDS
from megatron_seams.base.toml import with_lines
from megatron_seams.seams.manifest import parse_manifest
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


def test_a_manifest_of_7000_unknown_keys_takes_less_than_a_second(tmp_path: Path) -> None:
    file = tmp_path / "seam.toml"
    file.write_text("".join(f"k{number}=1\n" for number in range(7000)))
    started = time.process_time()
    _, faults = parse_manifest(file.read_bytes(), file=str(file))
    found = with_lines(faults)
    assert time.process_time() - started < 1
    assert len(found) == 51
    assert "further keys do not fit" in found[-1].found
