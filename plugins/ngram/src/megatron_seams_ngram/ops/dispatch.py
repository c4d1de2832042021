"""The kernels of the tables: C++ on a CPU, Triton on a GPU, torch anywhere; the same numbers."""

import functools
import importlib.util
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

    def hash_and_gather(
        self,
        input_ids: Tensor,
        starts: Tensor | None,
        constants: Constants,
        table: Tensor,
        first: int,
        *,
        sequence_first: bool,
    ) -> tuple[Tensor, Tensor]:
        """Hash token ids to rows and look these up: the rows, and where they lie."""

    def gather(self, table: Tensor, indices: Tensor, first: int) -> Tensor:
        """Look rows up."""

    def scatter(self, rows: Tensor, indices: Tensor, first: int, table: Tensor) -> None:
        """Add gradients of rows to the table's."""


class HostKernels(Kernels, Protocol):
    """The functions of a module of kernels that works on the host."""

    def put(self, values: Tensor, indices: Tensor, table: Tensor) -> None:
        """Write rows."""


def choose(backend: str | None, device: torch.device) -> Kernels:
    """Pick the kernels for tensors on ``device``.

    Args:
        backend: ``cpu`` (C++), ``triton``, ``torch``, or None for the device's own: ``cpu`` on a
            CPU and ``triton`` on a GPU. Where that one cannot run, ``torch`` stands in, with a
            ``SlowBackend`` warning that says why. On any other device it is ``torch``.
        device: Where tables and token ids are.

    Raises:
        CannotRunHere: The backend that was named cannot run here, or the C++'s build is locked.
    """
    return choose_kernel(
        backend,
        device,
        seam="ngram",
        kernels=_KERNELS,
        preferred=_PREFERRED.get(device.type, ("torch",)),
        advice="install what is missing (a C++ compiler and ninja for 'cpu'), or choose backend "
        "'torch', which gives the same numbers, slower",
    )


def _cpu_fault(device: torch.device) -> str | None:
    if device.type != "cpu":
        return f"the tables are on {device}"
    return build_fault(cpu_kernels.library)


def _triton_fault(device: torch.device) -> str | None:
    if not _has_triton():
        return "the package triton is not installed"
    # Imported here, since Triton is not installed everywhere.
    from megatron_seams_ngram.ops.triton_programs import INTERPRETED

    if device.type == ("cpu" if INTERPRETED else "cuda"):
        return None
    return (
        "Triton compiles for GPUs; a process with TRITON_INTERPRET=1 in its environment interprets "
        "it, on the CPU and there alone"
    )


@functools.cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def _load_triton() -> Kernels:
    from megatron_seams_ngram.ops import triton_kernels

    return cast(Kernels, triton_kernels)


#: The type of torch's device -> the backends to try where the recipe names none, best first.
_PREFERRED: Final = {"cpu": ("cpu", "torch"), "cuda": ("triton", "torch")}
_KERNELS: Final = {
    "cpu": Kernel(load=lambda: cast(Kernels, cpu_kernels), fault=_cpu_fault),
    "triton": Kernel(load=_load_triton, fault=_triton_fault),
    "torch": Kernel(load=lambda: cast(Kernels, torch_kernels)),
}
