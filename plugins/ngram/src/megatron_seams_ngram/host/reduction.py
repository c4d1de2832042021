"""The mean over data-parallel ranks of gradients that have other rows on each."""

from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_seams_ngram.host.rows import HostRows, summed_rows

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def reduced(
    rows: Tensor, gradient: Tensor, host: HostRows, group: "ProcessGroup | None"
) -> tuple[Tensor, Tensor]:
    """Average gradients of rows over the ranks, each of which has all rows of the table.

    The ranks' parts are added in the order of the ranks, so that all get the same sums bit for bit
    and their tables stay alike.

    Args:
        rows: [u] int64 on the host, none twice; every rank has its own.
        gradient: [u, width] float32 on the host.
        host: The table's.
        group: The ranks; None for a single one.

    Returns:
        Rows and mean gradient, as :func:`summed_rows` has them.
    """
    ranks = 1 if group is None else group.size()
    if group is None or ranks == 1:
        return rows, gradient
    # NCCL moves what lies on the device; the rows of one step do.
    gpu = dist.get_backend(group) == "nccl"
    device = torch.device("cuda", torch.cuda.current_device()) if gpu else torch.device("cpu")
    size = torch.tensor([len(rows)], device=device)
    sizes = [torch.empty_like(size) for _ in range(ranks)]
    dist.all_gather(sizes, size, group=group)
    lengths = [int(one) for one in sizes]
    # Megatron's buffers are scaled before they are added up, and so is this.
    scaled = gradient / ranks
    all_rows = _gathered(rows, lengths, device, group)
    all_gradients = _gathered(scaled, lengths, device, group)
    parts = list(zip(all_rows, all_gradients, strict=True))
    return summed_rows(parts, host.weight, host.distinct)


def _gathered(
    own: Tensor, lengths: list[int], device: torch.device, group: "ProcessGroup"
) -> list[Tensor]:
    """Every rank's tensor, of its own length, on the host."""
    padded = own.new_zeros(max(lengths), *own.shape[1:])
    padded[: len(own)] = own
    padded = padded.to(device)
    found = [torch.empty_like(padded) for _ in lengths]
    dist.all_gather(found, padded, group=group)
    return [one[:length].cpu() for one, length in zip(found, lengths, strict=True)]
