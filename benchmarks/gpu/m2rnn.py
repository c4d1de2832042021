"""The M²RNN recurrence on a GPU: ``python benchmarks/gpu/m2rnn.py``.

It checks before it times (``recurrence_checks.py``), then measures every shape of the table in
turns: backend ``cuda``, backend ``triton``, causal attention of the same width, and a peer's
kernels where ``--peer`` names a folder that holds them. Times are medians by device events over
rotating inputs. The table comes last, with the card's name.

``--sanitize`` instead runs ``cuda`` on small shapes under compute-sanitizer's memcheck and
racecheck.
"""

import argparse
import functools
import importlib
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import Tensor
from torch.autograd import DeviceType
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile

from megatron_seams_m2rnn.ops.cuda import library
from megatron_seams_m2rnn.ops.dispatch import backends
from megatron_seams_m2rnn.ops.operator import m2rnn

sys.path.insert(0, str(Path(__file__).parent))

import mixer_step
import recurrence_checks as checks

K, V, CLIP = 64, 16, 1.0
#: Nanoseconds of a step of the serial chain alone, inputs in registers, a warp for 16 rows,
#: measured on an H100: forward, and forward twice (once more in backward) with the way back; with
#: one block on a multiprocessor, and with several.
CHAIN = {False: (67, 2 * 67 + 46), True: (92, 2 * 92 + 72)}
#: Behind 50 ms of queued work the host has returned from forward, and from backward, after so many
#: milliseconds.
HOST_BAR = 1.0


@attrs.frozen(kw_only=True)
class Case:
    """One shape, in bfloat16.

    Attributes:
        batch: Rows, B.
        steps: Steps, S.
        heads: Heads of the state, N.
        shared: One q and one k head serve all, as in the paper's models.
        bars: The most milliseconds forward, and forward and backward; and MiB at the peak.
    """

    batch: int
    steps: int
    heads: int
    shared: bool = True
    bars: tuple[float, float, float]

    def __str__(self) -> str:
        """The shape, as the table names it."""
        return f"B{self.batch} S{self.steps} N{self.heads}"

    def draw(self, seed: int) -> list[Tensor]:
        """q, k, v, W and f as a model at its beginning has them, which require gradients."""
        generator = torch.Generator("cuda").manual_seed(seed)
        random = functools.partial(torch.randn, generator=generator, device="cuda")
        lead, keys = (self.batch, self.steps), 1 if self.shared else self.heads
        q, k = (random(*lead, keys, K) / K**0.5 for _ in range(2))
        v, W = random(*lead, self.heads, V), torch.eye(V, device="cuda").repeat(self.heads, 1, 1)
        f = torch.rand(*lead, self.heads, generator=generator, device="cuda")
        return [x.requires_grad_() for x in (*(x.bfloat16() for x in (q, k, v, W)), f)]

    def floor(self) -> tuple[float, float]:
        """The chain's milliseconds forward, and forward and backward."""
        several = (
            self.batch * self.heads > torch.cuda.get_device_properties(0).multi_processor_count
        )
        forward, both = CHAIN[several]
        return self.steps * forward * 1e-6, self.steps * both * 1e-6


CASES = (
    Case(batch=2, steps=4096, heads=8, shared=False, bars=(0.9, 3.5, 39)),
    Case(batch=2, steps=4096, heads=132, bars=(1.0, 4.0, 389)),
    Case(batch=4, steps=4096, heads=84, bars=(1.2, 5.0, 497)),
    Case(batch=1, steps=32768, heads=84, bars=(6.4, 28.0, 581)),
)


