"""The documents of a packed row."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from megatron_seams.runtime.documents import packed_cu_seqlens
from megatron_seams_mamba3.layer.refusal import unsupported

if TYPE_CHECKING:
    from megatron.core.packed_seq_params import PackedSeqParams


def boundaries(packed: "PackedSeqParams | None", *, tokens: int, batch: int) -> Tensor | None:
    """Read Megatron's description of a packed row.

    Args:
        packed: The description; None where nothing is packed.
        tokens: The length of the row.
        batch: The number of rows.

    Returns:
        [documents + 2] cumulative lengths: tokens after the last boundary are padding, and one
        document more, perhaps empty. None where nothing is packed.

    Raises:
        Unsupported: No boundaries, several packed rows, or a context-parallel group of their own.
    """
    if packed is None:
        return None
    found = packed_cu_seqlens(packed)
    if found is None:
        raise unsupported(
            "packed-sequences",
            "packed_seq_params without cu_seqlens_q",
            "pass the boundaries of the documents",
        )
    if batch != 1:
        raise unsupported(
            "packed-sequences", f"packed rows in a batch of {batch}", "pack into one row"
        )
    if packed.local_cp_size is not None:
        raise unsupported(
            "a context-parallel size for each batch",
            f"packed_seq_params with local_cp_size {packed.local_cp_size}",
            "turn hybrid context parallelism off",
        )
    return torch.cat([found, found.new_full((1,), tokens)])
