"""SplitMix64: the generator behind the hash constants.

A generator of our own, because the constants must be the same on every rank, in every release of
torch and after every restart, whatever else has drawn random numbers before.
"""

from collections.abc import Iterator

MASK = 2**64 - 1


def splitmix64(seed: int) -> Iterator[int]:
    """Yield the SplitMix64 sequence of a seed.

    The generator of Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA
    2014, with the constants of Vigna's public-domain ``splitmix64.c`` (https://prng.di.unimi.it).

    Args:
        seed: The initial state, 0 <= seed < 2**64.

    Yields:
        Unsigned 64-bit integers.

    Raises:
        ValueError: The seed is not an unsigned 64-bit integer.
    """
    if not 0 <= seed <= MASK:
        message = f"expected a seed in 0 ... 2**64 - 1, found {seed}"
        raise ValueError(message)
    return _sequence(seed)


def _sequence(seed: int) -> Iterator[int]:
    number = 0
    while True:
        yield nth(seed, number)
        number += 1


def nth(seed: int, number: int) -> int:
    """Compute element ``number`` of the sequence, counted from 0, by itself.

    Args:
        seed: As for :func:`splitmix64`.
        number: 0 or more.
    """
    z = (seed + (number + 1) * 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)
