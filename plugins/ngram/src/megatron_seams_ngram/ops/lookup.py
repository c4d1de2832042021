"""Looking rows up; backward adds to the table's own gradient, without a dense one beside it."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge

from megatron_seams_ngram.ops import huge_pages
from megatron_seams_ngram.ops.dispatch import Kernels
from megatron_seams_ngram.ops.indices import Constants

#: From the part of all tables to the rows, [b, s, tables, width], and where they lie.
_Finding = Callable[[Tensor], tuple[Tensor, Tensor]]


def look_up(weight: Tensor, indices: Tensor, *, first: int, kernels: Kernels) -> Tensor:
    """Look rows up in the part of all tables that ``weight`` is.

    A step touches a few rows of very many, so backward does not make a gradient of the table's size
    only to have it added to another one. It adds to what is there:

    - to ``weight.main_grad``, by Megatron's convention for fused gradient accumulation
      (``grad_added_to_main_grad``, as in ``megatron.core.tensor_parallel.layers``);
    - else to ``weight.grad``, where a backward pass has made one.

    In both cases autograd is handed a sparse gradient without elements: its hooks run, for DDP to
    count, and what they add is nothing. The first pass after ``zero_grad`` makes ``weight.grad``
    itself; and wherever someone else is to see the gradient (a tensor hook, ``autograd.grad``,
    ``backward(inputs=...)`` without the weight), they get a true one.

    Args:
        weight: [rows here, width], a leaf.
        indices: [b, s, tables] int64, rows of the whole; no two tables share a row.
        first: The whole's row that ``weight``'s first is.
        kernels: Who does the work.

    Returns:
        [b, s, tables, width]; zeros for the rows of other parts.
    """

    def find(table: Tensor) -> tuple[Tensor, Tensor]:
        return kernels.gather(table, indices, first), indices

    return _found(weight, find, first, kernels)


def look_up_ngrams(
    weight: Tensor,
    input_ids: Tensor,
    starts: Tensor | None,
    constants: Constants,
    *,
    first: int,
    kernels: Kernels,
    sequence_first: bool = False,
) -> Tensor:
    """Hash the n-grams that end at each position and look their rows up, in one.

    Args:
        weight: As in :func:`look_up`, and so is the gradient.
        input_ids: [b, s] int64.
        starts: [b, s] or [1, s] int64, as in :func:`.indices.hash_indices`.
        constants: The rule's.
        first: As in :func:`look_up`.
        kernels: Who does the work.
        sequence_first: Whether the caller goes on with [s, b, ...]: the rows may then lie in that
            order in memory.

    Returns:
        [b, s, tables, width]; zeros for the rows of other parts.
    """

    def find(table: Tensor) -> tuple[Tensor, Tensor]:
        return kernels.hash_and_gather(
            input_ids, starts, constants, table, first, sequence_first=sequence_first
        )

    return _found(weight, find, first, kernels)


def _found(weight: Tensor, find: _Finding, first: int, kernels: Kernels) -> Tensor:
    if not (torch.is_grad_enabled() and weight.requires_grad):
        return find(weight.detach())[0]
    rows: Tensor = _LookUp.apply(weight, find, first, kernels)
    return rows


class _LookUp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, find: _Finding, first: int, kernels: Kernels) -> Tensor:
        rows, indices = find(weight.detach())
        ctx.save_for_backward(indices)
        # Not saved, since backward does not read it: what recomputation or offloading hands back in
        # place of a saved tensor has no `main_grad`, and a table is not to be moved.
        ctx.weight = weight
        ctx.first, ctx.kernels = first, kernels
        return rows

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None, None, None]:
        (indices,) = ctx.saved_tensors
        weight = ctx.weight
        rows = gradients[0]
        if not ctx.needs_input_grad[0]:
            return None, None, None, None
        present = _present_gradient(weight)
        if present is None:
            whole = torch.empty_like(weight)
            huge_pages.advise(whole)
            whole.zero_()
            ctx.kernels.scatter(rows, indices, ctx.first, whole)
            return whole, None, None, None
        ctx.kernels.scatter(rows, indices, ctx.first, present)
        return _nothing(weight), None, None, None


def _present_gradient(weight: Tensor) -> Tensor | None:
    """The gradient to add to in place; None where it must go through autograd."""
    main: Tensor | None = getattr(weight, "main_grad", None)
    if main is not None and hasattr(weight, "grad_added_to_main_grad"):
        weight.grad_added_to_main_grad = True
        return main
    grad = weight.grad
    if grad is None or grad.layout != torch.strided or weight._backward_hooks:
        return None
    return grad if _accumulates(weight) else None


def _accumulates(weight: Tensor) -> bool:
    """Whether the running pass ends in ``weight.grad``, which ``autograd.grad`` does not."""
    try:
        # Not public, but torch's own data parallelism calls it; for a leaf that autograd.grad was
        # called with, it raises.
        return bool(torch._C._will_engine_execute_node(get_gradient_edge(weight).node))
    except RuntimeError:
        return False


def _nothing(weight: Tensor) -> Tensor:
    """A gradient of the weight's shape without elements."""
    return torch.sparse_coo_tensor(
        torch.empty(weight.dim(), 0, dtype=torch.int64, device=weight.device),
        weight.new_empty(0),
        weight.shape,
        check_invariants=True,
    )
