"""The Mamba-3 recurrence on a GPU: ``python benchmarks/gpu/mamba3.py [--rounds N] [--only TEXT]``.

One layer's recurrence at NAM56R's sizes (a state of 128, heads of 64, 8 groups, bfloat16), whole
and as one rank of eight has it, with MIMO of rank 4 and without. The ways take turns:

- ``cuda``: the authors' kernels, which a GPU gets unasked;
- ``torch``: the seam's own, which runs anywhere.

First y and every gradient are compared with those of ``torch`` in float32, of the same rounded
inputs: ``off`` is the largest difference of a tensor's norm, of the tensor that is named. It exits
with 1 where one is above its bar. Then ``forward`` and ``fwd+bwd`` are milliseconds, medians by the
device's events in a loop, the host's pace included, and ``peak MiB`` is what torch allocated at the
most in a forward and backward pass, beside the inputs. MIMO's kernels are compiled when they are
first called, which takes two minutes.
"""

import argparse
import statistics
import sys
from typing import Any

import attrs
import torch
from one_gpu import looped
from torch import Tensor

from megatron_seams_mamba3.ops.contract import Mimo
from megatron_seams_mamba3.ops.operator import mamba3

N, P, STEPS = 128, 64, 4096
LOOP = 4
#: The most that a tensor may be off, of its norm: bfloat16's rounding, through 4096 steps.
BAR = 0.1


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
        for leaf in leaves(made).values():
            leaf.requires_grad_()
        return made


CASES = (
    Case(title="SISO, TP 1", heads=128, groups=8, ranks=None),
    Case(title="SISO, TP 8", heads=16, groups=1, ranks=None),
    Case(title="MIMO, TP 1", heads=128, groups=8, ranks=4),
    Case(title="MIMO, TP 8", heads=16, groups=1, ranks=4),
)


def leaves(made: dict[str, Any]) -> dict[str, Tensor]:
    """The tensors of a call, MIMO's too."""
    mimo = made.get("mimo")
    found = {name: value for name, value in made.items() if isinstance(value, Tensor)}
    if mimo is not None:
        found |= {f"mimo.{name}": value for name, value in attrs.asdict(mimo).items()}
    return found


def exact(made: dict[str, Any]) -> dict[str, Any]:
    """The same call in float32."""
    wide = {name: value.detach().float().requires_grad_() for name, value in leaves(made).items()}
    mimo = {name: wide.pop(f"mimo.{name}") for name in "xzo" if f"mimo.{name}" in wide}
    return wide | ({"mimo": Mimo(**mimo)} if mimo else {})


@attrs.define(kw_only=True)
class Way:
    """One backend at one size, and its figures in milliseconds and MiB."""

    backend: str
    made: dict[str, Any]
    dy: Tensor
    forward: list[float] = attrs.field(factory=list)
    both: list[float] = attrs.field(factory=list)
    peak: float = 0.0
    off: tuple[float, str] = (0.0, "y")

    def run(self, *, back: bool) -> dict[str, Tensor]:
        """Y; and every input's gradient."""
        with torch.set_grad_enabled(back):
            y, _ = mamba3(**self.made, keep=False, backend=self.backend)
        if not back:
            return {"y": y}
        named = leaves(self.made)
        found = torch.autograd.grad(y, list(named.values()), self.dy.to(y))
        return {"y": y.detach()} | {f"d{n}": x for n, x in zip(named, found, strict=True)}

    def measure_memory(self) -> None:
        """Warm up, and record the peak."""
        for _ in range(2):
            torch.cuda.synchronize()
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            self.run(back=True)
            self.peak = (torch.cuda.max_memory_allocated() - before) / 2**20
        self.run(back=False)


def apart(found: dict[str, Tensor], truth: dict[str, Tensor]) -> tuple[float, str]:
    """The largest difference of two tensors, of the second's norm, and which they are."""
    return max(
        (float((found[name].float() - wanted).norm() / wanted.norm()), name)
        for name, wanted in truth.items()
    )


def measure(case: Case, rounds: int) -> list[Way]:
    """Compare the backends with float32, then time them in turns."""
    made = case.draw()
    dy = torch.randn(made["x"].shape, device="cuda").bfloat16()
    truth = Way(backend="torch", made=exact(made), dy=dy).run(back=True)
    ways = [Way(backend=name, made=made, dy=dy) for name in ("cuda", "torch")]
    for way in ways:
        way.off = apart(way.run(back=True), truth)
    del truth
    for way in ways:
        way.measure_memory()
    for _ in range(rounds):
        for way in ways:
            way.forward.append(looped(lambda way=way: way.run(back=False), LOOP))
            way.both.append(looped(lambda way=way: way.run(back=True), LOOP))
    return ways


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
        for way in measure(case, asked.rounds):
            error, name = way.off
            if error > BAR:
                faults.append(f"{case.title}, {way.backend}: {name} is {error:.1e} off")
            lines.append(
                f"{case.title:11} {way.backend:6} {statistics.median(way.forward):8.2f} "
                f"{statistics.median(way.both):8.2f} {way.peak:9.0f}  {error:.1e} {name}"
            )
        torch.cuda.empty_cache()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {asked.rounds} rounds")
    print(f"1 x {STEPS} tokens   way     forward  fwd+bwd  peak MiB  off")
    print("\n".join(lines))
    print("; ".join(faults) or f"every tensor is within {BAR:.0%} of float32's")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
