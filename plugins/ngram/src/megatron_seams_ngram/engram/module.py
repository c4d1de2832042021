"""The gated n-gram memory as a module."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, silu

from megatron_seams.errors import FeatureInvalid
from megatron_seams.runtime.collectives import summed, summed_and_scattered
from megatron_seams.runtime.documents import DocumentBoundaries
from megatron_seams.runtime.sharding import ShardedModule
from megatron_seams_ngram.engram.compression import read_table
from megatron_seams_ngram.engram.convolution import causal_convolution
from megatron_seams_ngram.engram.gate import gate_of
from megatron_seams_ngram.engram.options import Gate, Hashing, Options
from megatron_seams_ngram.engram.streams import StreamNorm, by_stream
from megatron_seams_ngram.expert_ranks import ExpertRanks
from megatron_seams_ngram.host.tables import HostNgramTables, tables_at
from megatron_seams_ngram.tables.hash_tables import HashTables, make_layer_tables
from megatron_seams_ngram.tables.released import released_multipliers
from megatron_seams_ngram.tables.splitmix64 import nth

if TYPE_CHECKING:
    from megatron.core.transformer.transformer_config import TransformerConfig
    from torch.distributed import ProcessGroup


class Engram(ShardedModule):
    """A gated memory of n-grams, to add to the hidden states that enter a layer.

    After arXiv:2601.07372. With h(t) the hidden state that enters the layer, of d elements, and
    e(t) the concatenation of row idx_j(t) of every table j of the layer,

        s = RMSNorm(h) · RMSNorm(W_k e + b_k) / √d
        α = gate(s), which is σ(s) in the paper and σ(sign(s) √max(|s|, 1e-6)) as released
        v = α (W_v e + b_v)
        y = v + SiLU(conv(RMSNorm(v)))

    is added to h; conv is causal and has taps of its own for each channel, as far apart as the
    longest n-gram. The paper has no biases. With several residual streams each has an h, a W_k, a
    b_k, norms and taps of its own, and W_v and b_v are of all. W_v, the biases and the taps start
    at zero: at step 0 the model is the one without the memory. The tables learn from the second
    step on.

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
        dp_group: The data-parallel group, for tables on the host; None for Megatron's own.
        expert: The ranks that share the tables' rows; None for the tensor-parallel ones.

    Attributes:
        tables: The rows, with constants of this layer's own.
        key: W_k, [streams * h, tables * width].
        value: W_v, [h, tables * width].
        key_bias: b_k, [streams * h]; None without biases.
        value_bias: b_v, [h]; None without biases.
        taps: [streams * h, kernel].
        hashing: How multipliers are derived, as in the options.

    Raises:
        FeatureInvalid: An end-of-document or pad id that no token of the model can have, a
            compression that is not the one of the recipe, not one layer id for each layer, or
            tables on the host where the configuration does not allow them.
    """

    compression: Tensor | None
    key_bias: nn.Parameter | None
    value_bias: nn.Parameter | None
    key_norm: StreamNorm
    hidden_norm: StreamNorm
    value_norm: StreamNorm

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
        dp_group: "ProcessGroup | None" = None,
        expert: ExpertRanks | None = None,
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
        self.streams = options.streams
        self.gate: Gate = options.gate or "paper"
        self.hashing: Hashing = options.hashing
        seed = nth(options.seed, layer_number)
        device = torch.device("cpu" if config.use_cpu_initialization else "cuda")
        ids = _compressed_ids(options, vocab_size)
        compression = _compression(ids, vocab_size)
        self.register_buffer("compression", None if compression is None else compression.to(device))
        tables = _hash_tables(options, ids, layer_number, layer_numbers)
        self.tables = tables_at(
            options.tables,
            tables,
            updates=options.host_updates,
            config=config,
            seam="engram",
            dp_group=dp_group,
            width=options.width,
            pad_id=_pad_id(options, compression, vocab_size),
            seed=seed,
            init_std=config.embedding_init_method_std,
            dtype=config.params_dtype,
            device=device,
            tp_group=tp_group,
            backend=options.backend,
            expert=expert,
        )
        hidden, columns = config.hidden_size, tables.number * options.width
        channels = options.streams * hidden
        placed: dict[str, Any] = {"dtype": config.params_dtype, "device": device}
        # A generator of its own: the native modules' weights stay what they were.
        key = torch.empty(channels, columns, dtype=torch.float32, device="cpu")
        key.normal_(
            std=config.init_method_std, generator=torch.Generator("cpu").manual_seed(nth(seed, 0))
        )
        self.key = nn.Parameter(key.to(**placed))
        self.value = nn.Parameter(torch.zeros(hidden, columns, **placed))
        for name, size in (("key_bias", channels), ("value_bias", hidden)):
            bias = nn.Parameter(torch.zeros(size, **placed)) if options.bias else None
            self.register_parameter(name, bias)
        self.taps = nn.Parameter(torch.zeros(channels, options.kernel, **placed))
        if isinstance(self.tables, HostNgramTables):
            self.tables.beside = (self.value, self.key)
        eps = config.layernorm_epsilon
        norms = {
            "hidden_norm": options.norm_eps,
            "key_norm": options.norm_eps,
            "value_norm": options.convolution_eps,
        }
        for name, own in norms.items():
            norm = StreamNorm(options.streams, hidden, eps=eps if own is None else own, **placed)
            self.add_module(name, norm)
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
            hidden_states: [s, b, streams * h]; with sequence parallelism [s / ranks, b, ...].
            input_ids: [b, s] int64, the whole row; [1, T] with ``cu_seqlens``.
            cu_seqlens: [documents + 1] int32, the boundaries of packed documents, or None.

        Returns:
            As ``hidden_states``, to be added to them.

        Raises:
            FeatureInvalid: As :meth:`DocumentBoundaries.starts`; or hidden states of another number
                of streams.
        """
        self._check(hidden_states)
        starts = self.boundaries.starts(input_ids, cu_seqlens)
        rows = self.tables(
            self._compressed(input_ids),
            starts,
            sequence_first=True,
            batch=(input_ids, cu_seqlens),
        )
        if self.sequence_parallel:
            rows = summed_and_scattered(rows, self.tp_group)
        else:
            rows = summed(rows, self.tp_group)
        streams = self.streams
        keys = by_stream(self.key_norm(linear(rows, self.key, self.key_bias)), streams)
        queries = by_stream(self.hidden_norm(hidden_states.to(keys.dtype)), streams)
        scores = (queries * keys).sum(dim=-1, keepdim=True) / math.sqrt(keys.shape[-1])
        recalls = by_stream(linear(rows, self.value, self.value_bias), 1)
        values = (gate_of(scores, self.gate) * recalls).flatten(start_dim=-2)
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

    def _check(self, hidden_states: Tensor) -> None:
        """Hold the hidden states to the streams that the memory was built for."""
        found, channels = hidden_states.shape[-1], len(self.taps)
        if found != channels:
            raise FeatureInvalid(
                asked=f"hidden states of {self.streams} residual streams, {channels} elements",
                found=f"they have {found}",
                next="say how many streams the model has",
                subject="engram",
                key="seams.engram.streams",
            )

    def _compressed(self, input_ids: Tensor) -> Tensor:
        return input_ids if self.compression is None else self.compression[input_ids]


