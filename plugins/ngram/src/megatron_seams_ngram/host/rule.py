"""The sparse form of an optimizer's rule, for rows of which few have a gradient."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from megatron_seams.errors import FeatureInvalid

#: What a rule takes over from the optimizer that it follows, before every step.
_FOLLOWED = ("lr", "betas", "eps")


def sparse_rule(weight: Tensor, group: Mapping[str, Any], *, seam: str) -> torch.optim.Optimizer:
    """Make the optimizer of the rows: torch's own, by what the model's is.

    Adam becomes ``torch.optim.SparseAdam``: a row's moments move when it has a gradient and rest
    otherwise. Gradient descent stays what it is. Neither has weight decay, which would have to
    touch every row.

    Args:
        weight: The rows.
        group: The group of the model's optimizer that decides.
        seam: For messages.

    Raises:
        FeatureInvalid: A rule without a sparse form.
    """
    if "betas" in group:
        return torch.optim.SparseAdam([weight], lr=float(group["lr"]), **_adam(group))
    if "momentum" in group and not group["momentum"]:
        return torch.optim.SGD([weight], lr=float(group["lr"]))
    asked = "momentum" if "momentum" in group else "this optimizer"
    raise FeatureInvalid(
        asked=f"{seam} with tables on the host",
        found=f"{asked} has no sparse form: it would move every row at every step",
        next='train with Adam, or with SGD without momentum; or have tables = "device"',
        subject=seam,
        key=f"seams.{seam}.tables",
    )


def take_over(rule: torch.optim.Optimizer, group: Mapping[str, Any]) -> None:
    """Give the rule the numbers that the model's optimizer has at this step.

    Adam adds epsilon to √v / √(1 - β₂ᵗ), and torch's sparse form to √v. So it is given epsilon
    times √(1 - β₂ᵗ), with which the two are one formula.
    """
    for own in rule.param_groups:
        own.update({name: group[name] for name in _FOLLOWED if name in own and name in group})
        own["lr"] = float(own["lr"])
        if "eps" in own:
            (weight,) = own["params"]
            step = 1 + int(rule.state[weight].get("step", 0))
            own["eps"] *= math.sqrt(1 - own["betas"][1] ** step)


def _adam(group: Mapping[str, Any]) -> dict[str, Any]:
    return {"betas": tuple(group["betas"]), "eps": group["eps"]}
