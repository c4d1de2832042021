"""The time and memory of the hashed n-gram tables: ``python benchmarks/ngram.py``.

One embedding, forward and backward at the size of NAM56R (2 x 4096 tokens, 16 tables of half a
million rows of 16), in fp32: the naive form, with one index computation, one look-up and one dense
gradient for each table, beside the seam's. Compare the ratios between machines.

Each row has a process of its own, and they take turns, so that a busy moment of the machine slows
all alike. In one process the rows would disturb each other: the half gigabyte that the naive form
frees is returned to the system while the next row runs. Here glibc's allocator is set to return
nothing, which otherwise happens or not by chance, and so the naive form is measured at its best:
where it has to ask for its pages anew, a step takes up to ten times as long. Batches differ from
step to step, so that no row of a table is in the cache from the step before; and each turn begins
with work that is not measured, since a processor that slept is slow at first.

Memory is the peak of a first step beyond weights, gradients and its input.
"""

import argparse
import contextlib
import itertools
import multiprocessing
import os
import resource
import statistics
import sys
import time
from multiprocessing.connection import Connection
from typing import Final

import attrs
import torch
from torch import Tensor
from torch.nn.functional import embedding

from megatron_seams_ngram.ngram_tables import NgramTables
from megatron_seams_ngram.tables.hash_tables import HashTables, make_tables

BATCH, LENGTH, WIDTH = 2, 4096, 16
STEP_BAR, INDEX_BAR, MEMORY_BAR = 6.0, 4.0, 16.0  # times, times, MiB
WAKING: Final = 0.1  # seconds until a processor that has slept is as fast as it gets
KEEP: Final = "glibc.malloc.trim_threshold=8589934592:glibc.malloc.mmap_threshold=4294967296"
_LOW_63: Final = 2**63 - 1


def naive_indices(ids: Tensor, tables: HashTables) -> list[Tensor]:
    """One table after the other, [b, s] each: the rule as it is written."""
    found = []
    for table in range(tables.number):
        i = tables.hash_of[table]
        hashed = torch.full_like(ids, _signed(tables.biases[i]))
        for p, multiplier in enumerate(tables.multipliers[i]):
            earlier = ids.roll(p, dims=1)
            earlier[:, :p] = PAD
            hashed = hashed ^ (earlier * _signed(multiplier))
        found.append((hashed & _LOW_63) % tables.primes[table])
    return found


def _signed(value: int) -> int:
    return value - 2**64 if value > _LOW_63 else value


PAD: Final = 131_072


class Case:
    """The tables, batches, and the gradient that comes back."""

    def __init__(
        self, backend: str | None, *, table_rows: int = 500_000, length: int = LENGTH
    ) -> None:
        self.constants = make_tables(orders=(2, 3), heads=8, table_rows=table_rows, seed=0)
        self.tables = NgramTables(
            self.constants,
            width=WIDTH,
            pad_id=PAD,
            seed=0,
            init_std=0.02,
            dtype=torch.float32,
            device=torch.device("cpu"),
            tp_group=None,
            backend=backend,
        )
        self.weight = self.tables.weight
        generator = torch.Generator().manual_seed(0)
        batches = [torch.randint(PAD, (BATCH, length), generator=generator) for _ in range(8)]
        self.batches = itertools.cycle(batches)
        columns = self.constants.number * WIDTH
        self.gradient = torch.randn(BATCH, length, columns, generator=generator)

        # The same memory, as the tables of their own that the naive form has.
        self._sizes = list(self.constants.primes)
        self._sizes[-1] += len(self.weight) - sum(self._sizes)
        self.apart = [torch.nn.Parameter(rows) for rows in self.weight.detach().split(self._sizes)]

    def naive_indices(self) -> None:
        """Index computation, table by table."""
        naive_indices(next(self.batches), self.constants)

    def indices(self) -> None:
        """Index computation of the seam."""
        self.tables.indices(next(self.batches), None)

    def naive(self) -> None:
        """Look each table up and have autograd make a dense gradient."""
        for table in self.apart:
            table.grad = None
        found = naive_indices(next(self.batches), self.constants)
        rows = [embedding(at, table) for at, table in zip(found, self.apart, strict=True)]
        torch.cat(rows, dim=-1).backward(self.gradient)

    def naive_main_grad(self) -> None:
        """The same, and what Megatron's hook does with it."""
        self.naive()
        parts = self.weight.main_grad.split(self._sizes)
        for table, part in zip(self.apart, parts, strict=True):
            part.add_(table.grad)
            table.grad = None

    def seam(self) -> None:
        """The seam; from the second step on, into the gradient that the first one made."""
        self.tables(next(self.batches), None).backward(self.gradient)

    def seam_first(self) -> None:
        """The seam where no gradient is there yet, which it has to make."""
        self.weight.grad = None
        self.seam()

    def seam_main_grad(self) -> None:
        """The seam under Megatron's data parallelism, which keeps ``main_grad``."""
        self.weight.grad = None
        self.weight.grad_added_to_main_grad = False
        self.seam()


