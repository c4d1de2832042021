"""Distinct primes for the sizes of the hash tables.

Tables of one prime size each, all different: two n-grams that collide in one table then almost
never collide in the next one, which is what several heads are for.
"""

from collections.abc import Sequence
from itertools import count, islice

# Miller-Rabin with these bases decides every n below 3317044064679887385961981: Sorenson and
# Webster, "Strong pseudoprimes to twelve prime bases", Mathematics of Computation 86 (2017).
_BASES = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41)
_DECIDED_BELOW = 3317044064679887385961981


def is_prime(n: int) -> bool:
    """Decide whether ``n`` is prime; exact, by Miller-Rabin with fixed bases.

    Args:
        n: Any integer below 3.3e24.

    Raises:
        ValueError: ``n`` is too large for the bases to decide.
    """
    if n >= _DECIDED_BELOW:
        message = f"primality is decided below {_DECIDED_BELOW} only, found {n}"
        raise ValueError(message)
    if n < 2:
        return False
    for base in _BASES:
        if n % base == 0:
            return n == base
    twos = ((n - 1) & (1 - n)).bit_length() - 1
    odd = (n - 1) >> twos
    return all(_passes(n, base, odd, twos) for base in _BASES)


def _passes(n: int, base: int, odd: int, twos: int) -> bool:
    """One round: n - 1 = odd * 2**twos, and ``base`` does not betray n as composite."""
    x = pow(base, odd, n)
    if x in (1, n - 1):
        return True
    for _ in range(twos - 1):
        x = x * x % n
        if x == n - 1:
            return True
    return False


def primes_from(size: int, number: int) -> tuple[int, ...]:
    """List the ``number`` smallest primes that are at least ``size``, in ascending order.

    They lie close together: the mean gap between primes near n is about ln n, so sixteen of them
    from 500,000 on span some two hundred.

    Args:
        size: The least size of a table, in rows.
        number: How many primes.
    """
    return tuple(islice(filter(is_prime, count(size)), number))


def distinct_primes(
    sizes: Sequence[int], *, heads: int, layers: int
) -> tuple[tuple[int, ...], ...]:
    """List the sizes of all tables, no two alike: for each layer, order and head the next prime.

    A head takes the smallest prime that is at least its order's size and that no earlier layer,
    order or head has.

    Args:
        sizes: The least size of a table, for each order.
        heads: Tables for each order.
        layers: How many layers have tables.

    Returns:
        For each layer the sizes of its tables, those of the first order first.
    """
    taken: set[int] = set()
    found = []
    for _ in range(layers):
        primes: list[int] = []
        for size in sizes:
            free = (n for n in count(size) if n not in taken and is_prime(n))
            primes += (own := list(islice(free, heads)))
            taken.update(own)
        found.append(tuple(primes))
    return tuple(found)
