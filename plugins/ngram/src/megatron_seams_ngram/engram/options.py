"""The options of the seam: a recipe's ``[seams.engram]``."""

import re
from typing import Literal, get_args

import attrs
from attrs import field, validators

from megatron_seams_ngram.shared_options import (
    BACKENDS,
    MOST_ROWS,
    PLACES,
    RANKS,
    UPDATES,
    Backend,
    Place,
    Ranks,
    Updates,
    ascending_orders,
    check_place,
)

#: How multipliers are derived.
Hashing = Literal["splitmix64", "released"]
HASHINGS: tuple[Hashing, ...] = get_args(Hashing)
#: ``paper``: σ(s), as arXiv:2601.07372 writes it. ``signed-sqrt``: σ(sign(s) √max(|s|, 1e-6)), as
#: the official demonstration and the models that ship the memory compute it.
Gate = Literal["paper", "signed-sqrt"]
GATES: tuple[Gate, ...] = get_args(Gate)
_epsilon = validators.optional([validators.gt(0), validators.lt(1)])
_DIGEST = re.compile(r"[0-9a-f]{64}\Z")


def _sizes(_: object, __: object, value: int | tuple[int, ...]) -> None:
    for size in (value,) if isinstance(value, int) else value:
        if not 2 <= size < MOST_ROWS:
            message = f"table_rows: expected at least 2 and below {MOST_ROWS}, found {size}"
            raise ValueError(message)


def _layer_ids(_: object, __: object, value: tuple[int, ...]) -> None:
    if min(value, default=0) < 0 or len(set(value)) < len(value):
        message = f"layer_ids: expected numbers from 0, none twice; found {list(value)}"
        raise ValueError(message)


def _digest(_: object, __: object, value: str | None) -> None:
    if value is not None and not _DIGEST.match(value):
        message = f"compression_sha256: expected 64 hexadecimal digits, found {value!r}"
        raise ValueError(message)


@attrs.frozen(kw_only=True)
class Options:
    """The memory of each chosen layer.

    Attributes:
        orders: How many tokens an n-gram has; ascending, each 2 or more.
        heads: Tables for each order.
        table_rows: The least size of a table, or one for each order; the sizes are the primes from
            there on, over all layers.
        width: Columns of a table.
        kernel: Taps of the causal convolution; its dilation is the highest order.
        seed: What multipliers and the tables' initial weights are derived from.
        gate: ``paper`` or ``signed-sqrt``, as in :func:`megatron_seams_ngram.engram.gate.gate_of`.
            Left out, the paper's; with released hashing it must be set.
        hashing: How multipliers are derived: ``splitmix64``, this project's, or ``released``, as
            the official demonstration does. A checkpoint decides it, and with ``released`` also
            gate, compression, pad id and layer ids, which must then be set.
        layer_ids: The released model's own numbers of the layers, for the recipe's in their order;
            with released hashing alone, which derives multipliers from them.
        pad_id: The token that stands for missing history, before compression; left out, an id
            that no token has.
        streams: Residual streams that the hidden states are made of, each with a key of its own;
            1 without hyper-connections.
        bias: Whether the projections to keys and values have biases.
        norm_eps: Epsilon of the norms of key and query; left out, the model's.
        convolution_eps: Epsilon of the norm before the convolution; left out, the model's.
        end_of_document_id: The token that ends a document; windows and convolution stop behind it.
            Left out, they stop at ``cu_seqlens`` alone.
        compression_file: A table from token ids to fewer ids, which the n-grams are made of
            (:mod:`megatron_seams_ngram.engram.compression`); left out, tokens stay as they are.
        compression_sha256: The file's digest, so that a receipt names its contents and not only its
            path.
        backend: What works on the tables, ``cpu`` (C++), ``triton`` or ``torch``, with the same
            numbers; left out, the device's own.
        tables: Where the rows lie: ``device``, with the model; or ``host``, where only the rows of
            a micro-batch are moved (:mod:`megatron_seams_ngram.host`).
        divided_over: The ranks that share the rows: ``tensor``, which have the same batch; or
            ``expert``, which have one each and ask one another for rows.
        host_updates: The rows on the host that a step updates: ``touched``, those with a gradient;
            or ``all``, as the model's optimizer updates resident rows.

    Raises:
        ValueError: A size, id or seed out of range, orders that do not ascend from 2, only one of
            file and digest, sizes for other orders, released hashing without what it needs, layer
            ids without it, or what the place of the tables does not have.
    """

    orders: tuple[int, ...] = field(default=(2, 3), validator=ascending_orders)
    heads: int = field(default=8, validator=validators.ge(1))
    table_rows: int | tuple[int, ...] = field(default=500_000, validator=_sizes)
    width: int = field(default=16, validator=validators.ge(1))
    kernel: int = field(default=4, validator=validators.ge(1))
    seed: int = field(default=0, validator=[validators.ge(0), validators.lt(2**63)])
    gate: Gate | None = field(default=None, validator=validators.optional(validators.in_(GATES)))
    hashing: Hashing = field(default="splitmix64", validator=validators.in_(HASHINGS))
    layer_ids: tuple[int, ...] | None = field(
        default=None, validator=validators.optional(_layer_ids)
    )
    pad_id: int | None = field(default=None, validator=validators.optional(validators.ge(0)))
    streams: int = field(default=1, validator=validators.ge(1))
    bias: bool = False
    norm_eps: float | None = field(default=None, validator=_epsilon)
    convolution_eps: float | None = field(default=None, validator=_epsilon)
    end_of_document_id: int | None = field(
        default=None, validator=validators.optional(validators.ge(0))
    )
    compression_file: str | None = None
    compression_sha256: str | None = field(default=None, validator=_digest)
    backend: Backend | None = field(
        default=None, validator=validators.optional(validators.in_(BACKENDS))
    )
    tables: Place = field(default="device", validator=validators.in_(PLACES))
    divided_over: Ranks = field(default="tensor", validator=validators.in_(RANKS))
    host_updates: Updates = field(default="touched", validator=validators.in_(UPDATES))

    def __attrs_post_init__(self) -> None:
        """Check that file and digest come together, so that no rank reads another file."""
        check_place(self.tables, self.divided_over, self.host_updates)
        if (self.compression_file is None) != (self.compression_sha256 is None):
            message = "compression_file and compression_sha256: expected both or neither"
            raise ValueError(message)
        if isinstance(self.table_rows, tuple) and len(self.table_rows) != len(self.orders):
            message = (
                f"table_rows: expected one size or one for each of {len(self.orders)} orders, "
                f"found {len(self.table_rows)}"
            )
            raise ValueError(message)
        if self.hashing != "released" and self.layer_ids is not None:
            message = (
                f"layer_ids: expected none with hashing = '{self.hashing}', whose multipliers are "
                "of the recipe's own layer numbers; or hashing = 'released'"
            )
            raise ValueError(message)
        decided = ("gate", "layer_ids", "pad_id", "compression_file")
        unset = [name for name in decided if getattr(self, name) is None]
        if self.hashing == "released" and unset:
            message = (
                f"hashing = 'released' is for a checkpoint, which decides {', '.join(unset)} too: "
                "expected each to be set"
            )
            raise ValueError(message)
