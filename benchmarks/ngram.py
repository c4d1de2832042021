"""What the hashed n-gram tables cost: ``python benchmarks/ngram.py``.

One embedding, forward and backward at the size of NAM56R (2 x 4096 tokens, 16 tables of half a
million rows of 16), in fp32: the naive form, with one index computation, one look-up and one dense
gradient for each table, beside the seam's. Rounds are interleaved and figures are medians, so
that a busy moment of the machine falls on both alike; what carries over to another machine is the
ratio. Memory is what one step needs beyond weights, gradients and its input, at its peak.
"""

import argparse
import multiprocessing
import resource
import statistics
import sys
import time
from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor
from torch.nn.functional import embedding

from megatron_seams_ngram.ngram_tables import NgramTables
from megatron_seams_ngram.tables import HashTables, make_tables

BATCH, LENGTH, WIDTH = 2, 4096, 16
STEP_BAR, INDEX_BAR, MEMORY_BAR = 6.0, 4.0, 16.0  # times, times, MiB
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
    """The tables, a batch, and the gradient that comes back."""

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
        self.weight.main_grad = torch.zeros_like(self.weight)
        generator = torch.Generator().manual_seed(0)
        self.ids = torch.randint(PAD, (BATCH, length), generator=generator)
        columns = self.constants.number * WIDTH
        self.gradient = torch.randn(BATCH, length, columns, generator=generator)

        # The same memory, as the tables of their own that the naive form has.
        self.apart = [torch.nn.Parameter(rows) for rows in self.weight.detach().split(self._sizes)]

    @property
    def _sizes(self) -> list[int]:
        primes = list(self.constants.primes)
        primes[-1] += len(self.weight) - sum(primes)
        return primes

    def naive_indices(self) -> None:
        """Index computation, table by table."""
        naive_indices(self.ids, self.constants)

    def indices(self) -> None:
        """Index computation of the seam."""
        self.tables.indices(self.ids, None)

    def naive(self) -> None:
        """Look each table up and have autograd make a dense gradient."""
        for table in self.apart:
            table.grad = None
        found = naive_indices(self.ids, self.constants)
        rows = [embedding(at, table) for at, table in zip(found, self.apart, strict=True)]
        torch.cat(rows, dim=-1).backward(self.gradient)

    def naive_main_grad(self) -> None:
        """The same, and what Megatron's hook does with it."""
        self.naive()
        parts = self.weight.main_grad.split(self._sizes)
        for table, part in zip(self.apart, parts, strict=True):
            part.add_(table.grad)
            table.grad = None

    def seam_main_grad(self) -> None:
        """The seam under Megatron's data parallelism, which keeps ``main_grad``."""
        self.weight.grad = None
        self.weight.grad_added_to_main_grad = False
        self.tables(self.ids, None).backward(self.gradient)
        self.weight.grad = None

    def seam_grad(self) -> None:
        """The seam where a gradient is there already, as after the first micro-batch."""
        del self.weight.grad_added_to_main_grad
        self.weight.grad = self.weight.main_grad
        self.tables(self.ids, None).backward(self.gradient)
        self.weight.grad = None


def peak(step: str, backend: str | None) -> float:
    """MiB that a first step adds to the most that the process ever held."""
    # What torch loads and sets up once is no part of it.
    getattr(Case(backend, table_rows=100, length=64), step)()
    case = Case(backend)
    case.weight.main_grad.fill_(0)  # its pages are there before they are counted
    before = _most()
    getattr(case, step)()
    return (_most() - before) / 1024


def _most() -> float:
    """The most that this process ever held, KiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def milliseconds(work: Callable[[], None]) -> float:
    """How long one call takes."""
    start = time.perf_counter()
    work()
    return (time.perf_counter() - start) * 1e3


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15, help="steps of each (default: 15)")
    parser.add_argument("--backend", choices=("cpu", "torch"), help="of the seam (default: cpu)")
    asked = parser.parse_args()
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        # Each in a process of its own: a peak never comes down again.
        steps = ("naive", "naive_main_grad", "seam_main_grad")
        memory = {step: pool.apply(peak, (step, asked.backend)) for step in steps}
    case = Case(asked.backend)
    names = ("naive_indices", "indices", "naive", "naive_main_grad", "seam_grad", "seam_main_grad")
    times: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(asked.rounds + 2):
        for name in names:
            case.weight.grad_added_to_main_grad = False
            taken = milliseconds(getattr(case, name))
            if turn >= 2:  # the first ones find caches and pages empty
                times[name].append(taken)
    medians = {name: statistics.median(taken) for name, taken in times.items()}
    print(f"{torch.get_num_threads()} threads, {asked.rounds} rounds")
    print(f"{'':34}  {'ms':>7}  {'ratio':>5}  {'bar':>3}  {'extra MiB':>9}")
    rows = [
        ("indices, naive", "naive_indices", None, None),
        ("indices, seam", "indices", "naive_indices", INDEX_BAR),
        ("step, naive", "naive", None, None),
        ("step, seam, into grad", "seam_grad", "naive", STEP_BAR),
        ("step, naive, into main_grad", "naive_main_grad", None, None),
        ("step, seam, into main_grad", "seam_main_grad", "naive_main_grad", STEP_BAR),
    ]
    missed = memory["seam_main_grad"] > MEMORY_BAR
    for title, name, over, bar in rows:
        ratio = medians[over] / medians[name] if over else None
        missed |= bar is not None and ratio is not None and ratio < bar
        print(
            f"{title:34}  {medians[name]:7.2f}  {f'{ratio:.1f}' if ratio else '-':>5}  "
            f"{f'{bar:.0f}' if bar else '-':>3}  "
            f"{f'{memory[name]:.0f}' if name in memory else '-':>9}"
        )
    print(f"memory bar {MEMORY_BAR:.0f} MiB; {'a bar is missed' if missed else 'every bar is met'}")
    sys.exit(missed)


if __name__ == "__main__":
    main()
