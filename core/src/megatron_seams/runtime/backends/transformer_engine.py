"""The Transformer Engine backend: upstream's own hybrid stack, untouched."""

import importlib.util
from typing import TYPE_CHECKING, Any, Final

from megatron.core.extensions.transformer_engine_spec_provider import TESpecProvider

from megatron_seams import hookspecs
from megatron_seams.runtime import compat

if TYPE_CHECKING:
    from megatron.core.transformer.transformer_config import TransformerConfig

#: The packages besides Transformer Engine without which upstream cannot build a family.
_KERNELS: Final = {"mamba": "mamba_ssm", "gdn": "fla"}


class TransformerEngineBackend:
    """The backend for machines with Transformer Engine and a GPU."""

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
        """Fields of Megatron's configuration that the backend decides, over a recipe's."""
        return {"transformer_impl": self.name}

    def submodules(self, config: "TransformerConfig") -> compat.HybridStackSubmodules:
        """Upstream's native layers, the very object."""
        del config
        return compat.hybrid_stack_spec.submodules

    def final_norm(self) -> None:
        """None: upstream's stack builds its own."""
