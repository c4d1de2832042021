"""The options of the seam: a recipe's ``[seams.ngram_hash]``."""

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

_token_id = validators.optional(validators.ge(0))


@attrs.frozen(kw_only=True)
class Options:
    """The tables' sizes and their seed. The defaults are NAM56R's: 8 million rows of 16.

    Attributes:
        orders: The numbers of tokens of an n-gram; ascending, each 2 or more.
        heads: Tables for each order.
        table_rows: The least size of a table; the sizes are the primes from there on.
        width: Columns of a table.
        seed: The source of multipliers, biases and the tables' initial weights.
        pad_id: The id that stands for missing history; left out, the vocabulary's size, which no
            token has. A token's own id makes missing history look like that token.
        end_of_document_id: The token that ends a document; windows stop behind it. Left out, they
            stop at ``cu_seqlens`` alone.
        backend: The kernels, ``cpu`` (C++), ``triton`` or ``torch``, with the same numbers; left
            out, the device's own.
        tables: Where the rows lie: ``device``, with the model; or ``host``, where only the rows of
            a micro-batch are moved (:mod:`megatron_seams_ngram.host`).
        divided_over: The ranks that share the rows: ``tensor``, which have the same batch; or
            ``expert``, which have one each and ask one another for rows.
        host_updates: The rows on the host that a step updates: ``touched``, those with a gradient;
            or ``all``, as the model's optimizer updates resident rows.

    Raises:
        ValueError: A size, id or seed out of range, orders that do not ascend from 2, or what the
            place of the tables does not have.
    """

    orders: tuple[int, ...] = field(default=(2, 3), validator=ascending_orders)
    heads: int = field(default=8, validator=validators.ge(1))
    table_rows: int = field(default=500_000, validator=[validators.ge(2), validators.lt(MOST_ROWS)])
    width: int = field(default=16, validator=validators.ge(1))
    seed: int = field(default=0, validator=[validators.ge(0), validators.lt(2**63)])
    pad_id: int | None = field(default=None, validator=_token_id)
    end_of_document_id: int | None = field(default=None, validator=_token_id)
    backend: Backend | None = field(
        default=None, validator=validators.optional(validators.in_(BACKENDS))
    )
    tables: Place = field(default="device", validator=validators.in_(PLACES))
    divided_over: Ranks = field(default="tensor", validator=validators.in_(RANKS))
    host_updates: Updates = field(default="touched", validator=validators.in_(UPDATES))

    def __attrs_post_init__(self) -> None:
        """Check that the ranks that share the rows can have them where they lie."""
        check_place(self.tables, self.divided_over, self.host_updates)