@attrs.define(kw_only=True)
class Way:
    """One implementation at one shape, and its figures.

    Attributes:
        work: From inputs to y.
        sets: Inputs, in turns.
        dy: The gradient of y.
        forward: Milliseconds of each forward pass.
        both: Milliseconds of each forward and backward pass.
        peak: MiB at the peak of a forward and backward pass, what it returns included.
        launches: Kernels of a forward and backward pass.
    """

    work: Callable[..., Tensor]
    sets: list[list[Tensor]]
    dy: Tensor
    forward: list[float] = attrs.field(factory=list)
    both: list[float] = attrs.field(factory=list)
    peak: float = 0.0
    launches: int = 0

    def run(self, inputs: list[Tensor], *, back: bool) -> Any:
        """Forward, or forward and backward."""
        if not back:
            with torch.no_grad():
                return self.work(*inputs)
        return torch.autograd.grad(self.work(*inputs), inputs, self.dy)

    def prepare(self) -> None:
        """Warm up, measure the peak and count launches."""
        for back in (False, True):
            self.run(self.sets[0], back=back)
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        self.run(self.sets[0], back=True)
        self.peak = (torch.cuda.max_memory_allocated() - before) / 2**20
        with profile(activities=[ProfilerActivity.CUDA]) as recorded:
            self.run(self.sets[0], back=True)
            torch.cuda.synchronize()
        self.launches = sum(
            event.device_type == DeviceType.CUDA and not event.name.startswith("Mem")
            for event in recorded.events()
        )

    def time(self, turn: int) -> None:
        """One measurement forward, and one forward and backward."""
        inputs = self.sets[turn % len(self.sets)]
        for taken, back in ((self.forward, False), (self.both, True)):
            taken.append(mixer_step.timed(functools.partial(self.run, inputs, back=back)))


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention of torch."""
    return functional.scaled_dot_product_attention(q, k, v, is_causal=True)


def ways(case: Case, rounds: int, peer: Callable[..., Any] | None) -> dict[str, Way]:
    """The measurements at one shape."""
    sets = [case.draw(seed) for seed in range(min(3, rounds))]
    dy = torch.randn(case.batch, case.steps, case.heads, V, device="cuda").bfloat16()
    found = {
        name: Way(work=functools.partial(ours, backend=name), sets=sets, dy=dy)
        for name in ("cuda", "triton")
    }
    # The same width, in heads of 64.
    shape = (case.batch, case.heads * V // 64, case.steps, 64)
    drawn = [torch.randn(3, *shape, device="cuda").bfloat16() for _ in sets]
    rows = [[x.clone().requires_grad_() for x in three] for three in drawn]
    found["attention"] = Way(work=attention, sets=rows, dy=torch.randn_like(rows[0][0]))
    if peer is not None:
        found["peer"] = Way(work=functools.partial(theirs, peer), sets=sets, dy=dy)
    return found


def ours(*inputs: Tensor, backend: str) -> Tensor:
    """The operator's y."""
    return m2rnn(*inputs, clip=CLIP, backend=backend)[0]


def theirs(
    peer: Callable[..., Any], q: Tensor, k: Tensor, v: Tensor, W: Tensor, f: Tensor
) -> Tensor:
    """A peer's y; its gate has the dtype of q."""
    y: Tensor = peer(q, k, v, W, f.to(q.dtype), None, CLIP)[0]
    return y


def find_peer(folder: str | None, name: str) -> Callable[..., Any] | None:
    """Import ``module:function`` from a folder."""
    if folder is None:
        return None
    sys.path.insert(0, folder)
    module, _, function = name.partition(":")
    found: Callable[..., Any] = getattr(importlib.import_module(module), function)
    return found


def measure(case: Case, rounds: int, peer: Callable[..., Any] | None) -> tuple[list[str], bool]:
    """A shape's lines of the table, and whether ``cuda`` meets all its bars."""
    measured = ways(case, rounds, peer)
    for way in measured.values():
        way.prepare()
    # Interleaved, so that a busy moment of the card falls on all of them alike.
    for turn in range(rounds):
        for way in measured.values():
            way.time(turn)
    floor = case.floor()
    lines, met = [], True
    for name, way in measured.items():
        forward, both = statistics.median(way.forward), statistics.median(way.both)
        line = f"{case!s:16}{name:10}{forward:9.3f}{both:10.3f}{way.peak:9.0f}{way.launches:10d}"
        if name == "cuda":
            holds = [x <= bar for x, bar in zip((forward, both, way.peak), case.bars, strict=True)]
            met = all(holds)
            verdict = "met" if met else f"MISSED {case.bars}"
            line += f"  x{forward / floor[0]:.1f} x{both / floor[1]:.1f}  {verdict}"
        lines.append(line)
    return lines, met


def sanitize(checked: bool) -> None:
    """Run ``cuda`` on small shapes, under a tool that watches this process.

    Args:
        checked: Compile the kernels so that whoever arrives at a barrier waits there: racecheck
            does not know of a barrier at which some go on.
    """
    if checked:
        launch = library.launch

        def waiting(kernel: Any, *given: Any, **named: Any) -> None:
            options = (*kernel.options, "-DM2RNN_CHECKED")
            launch(attrs.evolve(kernel, options=options), *given, **named)

        library.launch = waiting
    for title, inputs in checks.SMALL.items():
        inputs.run("cuda", inputs.draw(0))
        torch.cuda.synchronize()
        print(f"ran {title}", flush=True)


