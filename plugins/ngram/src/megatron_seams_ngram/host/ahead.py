"""Fetching the rows of the next micro-batch while this one runs."""

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from torch import Tensor, nn

from megatron_seams_ngram.host.tables import HostNgramTables, on_host

_Batch = TypeVar("_Batch")


def fetch_ahead(
    model: nn.Module,
    input_ids: Tensor,
    *,
    cu_seqlens: Tensor | None = None,
    given: tuple[Tensor, Tensor | None] | None = None,
) -> None:
    """Begin to move the rows of the batch that comes next, for every n-gram module of a model.

    Without tables on the host nothing happens. A batch that does not come costs the look-up, and
    changes no number.

    Args:
        model: The model or a stage of it, wrapped or not.
        input_ids: [b, s] int64. On a GPU they are copied to the host, which waits for it: hand over
            the host's where there are any.
        cu_seqlens: The boundaries of packed documents, [documents + 1] int32, or None.
        given: The tensors that the forward will get for these two, if they are others: copies on a
            GPU that are made ahead, too. By these it knows the batch without waiting for the GPU.

    Raises:
        FeatureInvalid: As :meth:`DocumentBoundaries.starts`.
    """
    from megatron_seams_ngram.engram.module import Engram
    from megatron_seams_ngram.hash.module import HashedNgramEmbedding

    found = [one for one in model.modules() if isinstance(one, Engram | HashedNgramEmbedding)]
    on_the_host = [(one, one.tables) for one in found if isinstance(one.tables, HostNgramTables)]
    if not on_the_host:
        return
    ids, ends = on_host(input_ids), on_host(cu_seqlens)
    for module, tables in on_the_host:
        hashed = ids
        if isinstance(module, Engram) and module.compression is not None:
            hashed = tables.mirror("compression", module.compression)[ids]
        starts = module.boundaries.starts(ids, ends)
        tables.fetch_ahead(hashed, starts, batch=given or (input_ids, cu_seqlens))


def look_ahead(
    batches: Iterable[_Batch],
    model: nn.Module,
    ids_of: Callable[[_Batch], tuple[Tensor, Tensor | None]],
) -> Iterator[_Batch]:
    """Give the batches of a data iterator, each while the rows of the next are fetched.

    Args:
        batches: The iterator that the trainer would read.
        model: As in :func:`fetch_ahead`.
        ids_of: The token ids of a batch and its document boundaries, or None for the latter.
    """
    current: list[_Batch] = []
    for following in batches:
        input_ids, cu_seqlens = ids_of(following)
        fetch_ahead(model, input_ids, cu_seqlens=cu_seqlens)
        yield from current
        current = [following]
    yield from current
