"""Where the documents of a packed row begin and end."""

import itertools

import torch
from torch import Tensor


def document_spans(cu_seqlens: Tensor, tokens: int) -> tuple[tuple[int, int], ...]:
    """Read cumulative sequence lengths.

    Args:
        cu_seqlens: [documents + 1], integers, on any device (one on an accelerator is copied to the
            host, which waits for it). A document may be empty.
        tokens: The length T of the packed row.

    Returns:
        The ``(start, stop)`` of each document, in tokens.

    Raises:
        ValueError: Not one dimension of integers that starts at 0, never falls and ends at T.
    """
    if cu_seqlens.dim() != 1 or cu_seqlens.is_floating_point() or cu_seqlens.numel() < 2:
        message = (
            "expected cu_seqlens as one dimension of at least two integers, found "
            f"{cu_seqlens.dtype} of shape {tuple(cu_seqlens.shape)}"
        )
        raise ValueError(message)
    bounds: list[int] = cu_seqlens.tolist()
    spans = tuple(itertools.pairwise(bounds))
    if bounds[0] != 0 or bounds[-1] != tokens or any(stop < start for start, stop in spans):
        message = (
            f"expected cu_seqlens to rise from 0 to the {tokens} tokens of the packed row, found "
            f"{bounds[:4]} … {bounds[-2:]}"
        )
        raise ValueError(message)
    return spans


def positions(spans: tuple[tuple[int, int], ...]) -> Tensor:
    """Count the tokens of each document from 0.

    Args:
        spans: What :func:`document_spans` returned.

    Returns:
        [T] int64, on the CPU.
    """
    return torch.cat([torch.arange(stop - start) for start, stop in spans])
