"""The hashed n-gram embedding as a module."""

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, linear

from megatron_seams.errors import FeatureInvalid
from megatron_seams_ngram.documents import starts_from_cu_seqlens, starts_from_end_of_document
from megatron_seams_ngram.hash.options import Options
from megatron_seams_ngram.indices import hash_indices, multiplier_matrix, signed
from megatron_seams_ngram.tables import make_tables


class HashedNgramEmbedding(nn.Module):
    """Rows of hashed n-gram tables, projected to the hidden size, to add to the word embedding.

    With e(t) the concatenation of row idx_j(t) of every table j
    (:mod:`megatron_seams_ngram.indices`), the output is W e(t). W starts at zero: at step 0 the
    model is the one without the feature. The tables learn from the second step on, once W is not
    zero any more.

    The hash constants are persistent buffers. A checkpoint therefore keeps hashing as it was
    trained, even where the recipe's seed or the (padded) vocabulary has changed since.

    Args:
        options: Sizes, seed and ids.
        hidden_size: h.
        vocab_size: Rows of the word embedding; token ids are below it.
        packed_sequences: Whether rows hold several documents, so that every call needs boundaries.
        init_std: Standard deviation of the tables' initial values.
        dtype: Of the parameters and the output.
        use_cpu_initialization: As in Megatron's configuration: leave the parameters on the CPU;
            else they lie on the current CUDA device. Their values are the same.

    Attributes:
        table: [rows of all tables, width], one below the other.
        projection: W, [h, tables * width].
    """

    multipliers: Tensor
    biases: Tensor
    primes: Tensor
    offsets: Tensor
    pad_id: Tensor

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
    ) -> None:
        super().__init__()
        self.options = options
        self.packed_sequences = packed_sequences
        device = torch.device("cpu" if use_cpu_initialization else "cuda")
        tables = make_tables(
            orders=options.orders,
            heads=options.heads,
            table_rows=options.table_rows,
            seed=options.seed,
        )
        pad_id = vocab_size if options.pad_id is None else options.pad_id
        constants = {
            "multipliers": multiplier_matrix(tables),
            "biases": torch.tensor([signed(bias) for bias in tables.biases]),
            "primes": torch.tensor(tables.primes),
            "offsets": torch.tensor(tables.offsets),
            "pad_id": torch.tensor([pad_id]),
        }
        for name, value in constants.items():
            self.register_buffer(name, value.to(device))

        # A generator of its own, on the CPU in float32: the same weights on every rank and device,
        # in whatever order modules are built, and the native modules' weights stay what they were.
        generator = torch.Generator(device="cpu").manual_seed(options.seed)
        table = torch.empty(tables.rows, options.width, dtype=torch.float32, device="cpu")
        table.normal_(std=init_std, generator=generator)
        self.table = nn.Parameter(table.to(device=device, dtype=dtype))
        self.projection = nn.Parameter(
            torch.zeros(hidden_size, tables.number * options.width, dtype=dtype, device=device)
        )

    def forward(self, input_ids: Tensor, *, cu_seqlens: Tensor | None = None) -> Tensor:
        """Embed the n-grams that end at each position.

        Args:
            input_ids: [b, s] int64; [1, T] with ``cu_seqlens``.
            cu_seqlens: [documents + 1] int32, the boundaries of packed documents, or None.

        Returns:
            [b, s, h] in the parameters' dtype.

        Raises:
            FeatureInvalid: Sequences are packed and nothing says where documents end, or
                ``cu_seqlens`` does not fit ``input_ids``.
        """
        rows = embedding(self.indices(input_ids, cu_seqlens=cu_seqlens), self.table)
        return linear(rows.flatten(start_dim=2), self.projection)

    def indices(self, input_ids: Tensor, *, cu_seqlens: Tensor | None = None) -> Tensor:
        """Hash the n-grams that end at each position.

        Args:
            input_ids: As in :meth:`forward`.
            cu_seqlens: As in :meth:`forward`.

        Returns:
            [b, s, tables] int64, rows of ``table``.

        Raises:
            FeatureInvalid: As in :meth:`forward`.
        """
        return hash_indices(
            input_ids,
            self._starts(input_ids, cu_seqlens),
            multipliers=self.multipliers,
            biases=self.biases,
            primes=self.primes,
            offsets=self.offsets,
            pad_id=self.pad_id,
        )

    def _starts(self, input_ids: Tensor, cu_seqlens: Tensor | None) -> Tensor:
        """Where each token's document begins: the latest boundary of either source."""
        eod = self.options.end_of_document_id
        if self.packed_sequences and cu_seqlens is None and eod is None:
            raise _no_boundaries()
        starts = torch.zeros((), dtype=torch.int64, device=input_ids.device)
        if cu_seqlens is not None:
            _check_fits(cu_seqlens, input_ids)
            starts = starts_from_cu_seqlens(cu_seqlens, input_ids.shape[1])
        if eod is not None:
            starts = torch.maximum(starts, starts_from_end_of_document(input_ids, eod))
        return starts

    def extra_repr(self) -> str:
        """Show the sizes where torch prints the module."""
        rows, width = self.table.shape
        return f"tables={len(self.primes)}, rows={rows}, width={width}"


def check_boundary_id(end_of_document_id: int | None, vocab_size: int) -> None:
    """Refuse an end-of-document id that no token can have: its boundaries would never come.

    Raises:
        FeatureInvalid: The id is not below ``vocab_size``.
    """
    if end_of_document_id is not None and end_of_document_id >= vocab_size:
        raise FeatureInvalid(
            asked=f"n-gram windows that stop behind token {end_of_document_id}",
            found=f"token ids are below {vocab_size}, so that token never comes",
            next="set end-of-document-id to the tokenizer's id, or leave it out",
            subject="ngram_hash",
            key="seams.ngram_hash.end-of-document-id",
        )


def _no_boundaries() -> FeatureInvalid:
    return FeatureInvalid(
        asked="n-grams of packed sequences that stop at document boundaries",
        found="neither cu_seqlens came with the batch nor is there an end-of-document id",
        next="pass packed_seq_params to the model, or set end-of-document-id in the recipe",
        subject="ngram_hash",
        key="seams.ngram_hash.end-of-document-id",
    )


def _check_fits(cu_seqlens: Tensor, input_ids: Tensor) -> None:
    """Hold shapes against each other; values stay on the device, where reading them would wait."""
    if input_ids.shape[0] != 1 or cu_seqlens.dim() != 1:
        raise FeatureInvalid(
            asked="input_ids [1, T] with cu_seqlens [documents + 1]",
            found=f"input_ids {list(input_ids.shape)}, cu_seqlens {list(cu_seqlens.shape)}",
            next="pack the micro-batch into one row, as Megatron's thd format does",
            subject="ngram_hash",
        )
