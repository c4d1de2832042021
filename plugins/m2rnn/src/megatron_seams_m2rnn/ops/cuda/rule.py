"""What the ``cuda`` backend takes, and how its kernels are spread over a GPU: the one rule."""

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
_WANTS: Final = {"q": 1, "k": 2, "v": 4, "f": 8, "W": 16}


@attrs.frozen(kw_only=True)
class Machine:
    """What a GPU has.

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
        """What the kernels are compiled for."""
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
    sizes = has.sizes(x)
    if max(sizes.backward_memory(SEGMENTS[-1]), sizes.forward().shared) > has.largest:
        return f"the shared memory of a multiprocessor is too small for K = {x.K}, V = {x.V}"
    if _shares(x) and _capacity(x, has, SEGMENTS[-1]) < x.N:
        return (
            f"heads that share q or k wait for one another, so that all {x.N} must run at a time, "
            f"and this GPU runs {_capacity(x, has, SEGMENTS[-1])}"
        )
    return None


def backward_plan(inputs: Inputs, has: Machine, wanted: frozenset[str]) -> Plan:
    """Spread backward over a GPU: the longest segments with which all heads run at a time.

    Args:
        inputs: The call's.
        has: What the GPU has.
        wanted: Whose gradients are asked for.
    """
    x = inputs
    walks = x.D * x.B
    fitting = [
        segment for segment in SEGMENTS if has.sizes(x).backward_memory(segment) <= has.largest
    ]
    segment = next((s for s in fitting if _capacity(x, has, s) >= walks * x.N), fitting[-1])
    shares = _shares(x)
    at_a_time = _capacity(x, has, segment) // x.N if shares else -(-_ENOUGH // x.N)
    kernel = has.sizes(x).backward(
        segment,
        wants=sum(_WANTS[name] for name in wanted & _WANTS.keys()),
        clips=x.clip is not None,
        shares=shares,
    )
    return Plan(kernel=kernel, segment=segment, slots=max(1, min(walks, at_a_time)))


def _shares(x: Inputs) -> bool:
    return min(x.q.shape[2], x.k.shape[2]) < x.N


def _capacity(x: Inputs, has: Machine, segment: int) -> int:
    """Blocks of backward that run at a time."""
    kernel = has.sizes(x).backward(segment, wants=0, clips=True, shares=_shares(x))
    return kernel.resident * has.multiprocessors
