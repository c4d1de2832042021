"""What every test of the repository shares, a plugin's own too: their order and their processes."""

import sys

import pytest
from hypothesis import settings

#: From the fastest to the slowest; a test without any of these marks goes first: a mistake in the
#: planner should not wait for a model to be built.
_SLOWER = ("published", "megatron", "install", "suite")

# A deadline in milliseconds says more of the machine than of the code.
settings.register_profile("megatron-seams", deadline=None, derandomize=True)
settings.load_profile("megatron-seams")


def _slowness(item: pytest.Item) -> int:
    marks = [rank for rank, mark in enumerate(_SLOWER, start=1) if item.get_closest_marker(mark)]
    return max(marks, default=0)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort by slowness; files and tests keep their own order within a rank."""
    items.sort(key=_slowness)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Fork the ranks that a test launches, unless it is about launching them."""
    if item.get_closest_marker("megatron"):
        import forked

        if item.get_closest_marker("fresh_ranks"):
            forked.spawn_ranks()
        else:
            forked.fork_ranks()
            forked.save_without_a_manager()


def pytest_sessionfinish() -> None:
    """Leave no process behind."""
    if "forked" in sys.modules:
        sys.modules["forked"].stop_server()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Show what a suite that ran inside a test came to: its counts are not among pytest's own."""
    for report in terminalreporter.stats.get("passed", []):
        for name, value in report.user_properties:
            if name == "summary":
                terminalreporter.write_line(f"{report.nodeid}: {value}")
