"""The index rule: from token ids to rows of the hash tables.

Table j takes its hash i = i(j), of order o_i. At position t, over the token ids x,

    idx_j(t) = (low63((⊕_{p < o_i} m[i,p] · x_{t-p}) ⊕ b_i) mod P_j) + off_j

with products modulo 2⁶⁴ and ⊕ the bitwise exclusive or. Where x_{t-p} lies before the row or before
the document of position t, the pad id stands in its place. low63 clears bit 63: torch computes in
*signed* 64-bit integers, whose remainder differs from the unsigned one exactly where that bit is
set. So the rule means the same in torch on any device as in arithmetic without bounds
(:mod:`megatron_seams_ngram.ops.naive`).
"""

import attrs
import torch
from torch import Tensor

from megatron_seams_ngram.tables.hash_tables import HashTables

LOW_63 = 2**63 - 1


@attrs.frozen(kw_only=True, eq=False)
class Constants:
    """:class:`HashTables` as int64 tensors, unsigned numbers by their bits.

    Attributes:
        multipliers: [hashes, highest order], m[i, p]; 0 where p >= o_i, which makes the product 0
            and so leaves the exclusive or as it is.
        biases: [hashes], b_i.
        hash_of: [tables], i(j).
        primes: [tables], P_j.
        offsets: [tables], off_j.
        pad_id: [1], the id of missing history.
    """

    multipliers: Tensor
    biases: Tensor
    hash_of: Tensor
    primes: Tensor
    offsets: Tensor
    pad_id: Tensor

    @classmethod
    def of(cls, tables: HashTables, *, pad_id: int) -> "Constants":
        """Lay ``tables`` out as tensors on the CPU."""
        highest = max(tables.orders)
        rows = [
            [_signed(m) for m in row] + [0] * (highest - len(row)) for row in tables.multipliers
        ]
        return cls(
            multipliers=torch.tensor(rows),
            biases=torch.tensor([_signed(bias) for bias in tables.biases]),
            hash_of=torch.tensor(tables.hash_of),
            primes=torch.tensor(tables.primes),
            offsets=torch.tensor(tables.offsets),
            pad_id=torch.tensor([pad_id]),
        )


def _signed(value: int) -> int:
    """Read an unsigned 64-bit integer as the signed one with the same bits."""
    return value - 2**64 if value > LOW_63 else value


def hash_indices(input_ids: Tensor, starts: Tensor | None, constants: Constants) -> Tensor:
    """Compute the rows of all tables for all positions at once.

    Args:
        input_ids: [b, s] int64.
        starts: [b, s] or [1, s] int64, the first position of each token's document; None where
            every row of the batch is one document.
        constants: On the same device.

    Returns:
        [b, s, tables] int64, rows of the matrix of all tables.
    """
    positions = torch.arange(input_ids.shape[1], device=input_ids.device)
    first = torch.zeros_like(positions) if starts is None else starts
    hashed = constants.biases
    for p in range(constants.multipliers.shape[1]):
        # The tokens that `roll` wraps around are always masked: their position would be below 0.
        earlier = torch.where(positions - p >= first, input_ids.roll(p, dims=1), constants.pad_id)
        hashed = hashed ^ (earlier.unsqueeze(-1) * constants.multipliers[:, p])
    if len(constants.hash_of) > len(constants.biases):  # else every table has a hash of its own
        hashed = hashed[..., constants.hash_of]
    return (hashed & LOW_63) % constants.primes + constants.offsets
