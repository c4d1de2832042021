"""The kernels of the tables: C++ on a CPU, torch anywhere, with the same numbers."""

from typing import Final, Protocol, cast

import torch
from torch import Tensor

from megatron_seams.runtime.extensions import build_fault
from megatron_seams.runtime.kernels import Kernel, choose_kernel
from megatron_seams_ngram.ops import cpu_kernels, torch_kernels
from megatron_seams_ngram.ops.indices import Constants


class Kernels(Protocol):
    """The functions of a module of kernels; :mod:`.torch_kernels` documents each."""

    def hash_indices(
        self, input_ids: Tensor, starts: Tensor | None, constants: Constants
    ) -> Tensor:
        """Hash token ids to rows."""

    def gather(self, table: Tensor, indices: Tensor, first: int) -> Tensor:
        """Look rows up."""

    def scatter(self, rows: Tensor, indices: Tensor, first: int, table: Tensor) -> None:
        """Add gradients of rows to the table's."""


def choose(backend: str | None, device: torch.device) -> Kernels:
    """Pick the kernels for tensors on ``device``.

    Args:
        backend: ``cpu`` (C++), ``torch``, or None for the device's own: ``cpu`` on a CPU, where
            without a compiler ``torch`` stands in, with a ``SlowBackend`` warning; ``torch``
            elsewhere.
        device: Where tables and token ids are.

    Raises:
        CannotRunHere: ``cpu`` was named and cannot run here, or its build is locked.
    """
    return choose_kernel(
        backend,
        device,
        seam="ngram",
        kernels=_KERNELS,
        preferred=("cpu", "torch") if device.type == "cpu" else ("torch",),
        advice="install what is missing (a C++ compiler and ninja), or choose backend 'torch', "
        "which gives the same numbers, slower on a CPU",
    )


def _cpu_fault(device: torch.device) -> str | None:
    if device.type != "cpu":
        return f"the tables are on {device}"
    return build_fault(cpu_kernels.library)


_KERNELS: Final = {
    "cpu": Kernel(load=lambda: cast(Kernels, cpu_kernels), fault=_cpu_fault),
    "torch": Kernel(load=lambda: cast(Kernels, torch_kernels)),
}
