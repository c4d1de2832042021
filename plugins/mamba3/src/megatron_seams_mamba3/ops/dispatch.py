"""The backends of the recurrence, and which of them runs on a device."""

from collections.abc import Callable, Mapping
from typing import Final

import torch
from torch import Tensor

from megatron_seams.runtime.kernels import Kernel, choose_kernel
from megatron_seams_mamba3.ops import authors, chunked, naive
from megatron_seams_mamba3.ops.contract import Inputs, State

#: From the inputs to y and the last states: see :func:`.operator.mamba3`.
Recurrence = Callable[[Inputs], tuple[Tensor, State | None]]

#: The type of torch's device -> the backends to try where the recipe names none, best first.
_PREFERRED: Final = {"cuda": ("cuda", "torch")}


def choose(name: str | None, device: torch.device, inputs: Inputs | None = None) -> Recurrence:
    """Pick the backend for tensors on ``device``.

    Args:
        name: One of :data:`~megatron_seams_mamba3.options.BACKENDS`; None for the device's own:
            ``cuda`` on a GPU, for which ``torch`` stands in with a ``SlowBackend`` warning that
            says why, and ``torch`` everywhere else.
        device: Where the inputs are.
        inputs: The call's; left out, the choice is for a call that every backend of the device
            takes.

    Raises:
        CannotRunHere: The backend that was named cannot run here, or not on these inputs.
        ValueError: A name that is not a backend.
    """
    return choose_kernel(
        name,
        device,
        seam="mamba3",
        kernels=_kernels(inputs),
        preferred=_PREFERRED.get(device.type, ("torch",)),
        advice="move the tensors to a GPU in bfloat16, install mamba-ssm 2.3.2 or later (and for "
        "MIMO tilelang), or choose backend 'torch', which is slower and runs anywhere",
    )


def _kernels(inputs: Inputs | None) -> Mapping[str, Kernel[Recurrence]]:
    def fault(device: torch.device) -> str | None:
        found = authors.device_fault(device)
        if found is None and inputs is not None:
            found = authors.inputs_fault(inputs)
        return found

    return {
        "reference": Kernel(load=lambda: naive.recurrence),
        "torch": Kernel(load=lambda: chunked.recurrence),
        "cuda": Kernel(load=lambda: authors.recurrence, fault=fault),
    }
