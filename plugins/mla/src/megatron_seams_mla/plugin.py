"""The hook of the seam ``mla``."""

from typing import TYPE_CHECKING

from megatron_seams.hookspecs import LayerContext, hookimpl

if TYPE_CHECKING:
    from megatron.core.transformer.spec_utils import ModuleSpec


@hookimpl
def mla_layer(context: LayerContext) -> "ModuleSpec":
    """Build upstream's own layer for multi-latent attention.

    Raises:
        SettingsInvalid: The model's configuration is not one of multi-latent attention.
        Unsupported: It asks for a form of the layer that has other checkpoint keys.
        CannotRunHere: It asks for norms that only Transformer Engine's linears have.
    """
    # Here, so that the hook can be compared with its manifest on machines without Megatron.
    from megatron_seams_mla.spec import layer_spec

    return layer_spec(context)
