"""The kernels of the tables in torch, on any device, to test :mod:`.cpu_kernels` against."""

from torch import Tensor
from torch.nn.functional import embedding

from megatron_seams_ngram.ops.indices import Constants, hash_indices

__all__ = ["gather", "hash_and_gather", "hash_indices", "put", "scatter"]


def hash_and_gather(
    input_ids: Tensor,
    starts: Tensor | None,
    constants: Constants,
    table: Tensor,
    first: int,
    *,
    sequence_first: bool,
) -> tuple[Tensor, Tensor]:
    """Hash positions, and look their rows up in a part of all tables.

    Args:
        input_ids: As in :func:`.indices.hash_indices`.
        starts: Likewise.
        constants: Likewise.
        table: As in :func:`gather`.
        first: Likewise.
        sequence_first: Whether the caller goes on with [s, b, ...]. A kernel may then write the
            rows in that order, and return them transposed; this one does not.

    Returns:
        What :func:`gather` returns, and the indices.
    """
    del sequence_first
    indices = hash_indices(input_ids, starts, constants)
    return gather(table, indices, first), indices


def gather(table: Tensor, indices: Tensor, first: int) -> Tensor:
    """Look rows up in a part of all tables.

    Args:
        table: [rows here, width], rows ``first`` and on.
        indices: [b, s, tables] int64, rows of the whole.
        first: The first row of the part.

    Returns:
        [b, s, tables, width]; zeros where the row lies in another part.
    """
    here = indices - first
    elsewhere = (here < 0) | (here >= len(table))
    return embedding(here.masked_fill(elsewhere, 0), table).masked_fill_(elsewhere.unsqueeze(-1), 0)


def scatter(rows: Tensor, indices: Tensor, first: int, table: Tensor) -> None:
    """Add gradients of looked-up rows to the gradient of a part of all tables, in place.

    Every row's sum is taken in the order of the positions, so that it is always the same.

    Args:
        rows: [b, s, tables, width], of a type that converts to ``table``'s.
        indices: As in :func:`gather`.
        first: As in :func:`gather`.
        table: [rows here, width], added to.
    """
    here = indices.flatten() - first
    elsewhere = (here < 0) | (here >= len(table))
    # No row is picked out by a mask: its count would be waited for, and could not be captured in a
    # CUDA graph. What belongs to another part is added as zeros, all over this one.
    here = here.remainder(len(table))
    added = (
        rows.reshape(len(here), table.shape[1])
        .to(table.dtype)
        .masked_fill(elsewhere.unsqueeze(-1), 0)
    )
    if table.is_cuda:
        # `index_add_` would add in whatever order the threads come; this one sorts first.
        table.index_put_((here,), added, accumulate=True)
    else:
        table.index_add_(0, here, added)


def put(values: Tensor, indices: Tensor, table: Tensor) -> None:
    """Write rows of a table, in place.

    Args:
        values: [n, width].
        indices: [n] int64, rows of ``table``, none twice.
        table: [rows, width], written to.
    """
    table.index_copy_(0, indices, values.to(table.dtype))
