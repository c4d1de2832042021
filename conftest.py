"""Settings of every test of the repository, the plugins' too: their order and their processes."""

import ast
import functools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import settings

from megatron_seams.planning import environment
from megatron_seams.upstream.source import MegatronSource
from megatron_seams.upstream.surface import NativeSurface

#: From the fastest to the slowest; a test without any of these marks goes first: a mistake in the
#: planner should not wait for a model to be built. The longest tests go before the many that build
#: a model, so that no core is left with a long one at the end.
_ORDER = ("published", "suite", "install", "megatron")
#: What ``--light`` leaves out; published releases and the report's page are no part of planning.
_HEAVY = ("browser", "install", "megatron", "published", "suite")
#: What no file imports that ``--light`` collects; ``forked`` brings torch.
_TORCH = frozenset({"torch", "triton", "megatron", "forked"})

# A deadline in milliseconds says more of the machine than of the code.
settings.register_profile("megatron-seams", deadline=None, derandomize=True)
settings.load_profile("megatron-seams")


@pytest.fixture(scope="session", autouse=True)
def _one_reading_of_the_installed_megatron() -> Iterator[None]:
    """Read the installed Megatron once in this process, and not a quarter of a second each time.

    Its files stay as they are while the tests run; one that a test writes, which may be written
    again, is read each time, and so is any by a process of its own.
    """
    kept: dict[str, MegatronSource] = {}
    find, read = environment.importable_megatron, environment.read_surface
    stay = (Path(sys.prefix), Path(__file__).parent)
    read_once = functools.cache(read)

    def find_once(*projects: Any) -> Any:
        source, notes = find(*projects)
        if source is not None and any(map(Path(source.origin).is_relative_to, stay)):
            source = kept.setdefault(source.origin, source)
        return source, notes

    def surface(source: MegatronSource) -> NativeSurface:
        return read_once(source) if source in kept.values() else read(source)

    with mock.patch.multiple(environment, importable_megatron=find_once, read_surface=surface):
        yield


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the repository's own option."""
    parser.addoption(
        "--light",
        action="store_true",
        help="Only the planner and the command line: neither torch nor Megatron is imported.",
    )


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Read no file that imports torch, or all of whose tests do, where nothing may."""
    if not config.getoption("--light") or collection_path.suffix != ".py":
        return None
    return any(map(_is_heavy, ast.parse(collection_path.read_bytes()).body)) or None


def _is_heavy(statement: ast.stmt) -> bool:
    match statement:
        case ast.Import(names=names):
            return any(name.name.partition(".")[0] in _TORCH for name in names)
        case ast.ImportFrom(module=str(module)):
            return module.partition(".")[0] in _TORCH
        case ast.Assign(targets=[ast.Name("pytestmark")], value=marks):
            names = {node.attr for node in ast.walk(marks) if isinstance(node, ast.Attribute)}
            return not names.isdisjoint(_HEAVY)
        case ast.Assign(value=ast.Call(func=ast.Attribute(attr="importorskip"))):
            return True
    return False


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Sort by slowness, files and tests in their own order within a rank; leave out what is."""
    items.sort(key=_slowness)
    left = [item for item in items if _is_left_out(item, config)]
    config.hook.pytest_deselected(items=left)
    items[:] = [item for item in items if item not in left]


def _slowness(item: pytest.Item) -> int:
    marks = [rank for rank, mark in enumerate(_ORDER, start=1) if item.get_closest_marker(mark)]
    return max(marks, default=0)


def _is_left_out(item: pytest.Item, config: pytest.Config) -> bool:
    if item.get_closest_marker("whole") and "whole" not in config.option.markexpr:
        return True
    return config.getoption("--light") and any(map(item.get_closest_marker, _HEAVY))


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


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Leave no process behind, and hold ``--light`` to its word."""
    if "forked" in sys.modules:
        sys.modules["forked"].stop_server()
    heavy = {"torch", "megatron.core"} & set(sys.modules)
    if heavy and session.config.getoption("--light"):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
        print(f"\n--light: a test imported {', '.join(sorted(heavy))}")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Show what a suite that ran inside a test came to: its counts are not among pytest's own."""
    for report in terminalreporter.stats.get("passed", []):
        for name, value in report.user_properties:
            if name == "summary":
                terminalreporter.write_line(f"{report.nodeid}: {value}")
