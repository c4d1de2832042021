"""The seam's hooks. Imported only when a model with this seam is built."""

from megatron.core.transformer.spec_utils import ModuleSpec

from megatron_seams.errors import OptionsInvalid
from megatron_seams.hookspecs import LayerContext, hookimpl
from megatron_seams.runtime.mixers import Projections
from megatron_seams_mamba3.layer.mixer import Mamba3Mixer
from megatron_seams_mamba3.options import Options


@hookimpl
def mamba3_options() -> type[Options]:
    """Name the class of ``[seams.mamba3]``."""
    return Options


@hookimpl
def mamba3_layer(context: LayerContext) -> ModuleSpec:
    """Build the mixer of upstream's ``MambaLayer``.

    Raises:
        OptionsInvalid: Sizes that do not fit the model's width, or its ranks.
    """
    options: Options = context.options
    tp = context.pg_collection.tp.size()
    try:
        options.layout(context.config.hidden_size, tp=tp)
    except ValueError as error:
        raise OptionsInvalid(
            asked=f"the heads of seam 'mamba3' at hidden size {context.config.hidden_size}, over "
            f"tensor-parallel {tp}",
            found=str(error),
            next="set sizes in the recipe that divide, or another parallel size",
            subject="mamba3",
            key="seams.mamba3.head-dim",
        ) from error
    return ModuleSpec(
        module=Mamba3Mixer,
        params={"options": options},
        submodules=Projections.of(context.backend),
    )
