"""The time of the registry beside plain baselines: ``python benchmarks/registry.py``.

Every row is a ratio to a baseline, each side the median of interleaved measurements, so that a busy
moment of the machine slows both alike. Compare the ratios between machines.

The environment is this one, with a thousand plugins more: each a distribution as an installer
leaves it, with a seam and its manifest for the registry, and a trivial class for stevedore. Byte
code is saved, as it is where packages are installed, also where the environment forbids it.
"""

import argparse
import functools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import attrs

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from megatron_seams.planning.environment import Environment
from megatron_seams.planning.resolver import resolve
from megatron_seams.recipes.recipe import Recipe
from megatron_seams.upstream.locate import importable_megatron, megatron_missing
from megatron_seams.upstream.surface import read_surface
from seam_support import environment, install_plugin, make_seam, manifest_table

SEAMS = 1000
GROUP = "trivial_extensions"

#: A published hybrid model of 52 layers, in the tokens of the `nam` dialect.
PATTERN = ("AEMEAEMEAEMR" * 5)[:52]

DISCOVER = """
import time
from megatron_seams.seams.discovery import discover
discover()
start = time.perf_counter()
found = discover()
print(time.perf_counter() - start)
assert len(found.seams) >= {seams} and not found.broken
"""

#: The first construction in its process: a second one imports nothing and would measure a dict.
STEVEDORE = """
import time
from stevedore import ExtensionManager, _cache
_cache._c._dir, _cache._c._disable_caching = {cache!r}, True
start = time.perf_counter()
found = ExtensionManager({group!r})
print(time.perf_counter() - start)
assert len(found.names()) == {seams}
"""


@attrs.frozen(kw_only=True)
class Row:
    """One comparison.

    Attributes:
        name: The work of the registry that is measured.
        ours: Measures it once, in seconds.
        baseline: The work that it is compared with.
        theirs: Measures that once, in seconds.
        bar: The largest ratio that is accepted.
    """

    name: str
    ours: Callable[[], float]
    baseline: str
    theirs: Callable[[], float]
    bar: float


def install(site: Path) -> None:
    """A thousand distributions, each with a seam of a family of its own and a trivial extension."""
    for number in range(SEAMS):
        name = f"s{number:04}"
        code = "class Extension:\n    pass\n"
        info = install_plugin(
            site, f"acme-{name}", {f"acme_{name}": manifest_table(name, name)}, code=code
        )
        with (info / "entry_points.txt").open("a") as file:
            file.write(f"\n[{GROUP}]\n{name} = acme_{name}:Extension\n")


def reported(code: str, variables: Mapping[str, str]) -> float:
    """The number of seconds that a program in a process of its own prints."""
    done = subprocess.run(
        [sys.executable, "-c", code], env=variables, capture_output=True, text=True, check=True
    )
    return float(done.stdout)


def process(command: list[str], variables: Mapping[str, str]) -> float:
    """The time of a whole process, in seconds."""
    start = time.perf_counter()
    subprocess.run(command, env=variables, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - start


def repeated(work: Callable[[], object], times: int) -> float:
    """The mean time of ``times`` calls, in seconds."""
    start = time.perf_counter()
    for _ in range(times):
        work()
    return (time.perf_counter() - start) / times


def processes(folder: Path) -> Iterator[Row]:
    """Discovery, and the whole commands."""
    install(folder / "site")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    few = {**kept, "PYTHONPYCACHEPREFIX": str(folder / "code")}
    many = {**few, "PYTHONPATH": str(folder / "site")}
    scripts = Path(sys.executable).parent
    listing = [str(scripts / "registry"), "list", "--owners", "--json"]
    # Stevedore would cache the entry points in a file; where the folder for it cannot exist, it
    # reads the environment each time, as the registry does.
    program = STEVEDORE.format(group=GROUP, seams=SEAMS, cache=os.devnull)
    yield Row(
        name=f"discover() of {SEAMS} seams",
        ours=functools.partial(reported, DISCOVER.format(seams=SEAMS), many),
        baseline="ExtensionManager without its cache",
        theirs=functools.partial(reported, program, many),
        bar=2.0,
    )
    yield Row(
        name=f"registry list, {SEAMS} seams",
        ours=functools.partial(process, listing, many),
        baseline="the same, as a process",
        theirs=functools.partial(process, [sys.executable, "-c", program], many),
        bar=2.0,
    )
    yield Row(
        name="registry list, this workspace",
        ours=functools.partial(process, listing, few),
        baseline="pytest --version",
        theirs=functools.partial(process, [str(scripts / "pytest"), "--version"], few),
        bar=1.3,
    )


def resolutions() -> Iterator[Row]:
    """A plan of 52 layers within five milliseconds, and growth with the number of layers."""
    here = surroundings()

    def plan(depth: int) -> None:
        resolve(Recipe.of_pattern(PATTERN, dialect="nam", depth=depth), here)

    yield Row(
        name="resolve() of 52 layers",
        ours=functools.partial(repeated, lambda: plan(len(PATTERN)), 50),
        baseline="five milliseconds",
        theirs=lambda: 5e-3,
        bar=1.0,
    )
    yield Row(
        name="resolve() of 10^4 layers",
        ours=functools.partial(repeated, lambda: plan(10_000), 1),
        baseline="ten of 10^3 layers",
        theirs=lambda: 10 * repeated(lambda: plan(1_000), 1),
        bar=1.3,
    )


def surroundings() -> Environment:
    """The importable Megatron, and one seam for the block that it does not have."""
    source, _ = importable_megatron()
    if source is None:
        raise megatron_missing()
    return environment(make_seam("rnn", "recurrent"), native=read_surface(source))


def shown(seconds: float) -> str:
    """A time in a unit that suits it."""
    return f"{seconds * 1e3:.1f} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.1f} µs"


def main() -> None:
    """Measure every row and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9, help="measurements of each (default: 9)")
    parser.add_argument("--only", default="", metavar="TEXT", help="rows whose name has TEXT")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = [row for row in (*processes(Path(folder)), *resolutions()) if asked.only in row.name]
        taken: list[tuple[Row, list[float], list[float]]] = [(row, [], []) for row in rows]
        for number in range(asked.rounds + 1):
            for row, ours, theirs in taken:
                pair = row.ours(), row.theirs()
                if number:  # the first round compiles and fills caches
                    ours.append(pair[0])
                    theirs.append(pair[1])
    print(f"{'':31}  {'registry':>9}  {'':38}  {'baseline':>9}  {'ratio':>5}  {'bar':>4}")
    for row, ours, theirs in taken:
        mine, other = statistics.median(ours), statistics.median(theirs)
        over = "  over" if mine / other > row.bar else ""
        print(
            f"{row.name:31}  {shown(mine):>9}  {row.baseline:38}  {shown(other):>9}"
            f"  {mine / other:5.2f}  {row.bar:4.1f}{over}"
        )


if __name__ == "__main__":
    main()
