"""Where documents begin: an n-gram's window must not read the document before its own."""

import torch
from torch import Tensor


def starts_from_cu_seqlens(cu_seqlens: Tensor, length: int) -> Tensor:
    """Find the first position of each token's document from cumulative lengths.

    Repeated boundaries (an empty document) are skipped, and tokens after the last boundary
    (padding) count as a document of their own.

    Args:
        cu_seqlens: [documents + 1] int32 or int64, ascending, the first one 0.
        length: T, the tokens of the packed row.

    Returns:
        [T] int64.
    """
    boundaries = cu_seqlens.to(torch.int64)
    positions = torch.arange(length, device=cu_seqlens.device)
    document = torch.searchsorted(boundaries, positions, right=True) - 1
    return boundaries[document]


def starts_from_end_of_document(input_ids: Tensor, end_of_document_id: int) -> Tensor:
    """Find the first position of each token's document from the token that ends one.

    The end-of-document token belongs to the document that it ends; the token after it to the next.

    Args:
        input_ids: [b, s] int64.
        end_of_document_id: The token id that ends a document.

    Returns:
        [b, s] int64.
    """
    positions = torch.arange(input_ids.shape[1], device=input_ids.device)
    begins_next = torch.where(input_ids == end_of_document_id, positions + 1, 0)
    latest = begins_next.cummax(dim=1).values
    return torch.cat([torch.zeros_like(latest[:, :1]), latest[:, :-1]], dim=1)