@attrs.frozen
class Row:
    """One measured method, in a process of its own.

    Attributes:
        title: Its name in the table.
        work: The method of :class:`Case`.
        over: The ``work`` of the row that it is compared with.
        bar: The least ratio of that row's time to its own.
        main_grad: Whether the weight has Megatron's ``main_grad``.
        memory: Whether the memory of a first step is shown.
        calls: The number of calls in a turn.
    """

    title: str
    work: str
    over: str | None = None
    bar: float | None = None
    main_grad: bool = False
    memory: bool = True
    calls: int = 5


ROWS: Final = (
    Row("indices, naive", "naive_indices", memory=False, calls=50),
    Row("indices, seam", "indices", "naive_indices", INDEX_BAR, memory=False, calls=50),
    Row("step, naive", "naive"),
    Row("step, seam, into grad", "seam", "naive", STEP_BAR, memory=False),
    Row("step, seam, grad to be made", "seam_first", "naive"),
    Row("step, naive, into main_grad", "naive_main_grad", main_grad=True),
    Row(
        "step, seam, into main_grad", "seam_main_grad", "naive_main_grad", STEP_BAR, main_grad=True
    ),
)


def measure(row: Row, backend: str | None, turns: Connection) -> None:
    """Send the MiB that a first step needed; then, at each turn, the milliseconds of one call."""
    # Torch loads some parts at their first use; a small case does that first.
    case = prepared(Case(backend, table_rows=100, length=64), row)
    getattr(case, row.work)()
    case = prepared(Case(backend), row)
    before = most()
    getattr(case, row.work)()
    turns.send((most() - before) / 1024)
    with contextlib.suppress(EOFError):
        while True:
            turns.recv()
            awake = time.perf_counter() + WAKING
            while time.perf_counter() < awake:
                getattr(case, row.work)()
            start = time.perf_counter()
            for _ in range(row.calls):
                getattr(case, row.work)()
            turns.send((time.perf_counter() - start) * 1e3 / row.calls)


def prepared(case: Case, row: Row) -> Case:
    """A case with the gradient that its row adds to."""
    if row.main_grad:
        case.weight.main_grad = torch.zeros_like(case.weight)
        case.weight.main_grad.fill_(0)  # touches its pages before memory is measured
    return case


def most() -> float:
    """The peak memory of this process, KiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15, help="steps of each (default: 15)")
    parser.add_argument("--backend", choices=("cpu", "torch"), help="of the seam (default: cpu)")
    asked = parser.parse_args()
    os.environ["GLIBC_TUNABLES"] = KEEP
    spawn = multiprocessing.get_context("spawn")
    turns, memory = {}, {}
    for row in ROWS:
        turns[row.work], far = spawn.Pipe()
        spawn.Process(target=measure, args=(row, asked.backend, far), daemon=True).start()
        memory[row.work] = turns[row.work].recv()
    times: dict[str, list[float]] = {row.work: [] for row in ROWS}
    for turn in range(asked.rounds + 2):
        for work, process in turns.items():
            process.send(None)
            taken = process.recv()
            if turn >= 2:  # the first ones find caches and pages empty
                times[work].append(taken)
    medians = {work: statistics.median(taken) for work, taken in times.items()}
    print(f"{torch.get_num_threads()} threads, {asked.rounds} rounds")
    print(f"{'':30}  {'ms':>7}  {'ratio':>5}  {'bar':>3}  {'extra MiB':>9}")
    missed = memory["seam_main_grad"] > MEMORY_BAR
    for row in ROWS:
        ratio = medians[row.over] / medians[row.work] if row.over else None
        missed |= row.bar is not None and ratio is not None and ratio < row.bar
        print(
            f"{row.title:30}  {medians[row.work]:7.2f}  {f'{ratio:.1f}' if ratio else '-':>5}  "
            f"{f'{row.bar:.0f}' if row.bar else '-':>3}  "
            f"{f'{memory[row.work]:.0f}' if row.memory else '-':>9}"
        )
    print(f"memory bar {MEMORY_BAR:.0f} MiB; {'a bar is missed' if missed else 'every bar is met'}")
    sys.exit(missed)


if __name__ == "__main__":
    main()
