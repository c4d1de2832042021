"""How rows on the host are updated: those with a gradient, by the rule of the model's optimizer.

``torch.optim.SparseAdam`` has the same rule, and takes several times as long, since it updates the
table and its moments one row after the other. Here the rows in question are put together, torch's
own dense Adam updates them, and they are written back.
"""

from collections.abc import Callable, Mapping
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
#: What a group may set, and what else its optimizer would then compute.
_UNUSUAL: Final = {"amsgrad": True, "maximize": True, "bias_correction": False}


class RowRule:
    """Gradient descent, or Adam, of the rows of a table that have a gradient.

    Adam moves a row and its moments when it has a gradient, and lets both rest otherwise. There is
    no weight decay, which would have to touch every row.

    Args:
        weight: [rows, width] on the host.
        optimizer: The model's, whose rule it is.
        group: Its group that has the parameters beside the rows.
        kernels: Gives who reads and writes rows.
        seam: For messages.

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
    ) -> None:
        self.moments: dict[str, Tensor] = {}
        self.steps = 0
        self._weight, self._kernels = weight, kernels
        if fault := _fault(optimizer, group):
            raise cannot(seam, fault, "train with Adam, or with SGD without momentum")
        if "betas" in group:
            for name in MOMENTS:
                self.moments[name] = _zeros_like(weight)

    @torch.no_grad()
    def step(self, rows: Tensor, gradient: Tensor, group: Mapping[str, Any]) -> None:
        """Update some rows.

        Args:
            rows: [u] int64, none twice.
            gradient: [u, width].
            group: The model's, with the rate, betas and epsilon of this step.
        """
        kernels, rate = self._kernels(), float(group["lr"])
        tables = (self._weight, *self.moments.values())
        read = [kernels.gather(table, rows, 0) for table in tables]
        if not self.moments:
            read[0].add_(gradient, alpha=-rate)
        else:
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
                weight_decay=0.0,
                eps=group["eps"],
                maximize=False,
            )
        for table, updated in zip(tables, read, strict=True):
            kernels.put(updated, rows, table)
        self.steps += 1

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


def _zeros_like(weight: Tensor) -> Tensor:
    zeros = torch.empty_like(weight)
    huge_pages.advise(zeros)
    return zeros.zero_()
