"""The backends of the recurrence, and which of them runs on a device."""

import importlib.util
from collections.abc import Callable, Mapping
from typing import Final

import torch
from torch import Tensor

from megatron_seams.runtime.extensions import build_fault
from megatron_seams.runtime.kernels import Kernel, choose_kernel
from megatron_seams_m2rnn.ops import naive, torch_loop
from megatron_seams_m2rnn.ops.contract import Inputs
from megatron_seams_m2rnn.ops.cpu import recurrence as cpu
from megatron_seams_m2rnn.ops.cpu.library import library
from megatron_seams_m2rnn.ops.cuda import recurrence as cuda
from megatron_seams_m2rnn.ops.cuda import rule

#: From the inputs to y and the last states: see :func:`.cpu.recurrence.recurrence`.
Recurrence = Callable[[Inputs], tuple[Tensor, Tensor]]

#: The type of torch's device -> the backends to try where the recipe names none, best first.
_PREFERRED: Final = {"cpu": ("cpu", "torch"), "cuda": ("cuda", "triton")}


def choose(name: str | None, device: torch.device, inputs: Inputs | None = None) -> Recurrence:
    """Pick the backend for tensors on ``device``.

    Args:
        name: One of :data:`~megatron_seams_m2rnn.options.BACKENDS`; None for the device's own:
            ``cpu`` on a CPU and ``cuda`` on a GPU. A backend that cannot run is stood in
            for, ``cpu`` by ``torch`` and ``cuda`` by ``triton``, with a
            ``SlowBackend`` warning that says why.
        device: Where the inputs are.
        inputs: The call's; left out, the choice is for a call that every backend of the device
            takes.

    Raises:
        CannotRunHere: The backend that was named, or that the device wants, cannot run here.
        ValueError: A name that is not a backend.
    """
    return choose_kernel(
        name,
        device,
        seam="m2rnn",
        kernels=_kernels(inputs),
        preferred=_PREFERRED.get(device.type, ()),
        advice="move the tensors, install what is missing (a C++ compiler and ninja for 'cpu'), or "
        "choose backend 'torch', which is slower and runs anywhere",
    )


def backends(device: torch.device, inputs: Inputs | None = None) -> dict[str, str | None]:
    """Say for each backend why it does not run on ``device``, or not with ``inputs``.

    Returns:
        The reason by the backend's name; None for one that runs.
    """
    return {name: kernel.fault(device) for name, kernel in _kernels(inputs).items()}


def _cpu_fault(device: torch.device) -> str | None:
    return "it computes on a CPU" if device.type != "cpu" else build_fault(library)


def _triton_fault(device: torch.device) -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    # Imported here, since Triton is not installed everywhere.
    from megatron_seams_m2rnn.ops.triton.kernels import INTERPRETED

    if device.type == ("cpu" if INTERPRETED else "cuda"):
        return None
    return (
        "Triton compiles for GPUs; a process with TRITON_INTERPRET=1 in its environment interprets "
        "it, on the CPU and there alone"
    )


def _load_triton() -> Recurrence:
    from megatron_seams_m2rnn.ops.triton import recurrence as triton

    return triton.recurrence


def _kernels(inputs: Inputs | None) -> Mapping[str, Kernel[Recurrence]]:
    def cuda_fault(device: torch.device) -> str | None:
        fault = rule.device_fault(device)
        if fault is None and inputs is not None:
            fault = rule.inputs_fault(inputs, rule.machine(device))
        return fault

    return {
        "reference": Kernel(load=lambda: naive.recurrence),
        "torch": Kernel(load=lambda: torch_loop.recurrence),
        "cpu": Kernel(load=lambda: cpu.recurrence, fault=_cpu_fault),
        "triton": Kernel(load=_load_triton, fault=_triton_fault),
        "cuda": Kernel(load=lambda: cuda.recurrence, fault=cuda_fault),
    }
