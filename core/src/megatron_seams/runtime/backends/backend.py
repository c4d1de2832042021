"""A backend: where a model's linears, norms and native layers come from on this machine."""

from typing import TYPE_CHECKING, Any, Protocol

import torch
from megatron.core.extensions.transformer_engine import HAVE_TE

from megatron_seams import hookspecs
from megatron_seams.runtime import compat
from megatron_seams.runtime.backends.local import LocalBackend
from megatron_seams.runtime.backends.transformer_engine import TransformerEngineBackend

if TYPE_CHECKING:
    from megatron.core.transformer.transformer_config import TransformerConfig


class ModelBackend(Protocol):
    """The interface of a backend for the builder of a model."""

    @property
    def name(self) -> str:
        """The value of upstream's ``transformer_impl``: ``transformer_engine`` or ``local``."""

    @property
    def provider(self) -> hookspecs.Backend:
        """Where seams take their linears and norms from."""

    def why_not(self, family: str) -> str | None:
        """Why native layers of ``family`` cannot be built here; None if they can."""

    def settings(self) -> dict[str, Any]:
        """Fields of Megatron's configuration that the backend decides, over a recipe's."""

    def submodules(self, config: "TransformerConfig") -> compat.HybridStackSubmodules:
        """The native layers, for a model with ``config``."""

    def final_norm(self) -> Any:
        """The norm after the last layer; None where upstream builds its own."""


def choose_backend() -> ModelBackend:
    """Transformer Engine where it is installed and there is a device for it, else the local one."""
    if HAVE_TE and torch.cuda.is_available():
        return TransformerEngineBackend()
    return LocalBackend()
