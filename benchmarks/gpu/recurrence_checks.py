"""Checks that a backend of the M²RNN recurrence passes on a GPU before its times count.

Every check draws its own inputs. The truth is backend ``torch`` in float64, on the same GPU, from
the inputs as they were rounded. Memory that torch hands out is poisoned with NaN before each run.
"""

import functools
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import attrs
import torch
from torch import Tensor

from megatron_seams_m2rnn.ops.operator import m2rnn

NAMES = ("y", "last", "dq", "dk", "dv", "dW", "df", "dh0")
#: Nq, Nk, Nv, Nw, Nf: all equal, the paper's, and all different.
EQUAL, PAPER, DIFFERENT = (4, 4, 4, 4, 4), (1, 1, 4, 4, 4), (6, 2, 3, 1, 2)
#: Documents of no steps, of one, and of one more and one less than a segment.
PACKED = (0, 1, 1, 33, 64, 97, 299, 300, 300)
#: The largest error, of the norm: the rounding of outputs and of operands.
TOLERANCE = {
    torch.bfloat16: 5e-3,
    torch.float16: 5e-3,
    torch.float32: 1e-5,
    torch.float64: 1e-13,
}


class CheckFailed(Exception):
    """A backend does not compute what it should."""


@attrs.frozen(kw_only=True)
class Inputs:
    """One draw of inputs.

    Attributes:
        layout: Nq, Nk, Nv, Nw and Nf.
        batch: Rows, B; of packed documents, 1.
        steps: Steps, S.
        K: Rows of a state.
        V: Columns of a state.
        dtype: Of q, k, v and W; f and h0 are float32 at least.
        documents: The boundaries of packed documents, or None.
        h0: Whether the state begins with something.
        clip: The bound of the state's gradient, or None.
    """

    layout: tuple[int, ...] = PAPER
    batch: int = 2
    steps: int = 300
    K: int = 64
    V: int = 16
    dtype: torch.dtype = torch.bfloat16
    documents: tuple[int, ...] | None = None
    h0: bool = True
    clip: float | None = 0.5

    def draw(self, seed: int) -> list[Tensor]:
        """q, k, v, W, f and, where there is one, h0."""
        generator = torch.Generator("cuda").manual_seed(seed)
        random = functools.partial(torch.randn, generator=generator, device="cuda")
        Nq, Nk, Nv, Nw, Nf = self.layout
        lead = (self.batch, self.steps) if self.documents is None else (self.steps,)
        q, k = random(*lead, Nq, self.K) / self.K**0.5, random(*lead, Nk, self.K) / self.K**0.25
        # A transition that shrinks, so that the rounding of a state does too.
        v, W = random(*lead, Nv, self.V), random(Nw, self.V, self.V) * 0.6 / self.V**0.5
        wide = torch.promote_types(self.dtype, torch.float32)
        drawn = [
            *(x.to(self.dtype) for x in (q, k, v, W)),
            torch.sigmoid(random(*lead, Nf)).to(wide),
        ]
        if self.h0:
            rows = self.batch if self.documents is None else len(self.documents) - 1
            drawn.append(random(rows, max(self.layout), self.K, self.V).to(wide))
        return drawn

    def run(
        self, backend: str, drawn: list[Tensor], convert: Callable[[Tensor], Tensor] = lambda x: x
    ) -> list[Tensor]:
        """y, the last states and all gradients, for gradients of both that do not change."""
        leaves = [convert(x).detach().clone().requires_grad_() for x in drawn]
        bounds = None
        if self.documents is not None:
            bounds = torch.tensor(self.documents, dtype=torch.int32, device="cuda")
        poison()
        y, last = m2rnn(*leaves, cu_seqlens=bounds, clip=self.clip, backend=backend)
        generator = torch.Generator("cuda").manual_seed(1)
        dy = torch.randn(y.shape, generator=generator, device="cuda").to(drawn[0].dtype)
        dlast = torch.randn(last.shape, generator=generator, device="cuda")
        given = (dy.to(y.dtype), dlast.to(last.dtype))
        return [y.detach(), last.detach(), *torch.autograd.grad((y, last), leaves, given)]


#: What a line of the table says -> the inputs of it, and the backends that take them.
CASES: dict[str, tuple[Inputs, tuple[str, ...]]] = {
    "one q, one k head": (Inputs(), ("cuda", "triton")),
    "equal heads": (Inputs(layout=EQUAL), ("cuda", "triton")),
    "every count differs": (Inputs(layout=DIFFERENT), ("cuda", "triton")),
    "no h0, no clip": (Inputs(h0=False, clip=None), ("cuda", "triton")),
    "float16": (Inputs(dtype=torch.float16), ("cuda", "triton")),
    "packed": (Inputs(batch=1, documents=PACKED), ("cuda", "triton")),
    "132 heads, 5 rows": (
        Inputs(layout=(1, 1, 132, 132, 132), batch=5, steps=70),
        ("cuda", "triton"),
    ),
    "84 heads, 4 rows": (Inputs(layout=(1, 1, 84, 84, 84), batch=4, steps=70), ("cuda", "triton")),
    "one step": (Inputs(steps=1), ("cuda", "triton")),
    "K 128, V 32": (Inputs(K=128, V=32, steps=100), ("cuda", "triton")),
    "K = V = 128": (Inputs(K=128, V=128, steps=70), ("triton",)),
    "float32": (Inputs(dtype=torch.float32, steps=100), ("triton",)),
    "float64": (Inputs(dtype=torch.float64, steps=100), ("triton",)),
}
#: Small enough for compute-sanitizer, which is a hundred times slower.
SMALL: dict[str, Inputs] = {
    "every count differs": Inputs(layout=DIFFERENT, batch=1, steps=45),
    "equal heads": Inputs(layout=EQUAL, steps=33),
    "packed": Inputs(batch=1, steps=70, documents=(0, 1, 1, 40, 70)),
    "84 heads, 4 rows": Inputs(layout=(1, 1, 84, 84, 84), batch=4, steps=40),
    "132 heads, 2 rows": Inputs(layout=(1, 1, 132, 132, 132), batch=2, steps=40),
}


