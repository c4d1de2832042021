"""The constants of the hash tables: plain numbers, derived from sizes and a seed alone."""

from collections.abc import Sequence
from itertools import accumulate

import attrs

from megatron_seams_ngram.tables.primes import distinct_primes, primes_from
from megatron_seams_ngram.tables.splitmix64 import nth, splitmix64


@attrs.frozen(kw_only=True)
class HashTables:
    """The constants of the index rule; see :mod:`megatron_seams_ngram.ops.indices`.

    Attributes:
        multipliers: m[i, p] of hash i for p below its order, odd unsigned 64-bit integers.
        biases: b_i, unsigned 64-bit integers.
        hash_of: i(j), the hash whose value table j takes.
        primes: P_j, the rows of table j; all different.
    """

    multipliers: tuple[tuple[int, ...], ...]
    biases: tuple[int, ...]
    hash_of: tuple[int, ...]
    primes: tuple[int, ...]

    @property
    def number(self) -> int:
        """The number of tables."""
        return len(self.primes)

    @property
    def orders(self) -> tuple[int, ...]:
        """o_j: how many tokens an n-gram of table j has."""
        return tuple(len(self.multipliers[i]) for i in self.hash_of)

    @property
    def rows(self) -> int:
        """The rows of all tables together."""
        return sum(self.primes)

    @property
    def offsets(self) -> tuple[int, ...]:
        """off_j: the first row of each table where all lie in one matrix, table 0 first."""
        return tuple(accumulate(self.primes[:-1], initial=0))


def make_tables(*, orders: Sequence[int], heads: int, table_rows: int, seed: int) -> HashTables:
    """Derive the constants of ``len(orders) * heads`` tables, each with a hash of its own.

    Nothing but the arguments decides: no global generator is read, so every rank, every copy of the
    model and every restart hashes alike.

    Args:
        orders: The orders, each with ``heads`` tables; the tables of the first order come first.
        heads: Tables for each order.
        table_rows: The least size of a table; the sizes are the smallest primes from there on.
        seed: 0 <= seed < 2**64.
    """
    draw = splitmix64(seed)
    multipliers = []
    biases = []
    for order in (order for order in orders for _ in range(heads)):
        # An even multiplier would drop a token's top bits; an odd one is a bijection of 64 bits.
        multipliers.append(tuple(next(draw) | 1 for _ in range(order)))
        biases.append(next(draw))
    number = len(biases)
    return HashTables(
        multipliers=tuple(multipliers),
        biases=tuple(biases),
        hash_of=tuple(range(number)),
        primes=primes_from(table_rows, number),
    )


def make_layer_tables(
    *,
    orders: Sequence[int],
    heads: int,
    table_rows: int | Sequence[int],
    seed: int,
    layer: int,
    layers: Sequence[int],
    multipliers: Sequence[int] | None = None,
) -> HashTables:
    """Derive the constants of one layer's tables, which hash once for each order.

    As arXiv:2601.07372 has it: one layer's hashes share their multipliers, so that the heads of an
    order differ by their prime alone; no two layers share a prime, and each has multipliers of its
    own.

    Args:
        orders: The orders, each with ``heads`` tables; the tables of the first order come first.
        heads: Tables for each order.
        table_rows: The least size of a table, or one for each order; the sizes are the smallest
            primes from there on that are free, those of the first layer first.
        seed: 0 <= seed < 2**64.
        layer: The layer's number, one of ``layers``.
        layers: The numbers of all layers that have tables, ascending.
        multipliers: One for each position of the longest n-gram; derived from ``seed`` if None.
    """
    sizes = [table_rows] * len(orders) if isinstance(table_rows, int) else table_rows
    draw = splitmix64(nth(seed, layer))
    if multipliers is None:
        multipliers = [next(draw) | 1 for _ in range(max(orders))]
    return HashTables(
        multipliers=tuple(tuple(multipliers[:order]) for order in orders),
        biases=(0,) * len(orders),
        hash_of=tuple(i for i in range(len(orders)) for _ in range(heads)),
        primes=distinct_primes(sizes, heads=heads, layers=len(layers))[layers.index(layer)],
    )
