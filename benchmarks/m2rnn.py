"""The time and memory of the M²RNN recurrence: ``python benchmarks/m2rnn.py``.

Every backend of the operator that runs on this device, beside a plain torch loop that autograd
differentiates. The time of that loop is linear in the sequence; one that writes into a tensor in
place is quadratic, and would be no fair baseline. All are measured in turns; figures are medians.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from functools import partial

import attrs

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler, which only counts bytes here

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from megatron_seams.errors import CannotRunHere
from megatron_seams_m2rnn.ops.dispatch import choose
from megatron_seams_m2rnn.ops.operator import m2rnn
from megatron_seams_m2rnn.options import BACKENDS

K, V = 64, 16
CLIP = 1.0


@attrs.frozen(kw_only=True)
class Bars:
    """The bars of backend ``cpu``: the linear loop's figure divided by the backend's, at least.

    Attributes:
        forward: For the time of a forward pass.
        both: For the time of a forward and a backward pass.
        memory: For the extra memory.
    """

    forward: float | None = None
    both: float | None = None
    memory: float | None = None


@attrs.frozen(kw_only=True)
class Case:
    """One shape, in float32.

    Attributes:
        batch: Rows, B.
        steps: Steps, S.
        heads: Heads of the state, N.
        shared: One query and one key head serve all, as in the paper's models.
        bars: The bars at this shape.
    """

    batch: int
    steps: int
    heads: int
    shared: bool
    bars: Bars = attrs.field(factory=Bars)

    def __str__(self) -> str:
        """The shape, as a heading."""
        shared = ", one q and one k head" if self.shared else ""
        return f"B{self.batch} S{self.steps} N{self.heads} K{K} V{V}{shared}"

    def inputs(self, device: torch.device) -> list[Tensor]:
        """Draw q, k, v, W and f, which require gradients."""
        generator = torch.Generator().manual_seed(0)
        lead, keys = (self.batch, self.steps), 1 if self.shared else self.heads
        q, k = (torch.randn(*lead, keys, K, generator=generator) / K**0.5 for _ in range(2))
        v = torch.randn(*lead, self.heads, V, generator=generator)
        f = torch.rand(*lead, self.heads, generator=generator)
        W = torch.eye(V).repeat(self.heads, 1, 1)
        return [x.to(device).requires_grad_() for x in (q, k, v, W, f)]


CASES = (
    Case(batch=2, steps=512, heads=8, shared=False, bars=Bars(forward=8, both=9, memory=30)),
    Case(batch=2, steps=2048, heads=8, shared=False),
    Case(batch=1, steps=1024, heads=84, shared=True, bars=Bars(both=5)),
)


def linear_loop(q: Tensor, k: Tensor, v: Tensor, W: Tensor, f: Tensor) -> Tensor:
    """The recurrence in its simplest form: a list of states, stacked; autograd does the rest.

    It clips no gradient, which would make it slower. ``unbind`` and not ``x[:, t]``: the gradient
    of one step of a tensor is as large as the tensor, and would make the loop quadratic.
    """
    h = v.new_zeros(v.shape[0], v.shape[2], q.shape[-1], v.shape[-1])
    states = []
    for k_t, v_t, f_t in zip(k.unbind(1), v.unbind(1), f[..., None, None].unbind(1), strict=True):
        z = torch.tanh(h @ W + k_t.unsqueeze(-1) * v_t.unsqueeze(-2))
        h = f_t * h + (1 - f_t) * z
        states.append(h)
    return (q.unsqueeze(-2) @ torch.stack(states, dim=1)).squeeze(-2)


@attrs.define
class Measured:
    """The figures of one implementation in one case."""

    work: Callable[..., Tensor]
    inputs: list[Tensor]
    once: bool = False
    forward: list[float] = attrs.field(factory=list)
    both: list[float] = attrs.field(factory=list)
    extra: float = 0.0

    def run(self, dy: Tensor | None) -> list[Tensor]:
        """Compute y, and the gradients where ``dy`` is given."""
        if dy is None:
            with torch.no_grad():
                return [self.work(*self.inputs)]
        y = self.work(*self.inputs)
        return [y, *torch.autograd.grad(y, self.inputs, dy)]

    def time(self, dy: Tensor) -> None:
        """One measurement forward, and one forward and backward."""
        for taken, given in ((self.forward, None), (self.both, dy)):
            wait(dy.device)
            start = time.perf_counter()
            self.run(given)
            wait(dy.device)
            taken.append((time.perf_counter() - start) * 1e3)

    def measure_memory(self, dy: Tensor) -> None:
        """The peak of a forward and backward, without the results that it returns: in MiB."""
        peak, results = peak_memory(partial(self.run, dy), dy.device)
        self.extra = (peak - sum(x.nbytes for x in results)) / 2**20


def wait(device: torch.device) -> None:
    """Wait for what an accelerator still has to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_memory(work: Callable[[], list[Tensor]], device: torch.device) -> tuple[int, list[Tensor]]:
    """The peak of torch's memory during ``work``, in bytes, and the result of ``work``."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        results = work()
        return torch.cuda.max_memory_allocated(device) - before, results
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        results = work()
    # Every allocation and release, in order; the library's own scratch is torch's memory too.
    changes = [
        (event.start_ns(), event.nbytes())
        for event in recorded.profiler.kineto_results.events()
        if event.name() == "[memory]"
    ]
    allocated = peak = 0
    for _, change in sorted(changes):
        allocated += change
        peak = max(peak, allocated)
    return peak, results


def ways(case: Case, device: torch.device) -> dict[str, Measured]:
    """The linear loop, and every backend that runs on ``device``."""
    inputs = case.inputs(device)
    found = {"linear loop": Measured(linear_loop, inputs)}
    for name in BACKENDS:
        # The reference takes one head at a time: minutes for the larger shapes.
        if name == "reference" and case is not CASES[0]:
            continue
        try:
            choose(name, device)
        except CannotRunHere as error:
            if case is CASES[0]:
                print(f"{name} does not run here: {error.found}")
            continue
        work = partial(first, backend=name)
        found[name] = Measured(work, inputs, once=name == "reference")
    return found


def first(*inputs: Tensor, backend: str) -> Tensor:
    """The operator's y."""
    return m2rnn(*inputs, clip=CLIP, backend=backend)[0]


