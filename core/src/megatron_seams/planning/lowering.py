"""Lowering: the pattern for Megatron, which spells a seam's layer as its carrier."""

from megatron_seams.planning.plan import Plan
from megatron_seams.recipes.pattern import MTP_SEPARATOR, STAGE_BREAK
from megatron_seams.recipes.pipeline import written_stages


def lowered_pattern(plan: Plan) -> str:
    """The pattern for ``--hybrid-layer-pattern``: a seam's layer is spelled as its carrier.

    The families are in the plan and the receipt alone: in this string R and M look the same.
    """
    symbols = "".join(layer.provider.symbol for layer in plan.layers)
    stages = [symbols[part] for part in written_stages(plan.pattern).slices()]
    mtp = "".join(layer.provider.symbol for layer in plan.mtp)
    return MTP_SEPARATOR.join([STAGE_BREAK.join(stages), *[mtp] * plan.pattern.mtp_depths])
