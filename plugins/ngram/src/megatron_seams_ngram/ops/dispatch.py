"""Who works on the tables: C++ on a CPU, torch anywhere; the same numbers either way."""

from typing import Protocol, cast

import torch
from torch import Tensor

from megatron_seams.errors import CannotRunHere
from megatron_seams.runtime.extensions import build_fault, warn_of_stand_in
from megatron_seams_ngram.ops import cpu_kernels, torch_kernels
from megatron_seams_ngram.ops.indices import Constants


class Kernels(Protocol):
    """What a module of kernels offers; see :mod:`.torch_kernels` for what each one does."""

    def hash_indices(
        self, input_ids: Tensor, starts: Tensor | None, constants: Constants
    ) -> Tensor:
        """Token ids to rows."""

    def gather(self, table: Tensor, indices: Tensor, first: int) -> Tensor:
        """Look rows up."""

    def scatter(self, rows: Tensor, indices: Tensor, first: int, table: Tensor) -> None:
        """Add their gradients to the table's."""


_TORCH = cast(Kernels, torch_kernels)
_CPU = cast(Kernels, cpu_kernels)


def choose(backend: str | None, device: torch.device) -> Kernels:
    """Find the kernels for tensors on ``device``.

    Args:
        backend: ``cpu`` (C++), ``torch``, or None for the device's own: ``cpu`` on a CPU, where
            torch takes its place if no compiler is at hand and a ``SlowBackend`` warning says so,
            once; ``torch`` elsewhere.
        device: Where tables and token ids are.

    Raises:
        CannotRunHere: ``cpu`` was named and cannot run here, or its build is locked.
    """
    if backend == "torch" or (backend is None and device.type != "cpu"):
        return _TORCH
    fault = (
        f"the tables are on {device}" if device.type != "cpu" else build_fault(cpu_kernels.library)
    )
    if fault is None:
        return _CPU
    if backend is None:
        warn_of_stand_in("ngram", fault)
        return _TORCH
    raise CannotRunHere(
        asked="backend 'cpu' of the n-gram tables",
        found=fault,
        next="install what is missing (a C++ compiler and ninja), or choose backend 'torch', which "
        "gives the same numbers, slower on a CPU",
        subject="ngram",
    )
