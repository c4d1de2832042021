"""The hooks of the seam ``ngram_hash``."""

from typing import TYPE_CHECKING

from megatron_seams.hookspecs import FeatureContext, hookimpl
from megatron_seams_ngram.hash.options import Options

if TYPE_CHECKING:
    from megatron_seams_ngram.hash.module import HashedNgramEmbedding


@hookimpl
def ngram_options() -> type[Options]:
    """Name the class of ``[seams.ngram_hash]``."""
    return Options


@hookimpl
def ngram_feature(context: FeatureContext) -> "HashedNgramEmbedding":
    """Build the embedding of the model in ``context``.

    Raises:
        FeatureInvalid: An end-of-document id that no token of the model can have, tables on the
            host where the configuration does not allow them, or over expert-parallel ranks beside
            tensor-parallel ones.
    """
    # Here, so that options are validated on machines without torch.
    from megatron_seams_ngram.expert_ranks import expert_ranks
    from megatron_seams_ngram.hash.module import HashedNgramEmbedding

    config = context.config
    return HashedNgramEmbedding(
        context.options,
        hidden_size=config.hidden_size,
        vocab_size=context.vocab_size,
        packed_sequences=context.packed_sequences,
        init_std=config.embedding_init_method_std,
        dtype=config.params_dtype,
        use_cpu_initialization=config.use_cpu_initialization,
        tp_group=context.pg_collection.tp,
        reduce_scatter_embeddings=context.reduce_scatter_embeddings,
        config=config,
        dp_group=getattr(context.pg_collection, "dp_cp", None),
        expert=expert_ranks(
            context.options.divided_over,
            context.pg_collection,
            config=config,
            seam="ngram_hash",
        ),
    )
