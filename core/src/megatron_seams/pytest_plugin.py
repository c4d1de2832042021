"""``pytest --seam NAME`` runs the conformance kit on an installed seam.

pytest imports this module wherever megatron-seams is installed: without the option it does nothing,
and it imports no other module of the package before it must.
"""

from pathlib import Path

import pytest

_TESTS = Path(__file__).parent / "runtime" / "conformance" / "seam_tests.py"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the kit's options."""
    group = parser.getgroup("megatron-seams", "conformance of a seam")
    group.addoption("--seam", metavar="NAME", help="Test the installed seam NAME, and only it.")
    group.addoption(
        "--seam-options",
        metavar="FILE",
        help="A part of a recipe: [seams.NAME] and [megatron], with which the seam is built.",
    )
    group.addoption(
        "--seam-megatron",
        metavar="WHEEL|PATH",
        action="append",
        default=[],
        help="A further megatron-core whose keywords the layers are to take; may be repeated.",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Collect the kit; with no path on the command line, the kit alone.

    Raises:
        pytest.UsageError: Another option of the kit is there without the seam's name.
    """
    if config.getoption("--seam") is None:
        for option in ("--seam-options", "--seam-megatron"):
            if config.getoption(option):
                message = f"{option} goes with --seam NAME"
                raise pytest.UsageError(message)
        return
    if config.args_source is not pytest.Config.ArgsSource.ARGS:
        config.args = []
    config.args.append(str(_TESTS))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect the kit's class for the other kind of seam: layers for a feature, and vice versa.

    Raises:
        pytest.UsageError: A file that an option names cannot be used: said once, and not by each
            test.
    """
    name = config.getoption("--seam")
    if name is None:
        return
    from megatron_seams.planning.environment import read_environment

    _refuse_files(config, name)
    seams = {seam.name: seam for seam in read_environment().discovery.seams}
    kind = seams[name].manifest.kind if name in seams else "block"
    other = "TestFeature" if kind == "block" else "TestLayer"
    left = [it for it in items if it.path == _TESTS and it.parent and it.parent.name == other]
    config.hook.pytest_deselected(items=left)
    items[:] = [item for item in items if item not in left]


def _refuse_files(config: pytest.Config, name: str) -> None:
    from megatron_seams.errors import Refusal, SeamsError
    from megatron_seams.runtime.conformance.subject import read_fragment
    from megatron_seams.upstream.locate import open_megatron

    try:
        if file := config.getoption("--seam-options"):
            read_fragment(Path(file), name)
        for path in config.getoption("--seam-megatron"):
            open_megatron(Path(path))
    except (Refusal, SeamsError) as fault:
        raise pytest.UsageError(str(fault)) from fault