def table(case: Case, measured: dict[str, Measured]) -> None:
    """Print a case's rows: figures, and multiples of the linear loop."""
    print(f"\n{case}")
    print(f"{'':12}  {'forward':>20}  {'forward+backward':>20}  {'extra memory':>22}")
    figures = {
        name: (statistics.median(way.forward), statistics.median(way.both), way.extra)
        for name, way in measured.items()
    }
    base = figures["linear loop"]
    for name, (forward, both, extra) in figures.items():
        cells = (
            f"{forward:8.1f} ms {base[0] / forward:6.1f} x",
            f"{both:8.1f} ms {base[1] / both:6.1f} x",
            f"{extra:7.1f} MiB 1/{base[2] / extra:<5.1f}",
        )
        print(f"{name:12}  {cells[0]:>20}  {cells[1]:>20}  {cells[2]:>22}")
    bars = attrs.asdict(case.bars)
    if "cpu" in figures and any(bars.values()):
        found = [b / f for b, f in zip(base, figures["cpu"], strict=True)]
        judged = [
            f"{name} {bar:g} ({'met' if ratio >= bar else 'MISSED'})"
            for (name, bar), ratio in zip(bars.items(), found, strict=True)
            if bar
        ]
        print(f"{'bars of cpu':12}  {', '.join(judged)}")


def main() -> None:
    """Measure every case and print its table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="measurements of each (default: 7)")
    parser.add_argument("--threads", type=int, help="cores that torch may use (default: its own)")
    fast = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", default=fast, help=f"where to run (default here: {fast})")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    print(f"torch {torch.__version__} on {device}, {torch.get_num_threads()} threads")
    for case in CASES:
        measured = ways(case, device)
        dy = torch.randn(case.batch, case.steps, case.heads, V).to(device)
        for way in measured.values():
            way.measure_memory(dy)  # it warms up, too
        # Interleaved, so that a busy moment of the machine falls on all of them alike.
        for number in range(arguments.rounds):
            for way in measured.values():
                if number == 0 or not way.once:
                    way.time(dy)
        table(case, measured)


if __name__ == "__main__":
    main()
