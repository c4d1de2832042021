"""When rows on the host are updated: as the optimizer of the parameters beside them steps.

Two ways, and nobody calls anything for either:

- Upstream's trainer gives the model's configuration its optimizer (``grad_scale_func``). At the
  first forward that trains, the rows become one more of the optimizers that upstream's steps
  (:mod:`.chained`): clipped, logged and scheduled as every other.
- Any other optimizer of torch's is followed by a hook that torch calls after each step: the rows
  are updated by its rule, with its learning rate.
"""

import functools
import warnings
from typing import Any
from weakref import WeakSet

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from megatron_seams.errors import FeatureInvalid
from megatron_seams.runtime.trainer.running import trainers_arguments
from megatron_seams_ngram.host.reduction import reduced
from megatron_seams_ngram.host.refused import cannot
from megatron_seams_ngram.host.stepped import Stepped

#: Tables that were trained and that no optimizer of upstream's has.
_FOLLOWING: WeakSet[Stepped] = WeakSet()
#: Those of them that have a gradient with which no optimizer has stepped, though one has stepped.
_PASSED: WeakSet[Stepped] = WeakSet()


class RowsNotStepped(UserWarning):
    """Gradients of rows were dropped, and the optimizers that stepped do not have their parameters.

    So it is where another wrapper has put parameters of its own in the place of the model's, as
    torch's FSDP does: nobody would update the rows. One optimizer of several may pass by rightly.
    """


def settle(tables: Stepped) -> None:
    """Make sure that somebody updates the rows, before a forward that trains.

    Raises:
        FeatureInvalid: Upstream's optimizer is one that rows on the host cannot be stepped with, or
            its trainer has not told the tables' part of the model which one it is.
    """
    if tables.member is not None:
        return
    scale = getattr(tables.config, "grad_scale_func", None)
    optimizer = getattr(scale, "__self__", None)
    if optimizer is not None:
        from megatron_seams_ngram.host.chained import adopt_and_resume  # imports Megatron

        adopt_and_resume(optimizer, tables)
        _FOLLOWING.discard(tables)
        return
    if trainers_arguments() is not None and any(hasattr(one, "main_grad") for one in tables.beside):
        # It tells the configuration of the first model chunk; until 0.18 others have their own.
        raise cannot(
            tables.seam,
            "upstream's trainer tells this part of the model nothing of its optimizer, so that its "
            "rows would be stepped unclipped",
            "train without virtual stages, or with the tables on the first model chunk",
        )
    if tables.host.has_gradient and _zeroed(tables):
        tables.host.drop()
        if tables in _PASSED:
            message = (
                f"{tables.seam}: gradients of rows on the host were dropped unused: an optimizer "
                "has stepped, and it does not have the parameters beside them"
            )
            warnings.warn(message, RowsNotStepped, stacklevel=3)
    _PASSED.discard(tables)
    _FOLLOWING.add(tables)
    _listen()


def _zeroed(tables: Stepped) -> bool:
    """Whether ``zero_grad`` was called since the last backward pass."""
    return all(
        one.grad is None and not hasattr(one, "main_grad")
        for one in tables.beside
        if one.requires_grad
    )


@functools.cache
def _listen() -> None:
    register_optimizer_step_post_hook(_after_step)


def _after_step(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    """Update the rows of every table whose neighbours this optimizer has stepped."""
    del args, kwargs
    for tables in list(_FOLLOWING):
        if tables.member is not None or not tables.host.has_gradient:
            continue
        if group := _group_of(tables, optimizer):
            tables.host.follow(optimizer, group, seam=tables.seam)
            _step(tables, group)
        else:
            _PASSED.add(tables)


def _group_of(tables: Stepped, optimizer: torch.optim.Optimizer) -> dict[str, Any] | None:
    """The group of the parameters beside the rows; None if this optimizer does not have them."""
    own = {id(one) for one in tables.beside}
    copies = {id(getattr(one, "main_param", None)) for one in tables.beside} - {id(None)}
    for group in optimizer.param_groups:
        # A copy, or as a distributed optimizer has parameters in float32, a slice.
        if any(id(one) in copies or id(one._base) in own for one in group["params"]):
            raise FeatureInvalid(
                asked=f"{tables.seam} with tables on the host, under Megatron's own optimizer",
                found="the model's configuration does not say which one it is",
                next="set config.grad_scale_func = optimizer.scale_loss before the first forward, "
                "as upstream's trainer does",
                subject=tables.seam,
                key=f"seams.{tables.seam}.tables",
            )
        if any(id(one) in own for one in group["params"]):
            found: dict[str, Any] = group
            return found
    return None


def _step(tables: Stepped, group: dict[str, Any]) -> None:
    host = tables.host
    rows, gradient = host.take()
    # Whoever averages the other gradients, Megatron or torch: these nobody else sees.
    rows, gradient = reduced(rows, gradient, host, tables.data_parallel_group())
    host.step(rows, gradient, group)
