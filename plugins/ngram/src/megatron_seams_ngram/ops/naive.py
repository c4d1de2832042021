"""The index rule in plain Python, one token at a time, to test :mod:`.indices` against."""

from collections.abc import Sequence

from megatron_seams_ngram.tables.hash_tables import HashTables


def reference_indices(
    tables: HashTables, documents: Sequence[Sequence[int]], *, pad_id: int
) -> list[list[int]]:
    """Hash each document by itself, in integers without bounds.

    Args:
        tables: The constants.
        documents: The token ids of each document.
        pad_id: The id of missing history.

    Returns:
        For each token of all documents in order, its row in each table.
    """
    return [
        [_index(tables, j, document, t, pad_id) for j in range(tables.number)]
        for document in documents
        for t in range(len(document))
    ]


def _index(tables: HashTables, j: int, document: Sequence[int], t: int, pad_id: int) -> int:
    hash_of_table = tables.hash_of[j]
    hashed = tables.biases[hash_of_table]
    for p, multiplier in enumerate(tables.multipliers[hash_of_table]):
        token = document[t - p] if t >= p else pad_id
        hashed ^= multiplier * token % 2**64
    return hashed % 2**63 % tables.primes[j] + tables.offsets[j]
