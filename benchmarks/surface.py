"""The time of one reading of a native surface: ``python benchmarks/surface.py``.

Each row is the median of interleaved readings, every one from a source opened anew, beside its bar
and a plain baseline: the same files read and parsed, and no more. Compare the ratio of the two
between machines.
"""

import argparse
import ast
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from megatron_releases import READ, wheel
from megatron_seams.upstream.locate import importable_megatron, megatron_missing, open_megatron
from megatron_seams.upstream.source import MegatronSource
from megatron_seams.upstream.surface import read_surface

INSTALLED_BAR = 30.0  # ms
WHEEL_BAR = 80.0  # ms


@attrs.frozen(kw_only=True)
class Case:
    """One Megatron, read in one way.

    Attributes:
        name: The name of the row.
        opened: Opens the Megatron anew.
        files: The files that a reading opens, inside ``megatron``.
        bar: The most milliseconds that a reading may take; None where there is no bar.
    """

    name: str
    opened: Callable[[], MegatronSource]
    files: tuple[str, ...]
    bar: float | None = None

    def read(self) -> None:
        """Read the surface: the work that is measured."""
        read_surface(self.opened())

    def parse(self) -> None:
        """The baseline: open the same Megatron, read the same files, parse them."""
        source = self.opened()
        for path in self.files:
            ast.parse(source.read(path) or b"")


def files_of(source: MegatronSource) -> tuple[str, ...]:
    """The files that a reading of ``source`` opens, in order."""
    seen: dict[str, None] = {}

    def read(path: str) -> bytes | None:
        data = source.read(path)
        if data is not None:
            seen[path] = None
        return data

    read_surface(MegatronSource(origin=source.origin, read=read))
    return tuple(seen)


def installed() -> MegatronSource:
    """The importable Megatron, found as every command finds it."""
    source, _ = importable_megatron()
    if source is None:
        raise megatron_missing()
    return source


def cases(folder: Path) -> Iterator[Case]:
    """The importable Megatron, a folder, and every published wheel."""
    files = files_of(installed())
    yield Case(name="installed", opened=installed, files=files, bar=INSTALLED_BAR)
    for name in files:
        (folder / "megatron" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(Path(installed().origin) / name, folder / "megatron" / name)
    yield Case(name="folder", opened=lambda: open_megatron(folder), files=files)
    for release in READ:
        path = wheel(release)
        yield Case(
            name=f"wheel {release}",
            opened=lambda path=path: open_megatron(path),  # type: ignore[misc]
            files=files_of(open_megatron(path)),
            bar=WHEEL_BAR,
        )


def milliseconds(work: Callable[[], None]) -> float:
    """The time of one call, in milliseconds."""
    start = time.perf_counter()
    work()
    return (time.perf_counter() - start) * 1e3


def main() -> None:
    """Measure every case and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=25, help="readings of each (default: 25)")
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder:
        measured: dict[Case, tuple[list[float], list[float]]] = {
            case: ([], []) for case in cases(Path(folder))
        }
        # Interleaved, so that a busy moment of the machine falls on all of them alike.
        for _ in range(rounds):
            for case, (reads, parses) in measured.items():
                reads.append(milliseconds(case.read))
                parses.append(milliseconds(case.parse))
    print(f"{'':12}  {'surface':>9}  {'bar':>6}  {'read+parse':>10}  {'ratio':>5}")
    for case, (reads, parses) in measured.items():
        read, parse = statistics.median(reads), statistics.median(parses)
        bar = f"{case.bar:.0f} ms" if case.bar else "-"
        over = "  over" if case.bar and read > case.bar else ""
        print(
            f"{case.name:12}  {read:6.1f} ms  {bar:>6}  {parse:7.1f} ms  {read / parse:5.1f}{over}"
        )


if __name__ == "__main__":
    main()
