"""The seam's hooks. Imported only when a model with this seam is built."""

from megatron.core.transformer.spec_utils import ModuleSpec

from megatron_seams.errors import OptionsInvalid
from megatron_seams.hookspecs import LayerContext, hookimpl
from megatron_seams_m2rnn.mixer import M2RNNMixer, M2RNNMixerSubmodules, parallel_fault
from megatron_seams_m2rnn.options import Options


@hookimpl
def recurrent_options() -> type[Options]:
    """Name the class of ``[seams.m2rnn]``."""
    return Options


@hookimpl
def recurrent_layer(context: LayerContext) -> ModuleSpec:
    """Build the mixer of upstream's ``MambaLayer``.

    Raises:
        OptionsInvalid: Head counts that do not fit the model's width.
        Unsupported: Tensor or context parallel size above 1.
    """
    options: Options = context.options
    try:
        options.head_counts(context.config.hidden_size)
    except ValueError as error:
        raise OptionsInvalid(
            asked=f"the heads of seam 'm2rnn' at hidden size {context.config.hidden_size}",
            found=str(error),
            next="set heads in the recipe, or counts that divide it",
            subject="m2rnn",
            key="seams.m2rnn.heads",
        ) from error
    fault = parallel_fault(context.pg_collection)
    if fault is not None:
        raise fault
    return ModuleSpec(
        module=M2RNNMixer,
        params={"options": options},
        submodules=M2RNNMixerSubmodules(
            in_proj=context.backend.column_parallel_linear(),
            out_proj=context.backend.row_parallel_linear(),
        ),
    )
