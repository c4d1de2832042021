"""Tables whose rows are divided over the expert-parallel ranks."""

from typing import TYPE_CHECKING, Any

import attrs

from megatron_seams.errors import FeatureInvalid
from megatron_seams.runtime.collectives import size_of
from megatron_seams_ngram.shared_options import Ranks

if TYPE_CHECKING:
    from megatron.core.transformer.transformer_config import TransformerConfig
    from torch.distributed import ProcessGroup


@attrs.frozen(kw_only=True)
class ExpertRanks:
    """The ranks that share tables as they share experts.

    They are data-parallel ranks of everything else: each has a batch of its own. Upstream reduces
    the gradients of experts over ``replicas`` alone, and divides them by the number of all
    data-parallel ranks, so a rank that has the gradients of all its peers' batches has the mean.

    Attributes:
        peers: The ranks that each have a part of the rows: upstream's ``ep``.
        replicas: The ranks that have this rank's part too: upstream's ``expt_dp``.
    """

    peers: "ProcessGroup"
    replicas: "ProcessGroup"


def expert_ranks(
    divided_over: Ranks, groups: Any, *, config: "TransformerConfig", seam: str
) -> ExpertRanks | None:
    """Find the expert-parallel ranks that the rows are divided over.

    Args:
        divided_over: The recipe's.
        groups: Upstream's collection of process groups.
        config: The model's configuration.
        seam: The seam's name, for messages.

    Returns:
        None where the rows are divided over the tensor-parallel ranks, or there is one rank.

    Raises:
        FeatureInvalid: Tensor-parallel ranks, of the model or of experts, beside expert-parallel
            ones: they share a batch, and each would ask for its rows. Or CUDA graphs: how many rows
            are asked for differs from batch to batch.
    """
    if divided_over == "tensor":
        return None
    tensor, experts = size_of(groups.tp), size_of(groups.expt_tp)
    if max(tensor, experts) > 1:
        found = (
            f"{tensor} tensor-parallel ranks of the model and {experts} of each expert; these "
            "share a batch, whose gradients would count more than once"
        )
        raise _invalid(seam, found, "set both sizes to 1")
    if getattr(config, "cuda_graph_impl", "none") != "none":
        found = "CUDA graphs; how many rows a rank asks for differs from batch to batch"
        raise _invalid(seam, found, 'leave cuda_graph_impl at "none"')
    if size_of(groups.ep) == 1:
        return None
    return ExpertRanks(peers=groups.ep, replicas=groups.expt_dp)


def _invalid(seam: str, found: str, advice: str) -> FeatureInvalid:
    return FeatureInvalid(
        asked=f"the tables of {seam} divided over the expert-parallel ranks",
        found=found,
        next=f'{advice}, or have divided-over = "tensor"',
        subject=seam,
        key=f"seams.{seam}.divided-over",
    )
