"""How rows on the host are updated: by the rule of the model's optimizer.

Either those that have a gradient, or all. ``torch.optim.SparseAdam`` has the first rule, and takes
several times as long, since it updates the table and its moments one row after the other. Here the
rows in question are put together, torch's own dense Adam updates them, and they are written back.
All rows are updated a part of the table at a time, so that no gradient of its size is made.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor
from torch.optim.adam import adam

from megatron_seams_ngram.host.refused import cannot
from megatron_seams_ngram.ops import huge_pages
from megatron_seams_ngram.ops.dispatch import HostKernels

#: Adam's moments by upstream's names, which are torch's.
MOMENTS: Final = ("exp_avg", "exp_avg_sq")
#: The optimizers whose rule is Adam or gradient descent, by the name of their class or of a base:
#: torch's, Transformer Engine's and Apex' fused ones, and upstream's that has a part of the
#: parameters on the host. Others, NAdam for one, have the same numbers for another rule.
_OPTIMIZERS: Final = frozenset(
    {"Adam", "AdamW", "FusedAdam", "SGD", "FusedSGD", "HybridDeviceOptimizer"}
)
#: Rows of a part, where all are updated.
PART: Final = 2**16
#: What a group may set, and what else its optimizer would then compute.
_UNUSUAL: Final = {"amsgrad": True, "maximize": True, "bias_correction": False}


class RowRule:
    """Gradient descent, or Adam, of the rows of a table: those that have a gradient, or all.

    Of the rows that have one, Adam moves a row and its moments when it has a gradient, and lets
    both rest otherwise; there is no weight decay, which would have to touch every row. All rows are
    updated as torch's optimizers update a parameter, weight decay included.

    Args:
        weight: [rows, width] on the host.
        optimizer: The model's, whose rule it is.
        group: Its group that has the parameters beside the rows.
        kernels: Gives who reads and writes rows.
        seam: For messages.
        every: Whether a step updates all rows.

    Attributes:
        moments: Adam's, of the weight's shape; none for gradient descent.
        steps: How many were taken.

    Raises:
        FeatureInvalid: The optimizer has another rule, or one that would move every row at every
            step.
    """

    def __init__(
        self,
        weight: Tensor,
        optimizer: object,
        group: Mapping[str, Any],
        *,
        kernels: Callable[[], HostKernels],
        seam: str,
        every: bool = False,
    ) -> None:
        self.moments: dict[str, Tensor] = {}
        self.steps = 0
        self._weight, self._kernels = weight, kernels
        self._every, self._decoupled = every, _decouples(optimizer, group)
        if fault := _fault(optimizer, group):
            raise cannot(seam, fault, "train with Adam, or with SGD without momentum")
        if "betas" in group:
            for name in MOMENTS:
                self.moments[name] = _zeros_like(weight)

    @torch.no_grad()
    def step(self, rows: Tensor, gradient: Tensor, group: Mapping[str, Any]) -> None:
        """Update the rows.

        Args:
            rows: [u] int64, those with a gradient, none twice.
            gradient: [u, width].
            group: The model's, with the rate, betas, epsilon and weight decay of this step.
        """
        tables = (self._weight, *self.moments.values())
        if self._every:
            self._step_all(tables, rows, gradient, group)
        else:
            kernels = self._kernels()
            read = [kernels.gather(table, rows, 0) for table in tables]
            self._move(read, gradient, group, decay=0.0)
            for table, updated in zip(tables, read, strict=True):
                kernels.put(updated, rows, table)
        self.steps += 1

    def _step_all(
        self, tables: Sequence[Tensor], rows: Tensor, gradient: Tensor, group: Mapping[str, Any]
    ) -> None:
        rows, order = rows.sort()
        gradient = gradient[order]
        decay = float(group.get("weight_decay", 0.0))
        if self._decoupled:
            factor, decay = 1 - float(group["lr"]) * decay, 0.0
        for first in range(0, len(self._weight), PART):
            part = [table[first : first + PART] for table in tables]
            begin, end = torch.searchsorted(rows, torch.tensor([first, first + PART])).tolist()
            dense = torch.zeros_like(part[0])
            dense[rows[begin:end] - first] = gradient[begin:end]
            if self._decoupled and factor != 1:
                part[0].mul_(factor)
            self._move(part, dense, group, decay=decay)

    def _move(
        self, read: Sequence[Tensor], gradient: Tensor, group: Mapping[str, Any], *, decay: float
    ) -> None:
        """Move rows and their moments, in place."""
        rate = float(group["lr"])
        if not self.moments:
            if decay:
                gradient = gradient.add(read[0], alpha=decay)
            read[0].add_(gradient, alpha=-rate)
            return
        weight, average, square = ([one] for one in read)
        adam(
            weight,
            [gradient],
            average,
            square,
            [],
            [torch.tensor(float(self.steps))],  # which it counts up itself
            foreach=False,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=rate,
            weight_decay=decay,
            eps=group["eps"],
            maximize=False,
        )

    def resume(self, moments: Mapping[str, Tensor], steps: int) -> None:
        """Go on from moments and steps of another run."""
        for name, own in self.moments.items():
            own.copy_(moments[name])  # nothing where it was read into its place
        self.steps = steps


def _fault(optimizer: object, group: Mapping[str, Any]) -> str | None:
    """Why rows cannot have the rule of an optimizer's group; None if they can."""
    names = {one.__name__ for one in type(optimizer).__mro__}
    if not names & _OPTIMIZERS:
        return f"the optimizer is a {type(optimizer).__name__}; rows have Adam's rule or SGD's"
    if group.get("momentum"):
        return "momentum has no sparse form: it would move every row at every step"
    for name, value in _UNUSUAL.items():
        if name in group and bool(group[name]) is value:
            return f"the optimizer has {name} = {value}; rows have the usual rule"
    return None


def _decouples(optimizer: object, group: Mapping[str, Any]) -> bool:
    """Whether an optimizer takes weight decay off the weight, and not into the gradient."""
    if "decoupled_weight_decay" in group:  # torch's Adam and AdamW
        return bool(group["decoupled_weight_decay"])
    if hasattr(optimizer, "adam_w_mode"):  # Transformer Engine's and Apex' Adam
        return bool(optimizer.adam_w_mode)
    names = {one.__name__ for one in type(optimizer).__mro__}
    # Upstream takes the last with such a decay alone.
    return bool(names & {"AdamW", "HybridDeviceOptimizer"})


def _zeros_like(weight: Tensor) -> Tensor:
    zeros = torch.empty_like(weight)
    huge_pages.advise(zeros)
    return zeros.zero_()
