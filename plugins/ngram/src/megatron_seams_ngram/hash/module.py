"""The hashed n-gram embedding as a module."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from megatron_seams.runtime.collectives import summed, summed_and_scattered
from megatron_seams.runtime.documents import DocumentBoundaries
from megatron_seams.runtime.sharding import ShardedModule
from megatron_seams_ngram.expert_ranks import ExpertRanks
from megatron_seams_ngram.hash.options import Options
from megatron_seams_ngram.host.tables import HostNgramTables, tables_at
from megatron_seams_ngram.tables.hash_tables import make_tables

if TYPE_CHECKING:
    from megatron.core.transformer.transformer_config import TransformerConfig
    from torch.distributed import ProcessGroup


class HashedNgramEmbedding(ShardedModule):
    """Rows of hashed n-gram tables, projected to the hidden size, to add to the word embedding.

    With e(t) the concatenation of row idx_j(t) of every table j
    (:mod:`megatron_seams_ngram.ops.indices`), the output is W e(t). W starts at zero: at step 0 the
    model is the one without the feature. The tables learn from the second step on, once W is not
    zero any more.

    Tensor-parallel ranks have a part of the tables' rows each and the whole of W. What they
    exchange is e, which is narrower than the hidden size.

    Args:
        options: Sizes, seed and ids.
        hidden_size: h.
        vocab_size: Rows of the word embedding; token ids are below it.
        packed_sequences: Whether rows hold several documents, so that every call needs boundaries.
        init_std: Standard deviation of the tables' initial values.
        dtype: Of the parameters and the output.
        use_cpu_initialization: As in Megatron's configuration: leave the parameters on the CPU;
            else they lie on the current CUDA device. Their values are the same.
        tp_group: The tensor-parallel group, or None for a single rank.
        reduce_scatter_embeddings: Whether the word embedding of a rank is its own piece of the
            sequence, [s / ranks, b, h], as upstream has it under sequence parallelism.
        config: The model's configuration, for tables on the host; None holds them to nothing.
        dp_group: The data-parallel group, for tables on the host; None for Megatron's own.
        expert: The ranks that share the tables' rows; None for the tensor-parallel ones.

    Attributes:
        tables: The rows.
        projection: W, [h, tables * width].

    Raises:
        FeatureInvalid: An end-of-document id that no token of the model can have, or tables on the
            host where the configuration does not allow them.
    """

    def __init__(
        self,
        options: Options,
        *,
        hidden_size: int,
        vocab_size: int,
        packed_sequences: bool,
        init_std: float,
        dtype: torch.dtype,
        use_cpu_initialization: bool,
        tp_group: "ProcessGroup | None",
        reduce_scatter_embeddings: bool,
        config: "TransformerConfig | None" = None,
        dp_group: "ProcessGroup | None" = None,
        expert: ExpertRanks | None = None,
    ) -> None:
        super().__init__()
        self.boundaries = DocumentBoundaries(
            seam="ngram_hash",
            end_of_document_id=options.end_of_document_id,
            packed_sequences=packed_sequences,
        )
        self.boundaries.check(vocab_size)
        self.tp_group = tp_group
        self.reduce_scatter_embeddings = reduce_scatter_embeddings
        device = torch.device("cpu" if use_cpu_initialization else "cuda")
        tables = make_tables(
            orders=options.orders,
            heads=options.heads,
            table_rows=options.table_rows,
            seed=options.seed,
        )
        self.tables = tables_at(
            options.tables,
            tables,
            updates=options.host_updates,
            config=config,
            seam="ngram_hash",
            dp_group=dp_group,
            width=options.width,
            pad_id=vocab_size if options.pad_id is None else options.pad_id,
            seed=options.seed,
            init_std=init_std,
            dtype=dtype,
            device=device,
            tp_group=tp_group,
            backend=options.backend,
            expert=expert,
        )
        self.projection = nn.Parameter(
            torch.zeros(hidden_size, tables.number * options.width, dtype=dtype, device=device)
        )
        # A rank that sees a piece of the sequence has a part of the gradient; upstream adds up the
        # gradients of what is marked so.
        self.projection.sequence_parallel = reduce_scatter_embeddings  # type: ignore[attr-defined]
        if isinstance(self.tables, HostNgramTables):
            self.tables.beside = (self.projection,)

    def forward(self, input_ids: Tensor, *, cu_seqlens: Tensor | None = None) -> Tensor:
        """Embed the n-grams that end at each position.

        Args:
            input_ids: [b, s] int64; [1, T] with ``cu_seqlens``.
            cu_seqlens: [documents + 1] int32, the boundaries of packed documents, or None.

        Returns:
            [b, s, h] in the parameters' dtype; [s / ranks, b, h] with
            ``reduce_scatter_embeddings``.

        Raises:
            FeatureInvalid: As :meth:`DocumentBoundaries.starts`.
        """
        rows = self.tables(
            input_ids,
            self.boundaries.starts(input_ids, cu_seqlens),
            sequence_first=self.reduce_scatter_embeddings,
            batch=(input_ids, cu_seqlens),
        )
        if self.reduce_scatter_embeddings:
            rows = summed_and_scattered(rows, self.tp_group)
        else:
            rows = summed(rows, self.tp_group)
        return linear(rows, self.projection)

    def indices(self, input_ids: Tensor, *, cu_seqlens: Tensor | None = None) -> Tensor:
        """Hash the n-grams that end at each position.

        Args:
            input_ids: As in :meth:`forward`.
            cu_seqlens: As in :meth:`forward`.

        Returns:
            [b, s, tables] int64, rows of all tables.

        Raises:
            FeatureInvalid: As in :meth:`forward`.
        """
        return self.tables.indices(input_ids, self.boundaries.starts(input_ids, cu_seqlens))
