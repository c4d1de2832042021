"""The Mamba-3 recurrence on a GPU: ``python benchmarks/gpu/mamba3.py [--rounds N] [--only TEXT]``.

One layer's recurrence at NAM56R's sizes (a state of 128, heads of 64, 8 groups, bfloat16), whole
and as one rank of eight has it, with MIMO of rank 4 and without. The ways take turns:

- ``cuda``: the authors' kernels, which a GPU gets unasked;
- ``torch``: the seam's own, which runs anywhere.

Both are compared first, y and every gradient; it exits with 1 where they differ. Then ``ms`` are
medians by the device's events in a loop, and ``peak MiB`` is what torch allocated at the most in a
forward and backward pass, beside the inputs. MIMO's kernels are compiled when they are first
called, which takes two minutes.
"""

import argparse
import statistics
import sys
from collections.abc import Callable
from typing import Any

import attrs
import torch
from torch import Tensor

from megatron_seams_mamba3.ops.contract import Mimo
from megatron_seams_mamba3.ops.operator import mamba3

N, P, STEPS = 128, 64, 4096
LOOP = 4
#: The most that the two may differ, of a tensor's norm: both round to bfloat16.
WITHIN = 0.03


@attrs.frozen(kw_only=True)
class Case:
    """One size.

    Attributes:
        title: Its name in the table.
        heads: H.
        groups: G.
        ranks: R of MIMO; None without.
    """

    title: str
    heads: int
    groups: int
    ranks: int | None

    def draw(self) -> dict[str, Any]:
        """The arguments of the operator, which require gradients."""
        H, G, R = self.heads, self.groups, self.ranks or 1
        generator = torch.Generator("cuda").manual_seed(1)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, device="cuda").bfloat16()

        dt = torch.nn.functional.softplus(normal(1, STEPS, H).float() - 3)
        made: dict[str, Any] = {
            "x": normal(1, STEPS, H, P),
            "B": normal(1, STEPS, R, G, N),
            "C": normal(1, STEPS, R, G, N),
            "log_decay": -dt * normal(1, STEPS, H).float().abs(),
            "dt": dt,
            "trap": normal(1, STEPS, H),
            "angle": normal(1, STEPS, N // 4),
            "B_bias": normal(H, R, N).float(),
            "C_bias": normal(H, R, N).float(),
            "D": normal(H).float(),
            "z": normal(1, STEPS, H, P),
        }
        if self.ranks is not None:
            made["mimo"] = Mimo(**{name: normal(H, R, P).float() / R for name in "xzo"})
        for leaf in leaves(made):
            leaf.requires_grad_()
        return made


CASES = (
    Case(title="SISO, TP 1", heads=128, groups=8, ranks=None),
    Case(title="SISO, TP 8", heads=16, groups=1, ranks=None),
    Case(title="MIMO, TP 1", heads=128, groups=8, ranks=4),
    Case(title="MIMO, TP 8", heads=16, groups=1, ranks=4),
)


def leaves(made: dict[str, Any]) -> list[Tensor]:
    """The tensors of a call, MIMO's too."""
    mimo = made.get("mimo")
    own = [value for value in made.values() if isinstance(value, Tensor)]
    return own if mimo is None else [*own, mimo.x, mimo.z, mimo.o]


@attrs.define(kw_only=True)
class Way:
    """One backend at one size, and its figures in milliseconds and MiB."""

    backend: str
    made: dict[str, Any]
    dy: Tensor
    forward: list[float] = attrs.field(factory=list)
    both: list[float] = attrs.field(factory=list)
    peak: float = 0.0

    def run(self, *, back: bool) -> list[Tensor]:
        """Y; and every input's gradient."""
        with torch.set_grad_enabled(back):
            y, _ = mamba3(**self.made, keep=False, backend=self.backend)
        if not back:
            return [y]
        return [y.detach(), *torch.autograd.grad(y, leaves(self.made), self.dy)]

    def measure_memory(self) -> None:
        """Warm up, and record the peak."""
        for _ in range(2):
            torch.cuda.synchronize()
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            self.run(back=True)
            self.peak = (torch.cuda.max_memory_allocated() - before) / 2**20
        self.run(back=False)


def timed(work: Callable[[], object]) -> float:
    """Milliseconds of one call in a loop."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(LOOP):
        work()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / LOOP


def apart(one: list[Tensor], other: list[Tensor]) -> float:
    """The largest difference of two lists of tensors, of a tensor's norm."""
    pairs = zip(one, other, strict=True)
    return max(float((a.float() - b.float()).norm() / b.float().norm()) for a, b in pairs)


def measure(case: Case, rounds: int) -> tuple[list[Way], float]:
    """Compare the backends, then time them in turns; their figures, and how far they are apart."""
    made = case.draw()
    dy = torch.randn(made["x"].shape, device="cuda").bfloat16()
    ways = [Way(backend=name, made=made, dy=dy) for name in ("cuda", "torch")]
    found = apart(*(way.run(back=True) for way in ways))
    for way in ways:
        way.measure_memory()
    for _ in range(rounds):
        for way in ways:
            way.forward.append(timed(lambda way=way: way.run(back=False)))
            way.both.append(timed(lambda way=way: way.run(back=True)))
    return ways, found


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="loops of each (default: 5)")
    parser.add_argument("--only", default="", help="sizes with this in their title")
    asked = parser.parse_args()
    lines, faults = [], []
    for case in CASES:
        if asked.only not in case.title:
            continue
        ways, found = measure(case, asked.rounds)
        if found > WITHIN:
            faults.append(f"{case.title}: the backends are {found:.1e} apart")
        for way in ways:
            lines.append(
                f"{case.title:11} {way.backend:6} {statistics.median(way.forward):8.2f} "
                f"{statistics.median(way.both):8.2f} {way.peak:9.0f}"
            )
        torch.cuda.empty_cache()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {asked.rounds} rounds")
    print(f"1 x {STEPS} tokens   way     forward  fwd+bwd  peak MiB")
    print("\n".join(lines))
    print("; ".join(faults) or f"the backends are within {WITHIN:.0%} of each other")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
