"""The index rule: from token ids to rows of the hash tables.

For table j of order o_j at position t, over the token ids x,

    idx_j(t) = (low63((⊕_{p < o_j} m[j,p] · x_{t-p}) ⊕ b_j) mod P_j) + off_j

with products modulo 2⁶⁴ and ⊕ the bitwise exclusive or. Where x_{t-p} lies before the row or before
the document of position t, the pad id stands in its place. low63 clears bit 63: torch computes in
*signed* 64-bit integers, whose remainder differs from the unsigned one exactly where that bit is
set. So the rule means the same in torch on any device as in arithmetic without bounds
(:mod:`megatron_seams_ngram.reference`).
"""

import torch
from torch import Tensor

from megatron_seams_ngram.tables import HashTables

LOW_63 = 2**63 - 1


def signed(value: int) -> int:
    """Read an unsigned 64-bit integer as the signed one with the same bits."""
    return value - 2**64 if value > LOW_63 else value


def multiplier_matrix(tables: HashTables) -> Tensor:
    """Lay the multipliers out as a rectangle.

    Returns:
        [tables, highest order] int64, m[j, p] with the bits of the unsigned one; 0 where p >= o_j,
        which makes the product 0 and so leaves the exclusive or as it is.
    """
    highest = max(tables.orders)
    return torch.tensor(
        [[signed(m) for m in row] + [0] * (highest - len(row)) for row in tables.multipliers],
        dtype=torch.int64,
    )


def hash_indices(
    input_ids: Tensor,
    starts: Tensor,
    *,
    multipliers: Tensor,
    biases: Tensor,
    primes: Tensor,
    offsets: Tensor,
    pad_id: Tensor,
) -> Tensor:
    """Compute the rows of all tables for all positions at once.

    Args:
        input_ids: [b, s] int64.
        starts: [b, s], [s] or [] int64, the first position of each token's document.
        multipliers: [tables, highest order] int64, from :func:`multiplier_matrix`.
        biases: [tables] int64, b_j with the bits of the unsigned one.
        primes: [tables] int64, P_j.
        offsets: [tables] int64, off_j.
        pad_id: [1] int64, the id of missing history.

    Returns:
        [b, s, tables] int64, rows of the matrix that holds all tables.
    """
    positions = torch.arange(input_ids.shape[1], device=input_ids.device)
    hashed = biases
    for p in range(multipliers.shape[1]):
        # What `roll` wraps around is always masked: its position would be below 0.
        earlier = torch.where(positions - p >= starts, input_ids.roll(p, dims=1), pad_id)
        hashed = hashed ^ (earlier.unsqueeze(-1) * multipliers[:, p])
    return (hashed & LOW_63) % primes + offsets
