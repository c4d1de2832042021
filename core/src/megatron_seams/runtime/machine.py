"""This machine's parts of a model: torch, its devices, the backend, and why not another."""

from typing import Final

import attrs
import torch

from megatron_seams.families import BUILT_IN
from megatron_seams.runtime.backends.backend import choose_backend
from megatron_seams.runtime.backends.local import LocalBackend
from megatron_seams.runtime.backends.transformer_engine import TransformerEngineBackend
from megatron_seams.runtime.extensions import NotBuilt, extensions_folder

_BACKENDS: Final = (TransformerEngineBackend, LocalBackend)


@attrs.frozen(kw_only=True)
class Machine:
    """The parts a model would be built with here.

    Attributes:
        torch: The version of torch.
        devices: The names of the CUDA devices.
        backend: The backend that a model gets.
        not_taken: Each other backend -> why it is not taken.
        cannot: Native family -> why the backend cannot build it here.
        extensions: The folder of compiled C++ of seams, or why there can be none.
        libraries: The number of libraries in it.
    """

    torch: str
    devices: tuple[str, ...]
    backend: str
    not_taken: dict[str, str]
    cannot: dict[str, str]
    extensions: str
    libraries: int


def read_machine() -> Machine:
    """Look at this machine; imports Megatron, and Transformer Engine where it is installed."""
    devices = tuple(torch.cuda.get_device_name(at) for at in range(torch.cuda.device_count()))
    backend = choose_backend()
    why = {
        LocalBackend.name: "Transformer Engine and a device for it are there",
        TransformerEngineBackend.name: "Transformer Engine cannot be imported"
        if devices
        else "there is no CUDA device",
    }
    native = [name for name, family in BUILT_IN.items() if family.constant]
    reasons = {name: backend.why_not(name) for name in native}
    extensions, libraries = _extensions()
    return Machine(
        torch=torch.__version__,
        devices=devices,
        backend=backend.name,
        not_taken={it.name: why[it.name] for it in _BACKENDS if it.name != backend.name},
        cannot={name: reason for name, reason in reasons.items() if reason},
        extensions=extensions,
        libraries=libraries,
    )


def _extensions() -> tuple[str, int]:
    """The folder of compiled C++, or why there can be none, and the number of libraries in it."""
    try:
        folder = extensions_folder()
    except NotBuilt as error:
        return str(error), 0
    return str(folder), sum(1 for _ in folder.glob("*/*.so")) if folder.is_dir() else 0
