"""The bars of runs with tables on the host, on runs that were made up."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from trainer_host import as_resident
from trainer_runs import Ran

UPSTREAMS, OURS = "AssertionError: upstream's", "RuntimeError: the rows"


def made(code: int, text: str = "") -> Ran:
    return Ran(code=code, losses={}, text=text, seconds=1.0)


@pytest.mark.parametrize(
    ("resident", "holds", "told"),
    [
        (made(1, UPSTREAMS), True, "with resident tables: the same"),
        (made(1, OURS), False, f"exit code 1, {OURS}"),
        (made(0), False, "exit code 0"),
    ],
    ids=["fails likewise", "fails otherwise", "goes on"],
)
def test_a_resumed_run_that_fails_holds_only_where_resident_tables_fail_by_the_same_error(
    resident: Ran, holds: bool, told: str, tmp_path: Path
) -> None:
    ended = {"a-again": made(1, UPSTREAMS), "a-there": made(0), "a-there-again": resident}
    trainer: Any = SimpleNamespace(folder=tmp_path, train=lambda name, *_, **__: ended[name])
    row = as_resident("resumed", trainer, made(0), "a", (), tmp_path / "there.toml")
    assert row.holds is holds
    assert told in row.figures
