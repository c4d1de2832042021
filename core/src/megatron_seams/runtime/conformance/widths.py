"""The rule of fp8: widths that it takes on each rank, or a refusal when the model is built."""

from typing import TYPE_CHECKING, Final

import attrs

from megatron_seams.errors import Refusal
from megatron_seams.planning.plan import Plan
from megatron_seams.runtime.conformance.models import build, parts
from megatron_seams.runtime.conformance.rules import WIDTHS, RuleBroken
from megatron_seams.runtime.model.fp8 import MULTIPLE, linear_widths
from megatron_seams.runtime.model.refused import refusal_behind

if TYPE_CHECKING:
    from megatron.core.process_groups_config import ProcessGroupCollection

    from megatron_seams.runtime.compat import HybridModel

_FORMAT: Final = "hybrid"


@attrs.frozen(kw_only=True)
class Widths:
    """A seam's linears on one rank, under fp8.

    Attributes:
        odd: The linears whose widths fp8 does not take, in words; empty if it takes all.
        refused: Whether a model with fp8 is refused for them when it is built.
    """

    odd: str = ""
    refused: bool = False


def widths_under_fp8(
    model: "HybridModel", plan: Plan, groups: "ProcessGroupCollection", **stage: bool
) -> Widths:
    """Compare the linears that a seam has after a pass with the answer of a build under fp8.

    All ranks call this; a model with fp8 is built and never run, so no GPU is needed.

    Args:
        model: The small model, which has computed something: linears made on the way are there.
        plan: Its plan.
        groups: The process groups.
        **stage: ``pre_process`` and ``post_process``, as the model has them.
    """
    odd = {
        f"{part.key}.{name}".rstrip("."): shape
        for part in parts(model, plan)
        for name, shape in linear_widths(part.module)
        if any(width % MULTIPLE for width in shape)
    }
    refused = _is_refused(plan, groups, **stage)
    words = ", ".join(f"{name} with {rows} x {columns}" for name, (rows, columns) in odd.items())
    return Widths(odd=words, refused=refused)


def _is_refused(plan: Plan, groups: "ProcessGroupCollection", **stage: bool) -> bool:
    asked = attrs.evolve(plan, megatron={**plan.megatron, "fp8": _FORMAT})
    try:
        build(asked, groups, **stage)
    except RuleBroken as broken:
        refusal = refusal_behind(broken)
        reasons = refusal.reasons if isinstance(refusal, Refusal) else ()
        return any(reason.subject == "fp8" for reason in reasons)
    return False


def check_widths(ranks: str, found: Widths) -> str:
    """The linears for which a model with fp8 is refused, in words; empty if fp8 takes all.

    Raises:
        RuleBroken: fp8 does not take them, and the model is built.
    """
    if found.odd and not found.refused:
        WIDTHS.broken(f"on {ranks} {found.odd}, and a model with fp8 is built")
    return f"on {ranks} {found.odd}" if found.odd else ""
