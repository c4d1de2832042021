"""The seam's hooks. Imported only when a model with this seam is built."""

from megatron.core.transformer.spec_utils import ModuleSpec

from megatron_seams.errors import OptionsInvalid
from megatron_seams.hookspecs import LayerContext, hookimpl
from megatron_seams.runtime.mixers import Projections
from megatron_seams_m2rnn.layer.mixer import M2RNNMixer
from megatron_seams_m2rnn.options import Options


@hookimpl
def recurrent_options() -> type[Options]:
    """Name the class of ``[seams.m2rnn]``."""
    return Options


@hookimpl
def recurrent_layer(context: LayerContext) -> ModuleSpec:
    """Build the mixer of upstream's ``MambaLayer``.

    Raises:
        OptionsInvalid: Head counts that do not fit the model's width, or its ranks.
    """
    options: Options = context.options
    groups = context.pg_collection
    try:
        options.layout(context.config.hidden_size, tp=groups.tp.size(), cp=groups.cp.size())
    except ValueError as error:
        raise OptionsInvalid(
            asked=f"the heads of seam 'm2rnn' at hidden size {context.config.hidden_size}, over "
            f"tensor-parallel {groups.tp.size()} and context-parallel {groups.cp.size()}",
            found=str(error),
            next="set heads in the recipe, counts that divide it, or another parallel size",
            subject="m2rnn",
            key="seams.m2rnn.heads",
        ) from error
    return ModuleSpec(
        module=M2RNNMixer,
        params={"options": options},
        submodules=Projections.of(context.backend),
    )
