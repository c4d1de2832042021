"""The shapes that the ``cuda`` backend takes, and how its kernels are spread over a GPU."""

import functools
from typing import Final

import attrs
import torch

from megatron_seams_m2rnn.ops.contract import Inputs
from megatron_seams_m2rnn.ops.cuda import library
from megatron_seams_m2rnn.ops.cuda.kernel import NARROW, SEGMENTS, WEIGHTS, Kernel, Sizes

#: 9.0, Hopper: the first with the instructions that the kernels are made of.
_CAPABILITY: Final = 90
_ROWS: Final = range(16, 129, 16)
_COLUMNS: Final = (16, 32)
#: Blocks that are enough to fill any GPU, where they need not wait for one another.
_ENOUGH: Final = 2048
#: The time of a step by segment, with one, two and three blocks on a multiprocessor, of the
#: shortest: measured on an H100 with K = 64, V = 16. Combinations that do not fit are not listed.
_STEP: Final = {32: (1.0, 2.0, 3.0), 16: (1.09, 1.61, 3.0), 8: (1.31, 1.88, 2.64)}
_WANTS: Final = {"q": 1, "k": 2, "v": 4, "f": 8, "W": 16}


@attrs.frozen(kw_only=True)
class Machine:
    """The resources of a GPU.

    Attributes:
        capability: Its compute capability: 90 for 9.0.
        multiprocessors: How many.
        memory: Bytes of shared memory of each.
        largest: Bytes of it that one block may have.
    """

    capability: int
    multiprocessors: int
    memory: int
    largest: int

    def sizes(self, inputs: Inputs) -> Sizes:
        """The constants the kernels are compiled with."""
        x = inputs
        return Sizes(
            K=x.K,
            V=x.V,
            kind=x.q.dtype,
            weights=x.W.dtype,
            memory=self.memory,
            moves_registers=self.capability == _CAPABILITY,
        )


@attrs.frozen(kw_only=True)
class Plan:
    """How backward runs.

    Attributes:
        kernel: The kernel.
        segment: Its steps of a segment.
        slots: Walks of each head through documents that run at a time, a block each.
    """

    kernel: Kernel
    segment: int
    slots: int


@functools.cache
def machine(device: torch.device) -> Machine:
    """Ask a GPU what it has."""
    found = torch.cuda.get_device_properties(device)
    return Machine(
        capability=10 * found.major + found.minor,
        multiprocessors=found.multi_processor_count,
        memory=found.shared_memory_per_multiprocessor,
        largest=found.shared_memory_per_block_optin,
    )


def device_fault(device: torch.device) -> str | None:
    """Why no call runs on a device; None where some do."""
    if device.type != "cuda":
        return "it computes on a GPU"
    if not torch.cuda.is_available():
        return "torch finds no GPU"
    capability = machine(device).capability
    if capability < _CAPABILITY:
        found = f"{capability // 10}.{capability % 10}"
        return f"it takes GPUs of compute capability 9.0 and later; this one has {found}"
    return library.fault()


def inputs_fault(inputs: Inputs, has: Machine) -> str | None:
    """Why a call does not run on a GPU that runs others; None where it does.

    Args:
        inputs: The call's, checked.
        has: What the GPU has.
    """
    x = inputs
    if x.q.dtype not in NARROW:
        return f"it takes q, k and v of 16 bits; found {x.q.dtype}"
    if x.dtype is not torch.float32 or x.W.dtype not in WEIGHTS:
        return f"it takes f, W and h0 of at most 32 bits; found {x.f.dtype} and {x.W.dtype}"
    if x.K not in _ROWS or x.V not in _COLUMNS:
        return (
            f"it takes K up to {_ROWS[-1]}, a multiple of 16, and V of 16 or 32; found K = {x.K}, "
            f"V = {x.V}"
        )
    return _room_fault(has.sizes(x), has, x.N, shares=_shares(x))


@functools.cache
def _room_fault(sizes: Sizes, has: Machine, heads: int, *, shares: bool) -> str | None:
    """Why a GPU has no room for the blocks that must run at a time; None where it has."""
    if max(sizes.backward_memory(SEGMENTS[-1]), sizes.forward().shared) > has.largest:
        return (
            f"the shared memory of a multiprocessor is too small for K = {sizes.K}, V = {sizes.V}"
        )
    most = _capacity(sizes, has, SEGMENTS[-1], shares=True)
    if shares and most < heads:
        return (
            f"heads that share q or k wait for one another, so that all {heads} must run at a "
            f"time, and this GPU runs {most}"
        )
    return None


def kept_every(inputs: Inputs, has: Machine) -> int:
    """How many steps lie between the states that forward keeps: a segment of backward."""
    x = inputs
    return _spread(has.sizes(x), has, x.D * x.B, x.N, _shares(x))[0]


def backward_plan(inputs: Inputs, has: Machine, wanted: frozenset[str]) -> Plan:
    """Spread backward over a GPU in the way that takes least time.

    Args:
        inputs: The call's.
        has: What the GPU has.
        wanted: Whose gradients are asked for.
    """
    x = inputs
    sizes, shares = has.sizes(x), _shares(x)
    segment, slots = _spread(sizes, has, x.D * x.B, x.N, shares)
    kernel = _backward_kernel(sizes, segment, wanted, clips=x.clip is not None, shares=shares)
    return Plan(kernel=kernel, segment=segment, slots=slots)


# A call asks for a kernel each time: what describes it is made once.
@functools.cache
def forward_kernel(sizes: Sizes) -> Kernel:
    """The kernel of forward."""
    return sizes.forward()


@functools.cache
def _backward_kernel(
    sizes: Sizes, segment: int, wanted: frozenset[str], *, clips: bool, shares: bool
) -> Kernel:
    wants = sum(_WANTS[name] for name in wanted & _WANTS.keys())
    return sizes.backward(segment, wants=wants, clips=clips, shares=shares)


@functools.cache
def _spread(sizes: Sizes, has: Machine, walks: int, heads: int, shares: bool) -> tuple[int, int]:
    """The segment and the slots with which ``walks`` of each head take least time."""
    plans = []
    for segment in SEGMENTS:
        at_a_time = _capacity(sizes, has, segment, shares=shares) // heads
        if sizes.backward_memory(segment) > has.largest or (shares and not at_a_time):
            continue
        at_a_time = max(1, min(walks, at_a_time))
        slots = at_a_time if shares else max(1, min(walks, -(-_ENOUGH // heads)))
        plans.append((_time(walks, at_a_time, heads, has, segment), segment, slots))
    _, segment, slots = min(plans)
    return segment, slots


def _time(walks: int, at_a_time: int, heads: int, has: Machine, segment: int) -> float:
    """The time of all walks, so many heads each and at a time, in steps of the fastest."""
    took = 0.0
    for first in range(0, walks, at_a_time):
        blocks = min(at_a_time, walks - first) * heads
        together = min(3, -(-blocks // has.multiprocessors))
        took += _STEP[segment][together - 1] * max(1.0, blocks / (together * has.multiprocessors))
    return took


def _shares(x: Inputs) -> bool:
    return min(x.q.shape[2], x.k.shape[2]) < x.N


def _capacity(sizes: Sizes, has: Machine, segment: int, *, shares: bool) -> int:
    """Blocks of backward that run at a time."""
    kernel = sizes.backward(segment, wants=0, clips=True, shares=shares)
    return kernel.resident * has.multiprocessors