def poison() -> None:
    """Fill the memory that torch will hand out next with NaN, so that what is not written shows."""
    for elements in (1 << 12, 1 << 16, 1 << 20, 1 << 26):
        torch.full((elements,), torch.nan, device="cuda")


def agreement(backends: tuple[str, ...], seed: int) -> Iterator[str]:
    """A line for every case and backend that takes it: the largest errors, two runs bitwise equal.

    Raises:
        CheckFailed: An error above :data:`TOLERANCE`, or two runs that differ.
    """
    for title, (inputs, takes) in CASES.items():
        drawn = inputs.draw(seed)
        truth = inputs.run("torch", drawn, lambda x: x.double())
        for backend in backends:
            if backend not in takes:
                continue
            found, again = (inputs.run(backend, drawn) for _ in range(2))
            errors = [
                ((x.double() - y).norm() / y.norm().clamp(min=1e-30)).item()
                for x, y in zip(found, truth, strict=True)
            ]
            named = dict(zip(NAMES, errors, strict=False))
            name = max(named, key=lambda key: named[key])
            # Written so that NaN fails.
            if not all(error <= TOLERANCE[inputs.dtype] for error in errors):
                raise CheckFailed(f"{backend}, {title}: errors {named}")
            if not all(torch.equal(x, y) for x, y in zip(found, again, strict=True)):
                raise CheckFailed(f"{backend}, {title}: two runs differ")
            largest = f"{named[name]:.1e} of {name}"
            yield f"{backend:8}{title:22}y {named['y']:.1e}, largest {largest}, equal twice"


def host_time(backend: str, documents: tuple[int, ...] | None = None) -> tuple[float, float]:
    """Milliseconds until forward, and backward, have returned behind 50 ms of queued work.

    Raises:
        CheckFailed: The queued work was over before.
    """
    inputs = Inputs(batch=1 if documents else 2, documents=documents, h0=False, clip=1.0)
    leaves = [x.requires_grad_() for x in inputs.draw(0)]
    bounds = None
    if documents is not None:
        bounds = torch.tensor(documents, dtype=torch.int32, device="cuda")

    def step() -> tuple[float, float]:
        times = [time.perf_counter()]
        y, _ = m2rnn(*leaves, cu_seqlens=bounds, clip=1.0, backend=backend)
        times.append(time.perf_counter())
        torch.autograd.grad(y, leaves, dy)
        times.append(time.perf_counter())
        return (times[1] - times[0]) * 1e3, (times[2] - times[1]) * 1e3

    dy = torch.ones_like(m2rnn(*leaves, cu_seqlens=bounds, backend=backend)[0])
    busy = torch.randn(8192, 8192, device="cuda")
    for _ in range(10):
        step()
    times = []
    for _ in range(15):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(6):
            busy @ busy
        end.record()
        times.append(step())
        over = end.query()
        torch.cuda.synchronize()
        if over or begin.elapsed_time(end) < 50:
            raise CheckFailed(f"{backend}: less than 50 ms were queued, or they were over too soon")
    forward, back = zip(*times, strict=True)
    return statistics.median(forward), statistics.median(back)


def captured(backend: str, documents: tuple[int, ...] | None = None) -> None:
    """Capture forward and backward in a CUDA graph and replay it with other inputs.

    Raises:
        CheckFailed: The replay gives other numbers than a call outside the graph.
    """
    inputs = Inputs(batch=1 if documents else 2, documents=documents)
    leaves = [x.requires_grad_() for x in inputs.draw(0)]
    bounds: Any = None
    if documents is not None:
        bounds = torch.tensor(documents, dtype=torch.int32, device="cuda")

    def step() -> list[Tensor]:
        y, last = m2rnn(*leaves, cu_seqlens=bounds, clip=0.5, backend=backend)
        given = (torch.ones_like(y), last.detach())
        return [y.detach(), *torch.autograd.grad((y, last), leaves, given)]

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        made = step()
    for leaf, other in zip(leaves, inputs.draw(5), strict=True):
        leaf.data.copy_(other)
    graph.replay()
    replayed = [x.clone() for x in made]
    if not all(torch.equal(x, y) for x, y in zip(replayed, step(), strict=True)):
        raise CheckFailed(f"{backend}: a replayed graph gives other numbers")
