"""Fast tests first: a mistake in the planner should not wait for a model to be built."""

from pathlib import Path

import pytest
from hypothesis import settings

#: From the fastest to the slowest; a test without any of these marks goes first.
_SLOWER = ("published", "megatron", "install", "suite")

# A deadline in milliseconds says more of the machine than of the code.
settings.register_profile("megatron-seams", deadline=None, derandomize=True)
settings.load_profile("megatron-seams")


def _slowness(item: pytest.Item) -> int:
    marks = [rank for rank, mark in enumerate(_SLOWER, start=1) if item.get_closest_marker(mark)]
    return max(marks, default=0)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=_slowness)  # stable: files and tests keep their own order within a rank


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the source tree."""
    return Path(__file__).resolve().parent.parent


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Show what a suite that ran inside a test came to: its counts are not among pytest's own."""
    for report in terminalreporter.stats.get("passed", []):
        for name, value in report.user_properties:
            if name == "summary":
                terminalreporter.write_line(f"{report.nodeid}: {value}")
