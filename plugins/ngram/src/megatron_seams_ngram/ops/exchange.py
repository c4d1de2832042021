"""Looking rows up that other ranks have, for ranks that each have a batch of their own."""

from typing import TYPE_CHECKING, Any

import attrs
import torch
import torch.distributed as dist
from torch import Tensor

from megatron_seams_ngram.ops.dispatch import Kernels
from megatron_seams_ngram.ops.lookup import look_up

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def look_up_over_ranks(
    weight: Tensor, indices: Tensor, *, first: int, kernels: Kernels, group: "ProcessGroup"
) -> Tensor:
    """Ask each rank for the rows that it has, and answer the others.

    Every rank calls this with a batch of its own, of any size; in backward the gradients go back
    the same way, and a rank's part of the tables gets those of all ranks' batches: first those of
    rank 0, in the order of its positions, then those of rank 1, and so on. How many rows each rank
    asks for is read on the host, which waits for the device once in each forward pass.

    Args:
        weight: [rows here, width], a leaf; as many rows on every rank.
        indices: [b, s, tables] int64, rows of the whole.
        first: The whole's row that ``weight``'s first is: the rank times ``rows here``.
        kernels: Who does the work.
        group: The ranks.

    Returns:
        [b, s, tables, width].
    """
    asked = _Asked.of(indices.flatten(), len(weight), group)
    rows = look_up(weight, asked.here.view(1, -1, 1), first=first, kernels=kernels)
    answers: Tensor = _Answers.apply(rows.flatten(end_dim=2), asked)
    return answers.view(*indices.shape, -1)


@attrs.frozen(kw_only=True, eq=False)
class _Asked:
    """The rows that the ranks ask of one another.

    Attributes:
        order: [n], this rank's places in ascending order of their rows: rank after rank.
        sent: How many of them each rank is asked for.
        received: How many rows each rank asks of this one.
        here: [Σ received] int64, these rows, of the whole.
        group: The ranks.
    """

    order: Tensor
    sent: list[int]
    received: list[int]
    here: Tensor
    group: "ProcessGroup"

    @classmethod
    def of(cls, indices: Tensor, rows: int, group: "ProcessGroup") -> "_Asked":
        """Sort [n] rows of the whole, of which each rank has ``rows``, and exchange them."""
        ascending, order = torch.sort(indices, stable=True)
        ends = torch.arange(1, group.size() + 1, device=indices.device) * rows
        sent = torch.searchsorted(ascending, ends).diff(prepend=ends.new_zeros(1))
        received = torch.empty_like(sent)
        dist.all_to_all_single(received, sent, group=group)
        of_each, for_each = torch.stack([sent, received]).tolist()
        here = _exchanged(ascending, of_each, for_each, group)
        return cls(order=order, sent=of_each, received=for_each, here=here, group=group)


class _Answers(torch.autograd.Function):
    """Sends [Σ received, width] rows to the ranks that asked; what comes back goes in its place."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, asked: _Asked) -> Tensor:
        ctx.asked = asked
        answers = _exchanged(rows, asked.received, asked.sent, asked.group)
        return torch.empty_like(answers).index_copy_(0, asked.order, answers)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        asked = ctx.asked
        sorted_ = gradients[0].index_select(0, asked.order)
        return _exchanged(sorted_, asked.sent, asked.received, asked.group), None


def _exchanged(x: Tensor, sent: list[int], received: list[int], group: "ProcessGroup") -> Tensor:
    """Send each rank its stretch of ``x``'s first dimension; the stretches that come, in order."""
    out = x.new_empty(sum(received), *x.shape[1:])
    dist.all_to_all_single(
        out, x.contiguous(), output_split_sizes=received, input_split_sizes=sent, group=group
    )
    return out
