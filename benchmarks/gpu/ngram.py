"""The n-gram tables on a GPU: ``python benchmarks/gpu/ngram.py [--rounds N]``.

One look-up of 2 x 4096 tokens in sixteen tables of bfloat16 rows whose gradients go into float32
``main_grad``, as under Megatron: forward, and forward and backward. The ways take turns:

- ``triton``: what a GPU gets unasked;
- ``torch``: the seam's torch kernels;
- ``dense``: the tables as one embedding of torch's, whose dense gradient is added to ``main_grad``;
- ``copy``: the floor, a plain copy of as many bytes as forward, and both passes, must move.

Tokens are drawn by Zipf's law, or are one token throughout, whose rows get every gradient. ``ms``
is the device's time from the first kernel's start to the last one's end in a loop, the host's pace
included; ``kernels`` is the kernels' own time. Batches differ from step to step. It checks the
numbers before it times them, and exits with 1 if they are wrong or memory is over its bar.
"""

import argparse
import itertools
import statistics
import sys
from collections.abc import Callable

import attrs
import torch
from one_gpu import looped
from torch import Tensor
from torch.autograd import DeviceType
from torch.nn.functional import embedding
from torch.profiler import ProfilerActivity, profile

from megatron_seams_ngram.ops import torch_kernels
from megatron_seams_ngram.ops.dispatch import choose
from megatron_seams_ngram.ops.indices import Constants
from megatron_seams_ngram.ops.lookup import look_up_ngrams
from megatron_seams_ngram.tables.hash_tables import make_layer_tables

BATCH, LENGTH, VOCAB_SIZE, TABLES = 2, 4096, 129_280, 16
GPU = torch.device("cuda")
#: The most MiB that a step may take beside the rows that it returns.
MEMORY_BAR = 16.0
LOOP = 20


@attrs.frozen
class Case:
    """One size.

    Attributes:
        title: Its name in the table.
        rows: Rows of all tables.
        width: Columns.
        tokens: ``zipf`` or ``one``.
    """

    title: str
    rows: int
    width: int
    tokens: str


CASES = (
    Case("Engram, 1e6 x 64", 1_000_000, 64, "zipf"),
    Case("Engram, 1e7 x 64", 10_000_000, 64, "zipf"),
    Case("NAM56R, 8e6 x 16", 8_000_000, 16, "zipf"),
    Case("1e7 x 64, one token", 10_000_000, 64, "one"),
)


@attrs.define
class Figures:
    """The measurements of one way at one size; times in milliseconds."""

    forward: list[float] = attrs.field(factory=list)
    both: list[float] = attrs.field(factory=list)
    kernels: tuple[float, float] = (0.0, 0.0)
    launches: int = 0
    peak: float = 0.0