def _compressed_ids(options: Options, vocab_size: int) -> tuple[int, ...] | None:
    """Token id -> new id for every token; None without a compression."""
    if options.compression_file is None or options.compression_sha256 is None:
        return None
    path, digest = Path(options.compression_file), options.compression_sha256
    return read_table(path, sha256=digest, vocab_size=vocab_size)


def _compression(ids: tuple[int, ...] | None, vocab_size: int) -> Tensor | None:
    """Token id -> new id for every row of the word embedding; None without a compression."""
    if ids is None:
        return None
    # A vocabulary is padded with rows that stand for no token.
    return torch.tensor([*ids, *[max(ids) + 1] * (vocab_size - len(ids))])


def _pad_id(options: Options, compression: Tensor | None, vocab_size: int) -> int:
    """The stand-in for missing history: a token, compressed as every other; or none of them."""
    if options.pad_id is None:
        return vocab_size if compression is None else int(compression.max()) + 1
    if options.pad_id >= vocab_size:
        raise FeatureInvalid(
            asked=f"the pad id {options.pad_id}",
            found=f"the model has tokens 0 to {vocab_size - 1}",
            next="name one of them, or leave it out for an id that no token has",
            subject="engram",
            key="seams.engram.pad-id",
        )
    return options.pad_id if compression is None else int(compression[options.pad_id])


def _hash_tables(
    options: Options, ids: tuple[int, ...] | None, layer: int, layers: tuple[int, ...]
) -> HashTables:
    """The constants of a layer's tables, with multipliers of ours or the released ones."""
    multipliers = None
    if options.layer_ids is not None and len(options.layer_ids) != len(layers):
        raise FeatureInvalid(
            asked=f"layer-ids {list(options.layer_ids)}, one for each layer",
            found=f"the recipe has the memory at layers {', '.join(map(str, layers))}",
            next="give one for each of them, in their order",
            subject="engram",
            key="seams.engram.layer-ids",
        )
    if options.hashing == "released" and options.layer_ids is not None and ids is not None:
        multipliers = released_multipliers(
            seed=options.seed,
            layer_id=options.layer_ids[layers.index(layer)],
            ids=max(ids) + 1,
            positions=max(options.orders),
        )
    return make_layer_tables(
        orders=options.orders,
        heads=options.heads,
        table_rows=options.table_rows,
        seed=options.seed,
        layer=layer,
        layers=layers,
        multipliers=multipliers,
    )
