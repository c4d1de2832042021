"""The hooks of the seam ``engram``."""

from typing import TYPE_CHECKING

from megatron_seams.hookspecs import FeatureContext, hookimpl
from megatron_seams_ngram.engram.options import Options

if TYPE_CHECKING:
    from megatron_seams_ngram.engram.module import Engram


@hookimpl
def engram_options() -> type[Options]:
    """Name the class of ``[seams.engram]``."""
    return Options


@hookimpl
def engram_feature(context: FeatureContext) -> "Engram":
    """Build the memory of one layer of the model in ``context``.

    Raises:
        FeatureInvalid: An end-of-document id that no token of the model can have, a compression
            that is not the one of the recipe, tables on the host where the configuration does not
            allow them, or over expert-parallel ranks beside tensor-parallel ones.
    """
    # Here, so that options are validated on machines without torch.
    from megatron_seams_ngram.engram.module import Engram
    from megatron_seams_ngram.expert_ranks import expert_ranks

    return Engram(
        context.options,
        config=context.config,
        vocab_size=context.vocab_size,
        packed_sequences=context.packed_sequences,
        layer_number=context.layer_number,
        layer_numbers=context.layer_numbers,
        tp_group=context.pg_collection.tp,
        dp_group=getattr(context.pg_collection, "dp_cp", None),
        expert=expert_ranks(
            context.options.divided_over,
            context.pg_collection,
            config=context.config,
            seam="engram",
        ),
    )
