"""Which implementation of a seam's operator runs on a device; never a slow one without a word.

A seam whose operator has several implementations (C++, Triton, plain torch) describes each as a
:class:`Kernel` and lets :func:`choose_kernel` pick. The rules are then those of every seam: a name
that a recipe gives is taken or refused, never replaced; without a name the device's own runs; where
that one cannot, a slower one stands in, and a ``SlowBackend`` warning says why, once for each
process.

Importing this module imports torch and not Megatron.
"""

import functools
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Generic, TypeVar

import attrs
import torch

from megatron_seams.errors import CannotRunHere
from megatron_seams.runtime.extensions import SlowBackend

K = TypeVar("K")


def _runs_anywhere(device: torch.device) -> None:
    del device


@attrs.frozen(kw_only=True)
class Kernel(Generic[K]):
    """One implementation of an operator.

    Attributes:
        load: Returns it. It is called once the kernel is chosen, so it may import what only this
            kernel needs.
        fault: Says why the kernel cannot run on a device; None where it can. Left out, it runs on
            every device.
    """

    load: Callable[[], K]
    fault: Callable[[torch.device], str | None] = _runs_anywhere


def choose_kernel(
    name: str | None,
    device: torch.device,
    *,
    seam: str,
    kernels: Mapping[str, Kernel[K]],
    preferred: Sequence[str],
    advice: str,
) -> K:
    """Pick the implementation for tensors on ``device``.

    Args:
        name: The one that the recipe's ``backend`` names; None for the device's own.
        device: Where the tensors are.
        seam: The seam's name, for messages.
        kernels: All implementations by their names.
        preferred: The names to try where none is given, the best first. Where another than the
            first is taken, a ``SlowBackend`` warning names both.
        advice: The next step where the kernel cannot run, for the refusal.

    Raises:
        CannotRunHere: The kernel that was named cannot run there; or none of ``preferred`` can, or
            it is empty.
        ValueError: A name that is not among ``kernels``.
    """
    if name is not None and name not in kernels:
        message = f"backend is one of {', '.join(kernels)}; found {name!r}"
        raise ValueError(message)
    faults: dict[str, str] = {}
    for wanted in preferred if name is None else (name,):
        fault = kernels[wanted].fault(device)
        if fault is None:
            for missing, why in faults.items():
                _warn_of_stand_in(seam, missing, wanted, why)
            return kernels[wanted].load()
        faults[wanted] = fault
    best, fault = next(iter(faults.items()), ("for this device", "there is none of its own"))
    raise CannotRunHere(
        asked=f"backend {best!r} of seam {seam!r} for tensors on {device}",
        found=fault,
        next=advice,
        subject=seam,
    )


@functools.cache
def _warn_of_stand_in(seam: str, missing: str, taken: str, fault: str) -> None:
    message = (
        f"seam {seam!r} has no backend {missing!r} here, and the slower {taken!r} stands in: "
        f"{fault}"
    )
    # The caller of the seam's function that chose: past this one, choose_kernel and the seam's own.
    warnings.warn(message, SlowBackend, stacklevel=5)
