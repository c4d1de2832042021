"""Tables on the host under upstream's own setup, step, save and load, in a process of its own."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.megatron


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    script = Path(__file__).parent / "trainer_steps.py"
    done = subprocess.run(
        [sys.executable, script, tmp_path_factory.mktemp("trainer")],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_the_trainer_steps_rows_on_the_host_as_it_steps_resident_ones(runs: dict[str, Any]) -> None:
    resident, host = runs["device"]["steps"], runs["host"]["steps"]
    assert len(resident) == len(host) == 4
    # Until the third step no row had a momentum and no gradient.
    for found, expected in zip(host[:3], resident[:3], strict=True):
        assert found == pytest.approx(expected, rel=1e-6)
    assert host[-1] == pytest.approx(resident[-1], rel=1e-3)
    assert host[-1][0] < host[0][0]


def test_a_run_of_the_trainer_goes_on_from_its_checkpoint_bit_for_bit(runs: dict[str, Any]) -> None:
    whole, resumed = runs["host"], runs["resumed"]
    assert (whole["started"], resumed["started"]) == (0, 2)
    assert resumed["steps"] == whole["steps"][2:]
    assert resumed["rows"] == whole["rows"]


def test_a_change_of_place_is_another_model_until_it_is_accepted(runs: dict[str, Any]) -> None:
    assert set(runs["moved without a word"]) == {"SEAM-V05"}
    assert runs["moved"]["started"] == 2
    assert runs["moved"]["steps"][0] == pytest.approx(runs["device"]["steps"][2], rel=1e-6)


def test_the_trainer_has_the_arguments_that_are_refused(runs: dict[str, Any]) -> None:
    assert len(runs["host"]["named"]) == 9
    for option in ("--ckpt-format", "--async-save"):
        assert runs[option] == "SEAM-R11"
