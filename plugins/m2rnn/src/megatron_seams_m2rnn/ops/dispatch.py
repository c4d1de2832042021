"""Which implementation of the recurrence runs: one signature, and never a silent slow path."""

import importlib.util
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import torch

from megatron_seams.errors import CannotRunHere
from megatron_seams.runtime.extensions import build_fault, warn_of_stand_in
from megatron_seams_m2rnn.ops import naive as reference
from megatron_seams_m2rnn.ops import torch_loop
from megatron_seams_m2rnn.ops.cpu import recurrence as cpu
from megatron_seams_m2rnn.ops.cpu.library import library
from megatron_seams_m2rnn.options import BACKENDS

if TYPE_CHECKING:
    from torch import Tensor

#: ``recurrence(q, k, v, f, W, h0, spans, clip, every)``, see :func:`cpu.recurrence`.
Recurrence = Callable[..., "tuple[Tensor, Tensor]"]

#: What runs where nobody chose, by the type of torch's device.
_BY_DEVICE: Final = {"cpu": "cpu", "cuda": "triton"}


def choose(name: str | None, device: torch.device) -> Recurrence:
    """Find the backend for tensors on ``device``.

    Args:
        name: One of :data:`BACKENDS`, or None for the device's own: ``cpu`` on a CPU, ``triton`` on
            a GPU. Where no C++ compiler is at hand, ``torch`` takes the place of ``cpu`` and a
            ``SlowBackend`` warning says so, once for each process.
        device: Where the inputs are.

    Raises:
        CannotRunHere: The backend that was named, or that the device wants, cannot run here.
        ValueError: A name that there is not.
    """
    if name is not None and name not in BACKENDS:
        message = f"backend is one of {', '.join(BACKENDS)}; found {name!r}"
        raise ValueError(message)
    wanted = name or _BY_DEVICE.get(device.type)
    if wanted == "reference":
        return reference.recurrence
    if wanted == "torch":
        return torch_loop.recurrence
    if wanted == "cpu" and device.type == "cpu":
        fault = build_fault(library)
        if fault is None:
            return cpu.recurrence
        if name is None:
            warn_of_stand_in("m2rnn", fault)
            return torch_loop.recurrence
        raise _cannot(fault, device, wanted)
    if wanted == "triton":
        return _triton(device)
    raise _cannot(
        "no backend but 'torch' and 'reference' runs there", device, wanted or "for this device"
    )


def _triton(device: torch.device) -> Recurrence:
    """Import the kernels only where they are wanted: Triton need not be installed elsewhere."""
    if importlib.util.find_spec("triton") is None:
        raise _cannot("the package triton is not installed", device, "triton")
    from megatron_seams_m2rnn.ops.triton import kernels as triton_kernels
    from megatron_seams_m2rnn.ops.triton import recurrence as triton_backend

    if device.type != ("cpu" if triton_kernels.INTERPRETED else "cuda"):
        raise _cannot(
            "Triton compiles for GPUs; a process with TRITON_INTERPRET=1 in its environment "
            "interprets it, on the CPU and there alone",
            device,
            "triton",
        )
    return triton_backend.recurrence


def _cannot(found: str, device: torch.device, wanted: str) -> CannotRunHere:
    return CannotRunHere(
        asked=f"backend {wanted!r} of seam 'm2rnn' for tensors on {device}",
        found=found,
        next="move the tensors, install what is missing (a C++ compiler and ninja for 'cpu'), or "
        "choose backend 'torch', which is slower and runs anywhere",
        subject="m2rnn",
    )