class Tables:
    """One size's tables on the GPU, its batches, and the ways to look up."""

    def __init__(self, case: Case) -> None:
        self.made = make_layer_tables(
            orders=(2, 3), heads=8, table_rows=case.rows // TABLES, seed=0, layer=1, layers=(1,)
        )
        constants = Constants.of(self.made, pad_id=VOCAB_SIZE)
        names = ("multipliers", "biases", "hash_of", "primes", "offsets", "pad_id")
        self.constants = Constants(**{name: getattr(constants, name).to(GPU) for name in names})
        table = torch.randn(self.made.rows, case.width, device=GPU, dtype=torch.bfloat16)
        self.weight = torch.nn.Parameter(table)
        self.weight.main_grad = torch.zeros(table.shape, device=GPU)
        self.weight.grad_added_to_main_grad = False
        torch.manual_seed(0)
        chances = 1 / torch.arange(1, VOCAB_SIZE + 1, device=GPU)
        if case.tokens == "one":
            chances = (torch.arange(VOCAB_SIZE, device=GPU) == 7).float()
        drawn = [
            torch.multinomial(chances, BATCH * LENGTH, replacement=True).view(BATCH, LENGTH)
            for _ in range(8)
        ]
        self.drawn = drawn
        self.batches = itertools.cycle(drawn)
        self.gradient = torch.randn(
            BATCH, LENGTH, TABLES, case.width, device=GPU, dtype=torch.bfloat16
        )
        touched = statistics.mean(
            torch_kernels.hash_indices(ids, None, self.constants).unique().numel() for ids in drawn
        )
        rows = self.gradient.nbytes
        # Forward reads and writes the rows. Backward reads their gradients, and reads and writes
        # the rows of main_grad that they belong to. A copy of n bytes moves 2 n.
        both = 2 * rows + rows + 2 * touched * case.width * 4
        self.copies = [
            torch.empty(2, int(moved / 2), dtype=torch.uint8, device=GPU)
            for moved in (2 * rows, both)
        ]

    def seam(self, backend: str, *, back: bool) -> Tensor:
        """The seam's look-up with a backend."""
        self.weight.grad = None
        rows = look_up_ngrams(
            self.weight,
            next(self.batches),
            None,
            self.constants,
            first=0,
            kernels=choose(backend, GPU),
        )
        if back:
            rows.backward(self.gradient)
        return rows

    def dense(self, *, back: bool) -> Tensor:
        """An embedding of torch's, and what Megatron's hook does with its gradient."""
        self.weight.grad = None
        at = torch_kernels.hash_indices(next(self.batches), None, self.constants)
        rows = embedding(at, self.weight)
        if back:
            rows.backward(self.gradient)
            self.weight.main_grad.add_(self.weight.grad)
            self.weight.grad = None
        return rows

    def copy(self, *, back: bool) -> Tensor:
        """As many bytes as must be moved."""
        source, target = self.copies[back]
        return target.copy_(source)

    def ways(self) -> dict[str, Callable[..., Tensor]]:
        """Every way by its name."""
        return {
            "triton": lambda *, back: self.seam("triton", back=back),
            "torch": lambda *, back: self.seam("torch", back=back),
            "dense": self.dense,
            "copy": self.copy,
        }

    def check(self) -> list[str]:
        """Hold Triton to torch, and to itself; what is wrong."""
        ids, total = self.drawn[0], self.weight.main_grad
        kernels = choose("triton", GPU)
        rows, at = kernels.hash_and_gather(
            ids, None, self.constants, self.weight.detach(), 0, sequence_first=False
        )
        faults = []
        if not torch.equal(at, torch_kernels.hash_indices(ids, None, self.constants)):
            faults.append("other indices")
        if not torch.equal(rows, torch_kernels.gather(self.weight.detach(), at, 0)):
            faults.append("other rows")
        sums = []
        for _ in range(2):
            total.zero_()
            kernels.scatter(self.gradient, at, 0, total)
            sums.append(total[at.flatten()])
        if not torch.equal(*sums):
            faults.append("two backward passes differ")
        total.zero_()
        torch_kernels.scatter(self.gradient, at, 0, total)
        error = (total[at.flatten()] - sums[0]).norm() / sums[0].norm()
        if float(error) > 1e-5:
            faults.append(f"gradients are {float(error):.1e} off torch's")
        total.zero_()
        return faults


def kernels_of(work: Callable[[], object]) -> tuple[float, int]:
    """Milliseconds of the kernels of one call, and how many there are."""
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        for _ in range(LOOP):
            work()
        torch.cuda.synchronize()
    # Not `is`: each event has an object of its own.
    found = [one for one in profiled.events() if one.device_type == DeviceType.CUDA]
    return sum(one.self_device_time_total for one in found) / LOOP / 1e3, len(found) // LOOP


def measure(tables: Tables, rounds: int) -> dict[str, Figures]:
    """Warm every way up, measure memory and kernels, then time all in turns."""
    ways = tables.ways()
    figures = {name: Figures() for name in ways}
    for name, way in ways.items():
        for back in (False, True):
            way(back=back)
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        way(back=True)
        figures[name].peak = (torch.cuda.max_memory_allocated() - before) / 2**20
        forward, _ = kernels_of(lambda way=way: way(back=False))
        both, figures[name].launches = kernels_of(lambda way=way: way(back=True))
        figures[name].kernels = (forward, both)
    for _ in range(rounds):
        for name, way in ways.items():
            figures[name].forward.append(looped(lambda way=way: way(back=False), LOOP))
            figures[name].both.append(looped(lambda way=way: way(back=True), LOOP))
    return figures


def main() -> None:
    """Check, measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9, help="loops of each (default: 9)")
    rounds = parser.parse_args().rounds
    lines, faults = [], []
    for case in CASES:
        tables = Tables(case)
        faults += [f"{case.title}: {fault}" for fault in tables.check()]
        figures = measure(tables, rounds)
        rows = tables.gradient.nbytes / 2**20
        if figures["triton"].peak > rows + MEMORY_BAR:
            faults.append(f"{case.title}: {figures['triton'].peak:.0f} MiB at the peak")
        for name, one in figures.items():
            lines.append(
                f"{case.title:20} {name:7} {statistics.median(one.forward):8.3f} "
                f"{one.kernels[0]:8.3f} {statistics.median(one.both):9.3f} {one.kernels[1]:8.3f} "
                f"{one.peak:9.1f} {one.launches:8}"
            )
        del tables
        torch.cuda.empty_cache()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {rounds} rounds")
    print(
        f"{BATCH} x {LENGTH} tokens      way      forward  kernels   fwd+bwd  kernels  "
        "extra MiB launches"
    )
    print("\n".join(lines))
    print("; ".join(faults) or "numbers agree, backward is deterministic, memory is below its bar")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
