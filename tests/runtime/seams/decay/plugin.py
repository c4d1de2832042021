"""Its hooks."""

import attrs
from megatron.core.transformer.spec_utils import ModuleSpec

from decay.mixer import DecayMixer
from megatron_seams.hookspecs import LayerContext, hookimpl


@attrs.frozen(kw_only=True)
class Options:
    start: float = 0.0


@hookimpl
def decay_options() -> type:
    return Options


@hookimpl
def decay_layer(context: LayerContext) -> ModuleSpec:
    return ModuleSpec(
        module=DecayMixer, params={"start": context.options.start, "backend": context.backend}
    )
