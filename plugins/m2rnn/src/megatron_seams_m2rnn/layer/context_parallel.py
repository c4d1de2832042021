"""The exchange of tokens for heads between context-parallel ranks.

The recurrence needs every token in order. So ranks, each with all heads of a part of the sequence,
exchange it for a part of the heads over the whole sequence: the all-to-all of upstream's Mamba.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from megatron.core.tensor_parallel.mappings import all_to_all_hp2sp, all_to_all_sp2hp
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def token_order(spans: Sequence[tuple[int, int]], ranks: int) -> Tensor:
    """List the tokens of all ranks, in the order in which the ranks have them.

    Megatron balances causal attention by cutting each document into 2 · ranks chunks, of which rank
    r has chunk r and, after it, the r-th from the end.

    Args:
        spans: The ``(start, stop)`` of each document, in tokens.
        ranks: Context-parallel size.

    Returns:
        [tokens] int64 on the CPU: the rank's tokens one after the other, rank after rank.

    Raises:
        ValueError: A document whose length 2 · ranks does not divide.
    """
    pieces = 2 * ranks
    uneven = [stop - start for start, stop in spans if (stop - start) % pieces]
    if uneven:
        message = (
            f"with context parallel size {ranks} every document's length is a multiple of {pieces}"
            f"; found {uneven[0]}. Pad the documents"
        )
        raise ValueError(message)
    chunks = [torch.arange(start, stop).chunk(pieces) for start, stop in spans if stop > start]
    return torch.cat(
        [
            chunk
            for rank in range(ranks)
            for document in chunks
            for chunk in (document[rank], document[-1 - rank])
        ]
    )


def to_heads(parts: Sequence[Tensor], order: Tensor, group: "ProcessGroup") -> Tensor:
    """Exchange tokens for channels.

    Args:
        parts: [s / ranks, b, C_i] each: this rank's tokens of tensors whose channels are cut into
            one slice for each rank.
        order: The result of :func:`token_order`, on the parts' device.
        group: The context-parallel ranks.

    Returns:
        [s, b, Σ C_i / ranks], the tokens in their own order, the slices side by side.
    """
    ranks, batch = group.size(), parts[0].shape[1]
    slices = zip(*(part.chunk(ranks, dim=-1) for part in parts), strict=True)
    x = torch.cat([part for rank in slices for part in rank], dim=-1)
    exchanged: Tensor = all_to_all_sp2hp(x, group=group)
    return torch.unflatten(exchanged, 0, (-1, batch))[order.argsort()]


def to_tokens(x: Tensor, order: Tensor, group: "ProcessGroup") -> Tensor:
    """Exchange channels for tokens: the way back.

    Args:
        x: [s, b, C / ranks].
        order: As for :func:`to_heads`.
        group: The context-parallel ranks.

    Returns:
        [s / ranks, b, C].
    """
    batch = x.shape[1]
    exchanged: Tensor = all_to_all_hp2sp(x[order], group=group)
    return torch.unflatten(exchanged, 0, (-1, batch))
