"""The loss that sparse attention's indexer is trained with, as upstream's trainer takes it."""

from collections.abc import Iterator
from typing import Final

from megatron_seams.errors import UpstreamForbids
from megatron_seams.planning.plan import Custom, Layer, Plan

#: The factor of that loss; without it upstream computes none.
LOSS: Final = "dsa_indexer_loss_coeff"


def waiting_ranks(plan: Plan) -> Iterator[UpstreamForbids]:
    """A fault where some pipeline ranks would wait for the others for ever.

    Before it prints a loss, upstream's trainer sums the indexers' losses over all pipeline ranks,
    and a rank without such a layer takes no part in the sum
    (``DSAIndexerLossLoggingHelper.reduce_loss_in_tracker``, 0.17 to 0.19).
    """
    indexed = _indexed(plan)
    without = sorted(set(range(plan.pipeline.ranks)) - {layer.rank for layer in indexed})
    if plan.megatron.get(LOSS) and indexed and without:
        yield UpstreamForbids(
            asked=f"[megatron] {LOSS} = {plan.megatron[LOSS]} on {plan.pipeline.ranks} pipeline "
            "ranks",
            found=f"pipeline rank {', '.join(map(str, without))} has no layer with an indexer, and "
            "upstream's trainer then hangs in its first iteration: the other ranks wait for it to "
            "sum the indexers' losses",
            next="write stages with | in model.pattern, so that every rank has such a layer, or "
            f"leave {LOSS} out",
            key=f"megatron.{LOSS}",
        )


def untrained(plan: Plan) -> Iterator[str]:
    """A note where nothing trains the indexers."""
    if (indexed := _indexed(plan)) and not plan.megatron.get(LOSS):
        yield (
            f"nothing trains the indexer of layers {', '.join(str(at.position) for at in indexed)}:"
            f" without [megatron] {LOSS} its weights have no gradient, and --overlap-grad-reduce, "
            "which waits for every weight's, fails after the first iteration"
        )


def _indexed(plan: Plan) -> list[Layer]:
    """The decoder's layers of upstream's sparse attention."""
    return [
        layer
        for layer in plan.layers
        if layer.family == "dsa" and not isinstance(layer.provider, Custom)
    ]
