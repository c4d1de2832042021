"""Primes, multipliers and biases: exact, distinct, and decided by the seed alone."""

import subprocess
import sys
from itertools import islice
from math import isqrt
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_seams_ngram.hash.module import HashedNgramEmbedding
from megatron_seams_ngram.hash.options import Options
from megatron_seams_ngram.tables.hash_tables import make_tables
from megatron_seams_ngram.tables.primes import is_prime, primes_from
from megatron_seams_ngram.tables.splitmix64 import splitmix64


def prime_by_trial_division(n: int) -> bool:
    return n > 1 and all(n % divisor for divisor in range(2, isqrt(n) + 1))


def test_every_number_below_two_thousand_is_judged_as_trial_division_judges_it() -> None:
    assert [n for n in range(-3, 2000) if is_prime(n)] == [
        n for n in range(2000) if prime_by_trial_division(n)
    ]


@pytest.mark.parametrize(
    "composite",
    [
        3215031751,  # fools the bases 2, 3, 5 and 7
        3825123056546413051,  # fools the bases 2 to 23
        318665857834031151167461,  # fools the bases 2 to 37
        (2**31 - 1) ** 2,
    ],
)
def test_a_composite_that_fools_many_bases_is_not_called_prime(composite: int) -> None:
    assert not is_prime(composite)


@pytest.mark.parametrize("prime", [2**31 - 1, 2**61 - 1, 2**64 - 59])
def test_a_large_prime_is_called_prime(prime: int) -> None:
    assert is_prime(prime)


def test_a_number_beyond_what_the_bases_decide_is_refused() -> None:
    with pytest.raises(ValueError, match="primality is decided below"):
        is_prime(2**89 - 1)


@given(size=st.integers(2, 1_000_000), number=st.integers(1, 24))
@settings(max_examples=50, deadline=None)
def test_table_sizes_are_distinct_primes_from_the_size_asked_for(size: int, number: int) -> None:
    primes = primes_from(size, number)
    assert len(set(primes)) == number
    assert all(prime >= size and prime_by_trial_division(prime) for prime in primes)


def test_the_sizes_of_nam56r_are_within_a_thousandth_of_half_a_million() -> None:
    primes = make_tables(orders=(2, 3), heads=8, table_rows=500_000, seed=0).primes
    assert len(set(primes)) == 16
    assert all(prime_by_trial_division(prime) for prime in primes)
    assert min(primes) >= 500_000
    assert max(primes) < 500_500


def test_the_generator_gives_the_published_sequence() -> None:
    # The first outputs of Vigna's splitmix64.c for the seed 1234567.
    assert list(islice(splitmix64(1234567), 5)) == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


def test_a_seed_that_is_not_64_bits_is_refused() -> None:
    with pytest.raises(ValueError, match="expected a seed"):
        splitmix64(2**64)


def test_multipliers_are_odd_64_bit_integers_and_all_different() -> None:
    tables = make_tables(orders=(2, 3), heads=8, table_rows=100, seed=5)
    multipliers = [m for row in tables.multipliers for m in row]
    assert [len(row) for row in tables.multipliers] == [2] * 8 + [3] * 8
    assert all(m % 2 == 1 and 0 < m < 2**64 for m in multipliers)
    assert len(set(multipliers)) == len(multipliers)
    assert len(set(tables.biases)) == 16


def test_tables_lie_one_below_the_other() -> None:
    tables = make_tables(orders=(2,), heads=3, table_rows=2, seed=0)
    assert tables.primes == (2, 3, 5)
    assert tables.offsets == (0, 2, 5)
    assert tables.rows == 10


def test_another_seed_gives_other_constants_and_the_same_sizes() -> None:
    one, other = (make_tables(orders=(2,), heads=2, table_rows=9, seed=seed) for seed in (1, 2))
    assert one.multipliers != other.multipliers
    assert one.biases != other.biases
    assert one.primes == other.primes


PROGRAM = """
import random, torch
random.seed(8); torch.manual_seed(8); torch.rand(7)
from megatron_seams_ngram.hash.module import HashedNgramEmbedding
from megatron_seams_ngram.hash.options import Options
module = HashedNgramEmbedding(
    Options(table_rows=50, seed=3), hidden_size=4, vocab_size=9, packed_sequences=False,
    init_std=0.02, dtype=torch.float32, use_cpu_initialization=True,
    tp_group=None, reduce_scatter_embeddings=False,
)
torch.save(module.state_dict(), {file!r})
"""


def test_constants_and_weights_do_not_depend_on_any_global_generator(tmp_path: Path) -> None:
    file = tmp_path / "state.pt"
    subprocess.run([sys.executable, "-c", PROGRAM.format(file=str(file))], check=True)
    elsewhere = torch.load(file)
    before = torch.get_rng_state()
    here = HashedNgramEmbedding(
        Options(table_rows=50, seed=3),
        hidden_size=4,
        vocab_size=9,
        packed_sequences=False,
        init_std=0.02,
        dtype=torch.float32,
        use_cpu_initialization=True,
        tp_group=None,
        reduce_scatter_embeddings=False,
    ).state_dict()
    assert torch.equal(before, torch.get_rng_state())
    assert here.keys() == elsewhere.keys()
    assert all(torch.equal(here[name], elsewhere[name]) for name in here)