def under_sanitizer() -> int:
    """Run :func:`sanitize` under memcheck and racecheck; how many of them found something."""
    tool = shutil.which("compute-sanitizer") or shutil.which(
        "compute-sanitizer", path="/usr/local/cuda/bin"
    )
    if tool is None:
        print("compute-sanitizer is not on the path; it comes with the CUDA toolkit")
        return 1
    failed = 0
    for name, mode in (("memcheck", "plain"), ("racecheck", "waiting")):
        # cuda-bindings asks the driver for functions that older drivers do not have.
        options = ["--report-api-errors", "no"] if name == "memcheck" else []
        command = [tool, "--tool", name, *options, "--error-exitcode", "9"]
        command += [sys.executable, __file__, "--sanitized", mode]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        summary = [x for x in done.stdout.splitlines() if "SUMMARY" in x]
        print(f"{name}: exit {done.returncode}, {' '.join(summary) or done.stdout[-2000:]}")
        failed += done.returncode != 0
    return failed


def main() -> int:
    """Check, measure and print; the exit code is 1 where a check fails or a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=11, help="measurements of each (default: 11)")
    parser.add_argument(
        "--seed", type=int, help="of the checks' inputs (default: another each time)"
    )
    parser.add_argument("--peer", metavar="FOLDER", help="a folder with a peer's package")
    parser.add_argument("--peer-function", default="xma.layers.m2rnn:m2rnn", metavar="MODULE:NAME")
    parser.add_argument("--no-layer", action="store_true", help="leave the mixer out")
    parser.add_argument("--sanitize", action="store_true", help="run compute-sanitizer instead")
    parser.add_argument("--sanitized", choices=("plain", "waiting"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("torch finds no GPU: this benchmark measures one (benchmarks/m2rnn.py runs on a CPU)")
        return 2
    if fault := backends(torch.device("cuda", 0))["cuda"]:
        print(f"backend 'cuda' does not run on {torch.cuda.get_device_name()}: {fault}")
        return 2
    if arguments.sanitized:
        sanitize(checked=arguments.sanitized == "waiting")
        return 0
    if arguments.sanitize:
        return int(under_sanitizer() > 0)
    seed = arguments.seed if arguments.seed is not None else torch.seed() % 2**31
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, seed {seed}", flush=True)
    try:
        for line in checks.agreement(("cuda", "triton"), seed):
            print(line, flush=True)
        table, met = [], True
        for backend in ("cuda", "triton"):
            for documents in (None, checks.PACKED):
                checks.captured(backend, documents)
            took = [checks.host_time(backend, documents) for documents in (None, checks.PACKED)]
            table.append(
                f"{backend}: a graph of forward and backward replays with other inputs; behind "
                f"50 ms of work the host is back from each in {took[0][0]:.2f} and "
                f"{took[0][1]:.2f} ms, packed {took[1][0]:.2f} and {took[1][1]:.2f} ms"
            )
            if backend == "cuda" and max(*took[0], *took[1]) > HOST_BAR:
                met = False
                table[-1] += f": MISSED {HOST_BAR}"
    except checks.CheckFailed as fault:
        print(f"FAILED {fault}")
        return 1
    peer = find_peer(arguments.peer, arguments.peer_function)
    heading = (
        f"{'':26}{'forward':>9}{'fwd+bwd':>10}{'MiB':>9}{'launches':>10}  times the floor, bars"
    )
    table.append(heading)
    for case in CASES:
        lines, so = measure(case, arguments.rounds, peer)
        print(f"measured {case}", flush=True)
        table += lines
        met &= so
        torch.cuda.empty_cache()
    title = f"\n{torch.cuda.get_device_name()}, bfloat16, clip {CLIP:g}, medians in ms"
    if not arguments.no_layer:
        print("\n".join((title, *table)), flush=True)  # of what is there, should the layer fail
        table += mixer_step.lines(arguments.rounds)
    print("\n".join((title, *table)))
    return int(not met)


if __name__ == "__main__":
    sys.exit(main())
