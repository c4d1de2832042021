"""The gated n-gram memory as a module."""

import math
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, silu

from megatron_seams.runtime.collectives import summed, summed_and_scattered
from megatron_seams.runtime.documents import DocumentBoundaries
from megatron_seams.runtime.sharding import ShardedModule
from megatron_seams_ngram.engram.compression import read_table
from megatron_seams_ngram.engram.convolution import causal_convolution
from megatron_seams_ngram.engram.options import Options
from megatron_seams_ngram.ngram_tables import NgramTables
from megatron_seams_ngram.tables.hash_tables import make_layer_tables
from megatron_seams_ngram.tables.splitmix64 import nth

if TYPE_CHECKING:
    from megatron.core.transformer.transformer_config import TransformerConfig
    from torch.distributed import ProcessGroup


class Engram(ShardedModule):
    """A gated memory of n-grams, to add to the hidden states that enter a layer.

    After arXiv:2601.07372. With h(t) the hidden state that enters the layer, of d elements, and
    e(t) the concatenation of row idx_j(t) of every table j of the layer,

        α = σ(RMSNorm(h) · RMSNorm(W_k e) / √d)
        v = α W_v e
        y = v + SiLU(conv(RMSNorm(v)))

    is added to h; conv is causal and has taps of its own for each channel, as far apart as the
    longest n-gram. W_v and the taps start at zero: at step 0 the model is the one without the
    memory. The tables learn from the second step on.

    Tensor-parallel ranks have a part of the tables' rows each and the whole of everything else.
    Under sequence parallelism each works on its own piece of the sequence, and gets from the ranks
    before it the few positions that its first taps reach back to.

    Args:
        options: Sizes, seed and ids.
        config: The model's configuration.
        vocab_size: Rows of the word embedding; token ids are below it.
        packed_sequences: Whether rows hold several documents, so that every call needs boundaries.
        layer_number: The layer's global number.
        layer_numbers: The numbers of all layers that have a memory.
        tp_group: The tensor-parallel group, or None for a single rank.

    Attributes:
        tables: The rows, with constants of this layer's own.
        key: W_k, [h, tables * width].
        value: W_v, [h, tables * width].
        taps: [h, kernel].

    Raises:
        FeatureInvalid: An end-of-document id that no token of the model can have, or a compression
            that is not the one of the recipe.
    """

    compression: Tensor | None

    def __init__(
        self,
        options: Options,
        *,
        config: "TransformerConfig",
        vocab_size: int,
        packed_sequences: bool,
        layer_number: int,
        layer_numbers: tuple[int, ...],
        tp_group: "ProcessGroup | None",
    ) -> None:
        super().__init__()
        self.boundaries = DocumentBoundaries(
            seam="engram",
            end_of_document_id=options.end_of_document_id,
            packed_sequences=packed_sequences,
        )
        self.boundaries.check(vocab_size)
        self.tp_group = tp_group
        self.sequence_parallel: bool = config.sequence_parallel
        self.dilation = max(options.orders)
        tables = make_layer_tables(
            orders=options.orders,
            heads=options.heads,
            table_rows=options.table_rows,
            seed=options.seed,
            layer=layer_number,
            layers=layer_numbers,
        )
        seed = nth(options.seed, layer_number)
        device = torch.device("cpu" if config.use_cpu_initialization else "cuda")
        compression = _compression(options, vocab_size)
        self.register_buffer("compression", None if compression is None else compression.to(device))
        self.tables = NgramTables(
            tables,
            width=options.width,
            pad_id=vocab_size if compression is None else int(compression.max()) + 1,
            seed=seed,
            init_std=config.embedding_init_method_std,
            dtype=config.params_dtype,
            device=device,
            tp_group=tp_group,
            backend=options.backend,
        )
        hidden, columns = config.hidden_size, tables.number * options.width
        placed = {"dtype": config.params_dtype, "device": device}
        # A generator of its own: the native modules' weights stay what they were.
        key = torch.empty(hidden, columns, dtype=torch.float32, device="cpu")
        key.normal_(
            std=config.init_method_std, generator=torch.Generator("cpu").manual_seed(nth(seed, 0))
        )
        self.key = nn.Parameter(key.to(**placed))
        self.value = nn.Parameter(torch.zeros(hidden, columns, **placed))
        self.taps = nn.Parameter(torch.zeros(hidden, options.kernel, **placed))
        eps = config.layernorm_epsilon
        self.hidden_norm = nn.RMSNorm(hidden, eps=eps, **placed)
        self.key_norm = nn.RMSNorm(hidden, eps=eps, **placed)
        self.value_norm = nn.RMSNorm(hidden, eps=eps, **placed)
        for name, parameter in self.named_parameters():
            if not name.startswith("tables."):
                # A rank that sees a piece of the sequence has a part of the gradient; upstream adds
                # up the gradients of what is marked so.
                parameter.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]

    def forward(
        self, hidden_states: Tensor, input_ids: Tensor, *, cu_seqlens: Tensor | None = None
    ) -> Tensor:
        """Compute what is added to the hidden state at each position.

        Args:
            hidden_states: [s, b, h]; with sequence parallelism [s / ranks, b, h].
            input_ids: [b, s] int64, the whole row; [1, T] with ``cu_seqlens``.
            cu_seqlens: [documents + 1] int32, the boundaries of packed documents, or None.

        Returns:
            As ``hidden_states``, to be added to them.

        Raises:
            FeatureInvalid: As :meth:`DocumentBoundaries.starts`.
        """
        starts = self.boundaries.starts(input_ids, cu_seqlens)
        rows = self.tables(self._compressed(input_ids), starts).transpose(0, 1).contiguous()
        if self.sequence_parallel:
            rows = summed_and_scattered(rows, self.tp_group)
        else:
            rows = summed(rows, self.tp_group)
        keys = self.key_norm(linear(rows, self.key))
        queries = self.hidden_norm(hidden_states.to(keys.dtype))
        scores = (queries * keys).sum(dim=-1, keepdim=True) / math.sqrt(keys.shape[-1])
        values = scores.sigmoid() * linear(rows, self.value)
        mixed = causal_convolution(
            self.value_norm(values),
            self.taps,
            dilation=self.dilation,
            starts=starts,
            group=self.tp_group if self.sequence_parallel else None,
        )
        recalled: Tensor = values + silu(mixed)
        return recalled.to(hidden_states.dtype)

    def indices(self, input_ids: Tensor, *, cu_seqlens: Tensor | None = None) -> Tensor:
        """Hash the n-grams that end at each position.

        Returns:
            [b, s, tables] int64, rows of all tables.
        """
        starts = self.boundaries.starts(input_ids, cu_seqlens)
        return self.tables.indices(self._compressed(input_ids), starts)

    def _compressed(self, input_ids: Tensor) -> Tensor:
        return input_ids if self.compression is None else self.compression[input_ids]


def _compression(options: Options, vocab_size: int) -> Tensor | None:
    """Token id -> new id for every row of the word embedding; None without a compression."""
    if options.compression_file is None or options.compression_sha256 is None:
        return None
    path, digest = Path(options.compression_file), options.compression_sha256
    ids = read_table(path, sha256=digest, vocab_size=vocab_size)
    # A vocabulary is padded with rows that stand for no token.
    return torch.tensor([*ids, *[max(ids) + 1] * (vocab_size - len(ids))])
