"""Where a model's linears, norms and native layers come from on this machine."""

import importlib.util
from typing import TYPE_CHECKING, Any, Final, Protocol

import torch
from megatron.core.extensions.transformer_engine import HAVE_TE
from megatron.core.extensions.transformer_engine_spec_provider import TESpecProvider

from megatron_seams import hookspecs
from megatron_seams.runtime import compat
from megatron_seams.runtime.backends.local import LocalBackend

if TYPE_CHECKING:
    from megatron.core.transformer.transformer_config import TransformerConfig


class ModelBackend(Protocol):
    """What the builder asks of a backend.

    Attributes:
        name: Upstream's word for it, ``transformer_engine`` or ``local``.
        provider: What seams take their linears and norms from.
    """

    @property
    def name(self) -> str:
        """Upstream's word for it."""

    @property
    def provider(self) -> hookspecs.Backend:
        """What seams take their linears and norms from."""

    def why_not(self, family: str) -> str | None:
        """Why native layers of ``family`` cannot be built here; None if they can."""

    def settings(self) -> dict[str, Any]:
        """Fields of the configuration that the backend decides."""

    def submodules(self, config: "TransformerConfig") -> compat.HybridStackSubmodules:
        """The native layers."""

    def final_norm(self) -> Any:
        """The norm after the last layer; None where upstream builds its own."""


#: The packages besides Transformer Engine without which upstream cannot build a family.
_KERNELS: Final = {"mamba": "mamba_ssm", "gdn": "fla"}


class TransformerEngineBackend:
    """Upstream's own stack, untouched."""

    name: Final = "transformer_engine"

    def __init__(self) -> None:
        self.provider: hookspecs.Backend = TESpecProvider()

    def why_not(self, family: str) -> str | None:
        """Why native layers of ``family`` cannot be built here; None if they can."""
        package = _KERNELS.get(family)
        if package is None or importlib.util.find_spec(package) is not None:
            return None
        return f"upstream's layer needs the package {package}, which is not installed"

    def settings(self) -> dict[str, Any]:
        """Fields of the configuration that the backend decides."""
        return {"transformer_impl": self.name}

    def submodules(self, config: "TransformerConfig") -> compat.HybridStackSubmodules:
        """Upstream's own, the very object."""
        del config
        return compat.hybrid_stack_spec.submodules

    def final_norm(self) -> None:
        """Upstream's stack builds its own."""


def choose_backend() -> ModelBackend:
    """Transformer Engine where it is installed and there is a device for it, else the local one."""
    if HAVE_TE and torch.cuda.is_available():
        return TransformerEngineBackend()
    return LocalBackend()
