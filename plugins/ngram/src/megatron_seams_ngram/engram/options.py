"""The options of the seam: a recipe's ``[seams.engram]``."""

import re

import attrs
from attrs import field, validators

from megatron_seams_ngram.shared_options import BACKENDS, Backend, ascending_orders

_DIGEST = re.compile(r"[0-9a-f]{64}\Z")


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
        table_rows: The least size of a table; the sizes are the primes from there on, over all
            layers.
        width: Columns of a table.
        kernel: Taps of the causal convolution; its dilation is the highest order.
        seed: What multipliers and the tables' initial weights are derived from.
        end_of_document_id: The token that ends a document; windows and convolution stop behind it.
            Left out, they stop at ``cu_seqlens`` alone.
        compression_file: A table from token ids to fewer ids, which the n-grams are made of
            (:mod:`megatron_seams_ngram.engram.compression`); left out, tokens stay as they are.
        compression_sha256: The file's digest, so that a receipt names its contents and not only its
            path.
        backend: What works on the tables, ``cpu`` (C++) or ``torch``, with the same numbers; left
            out, the device's own.

    Raises:
        ValueError: A size, id or seed out of range, orders that do not ascend from 2, or only one
            of file and digest.
    """

    orders: tuple[int, ...] = field(default=(2, 3), validator=ascending_orders)
    heads: int = field(default=8, validator=validators.ge(1))
    table_rows: int = field(default=500_000, validator=validators.ge(2))
    width: int = field(default=16, validator=validators.ge(1))
    kernel: int = field(default=4, validator=validators.ge(1))
    seed: int = field(default=0, validator=[validators.ge(0), validators.lt(2**63)])
    end_of_document_id: int | None = field(
        default=None, validator=validators.optional(validators.ge(0))
    )
    compression_file: str | None = None
    compression_sha256: str | None = field(default=None, validator=_digest)
    backend: Backend | None = field(
        default=None, validator=validators.optional(validators.in_(BACKENDS))
    )

    def __attrs_post_init__(self) -> None:
        """Check that file and digest come together, so that no rank reads another file."""
        if (self.compression_file is None) != (self.compression_sha256 is None):
            message = "compression_file and compression_sha256: expected both or neither"
            raise ValueError(message)
