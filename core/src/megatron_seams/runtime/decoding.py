"""Decoding with a kept state: what a recurrent layer leaves in upstream's inference context.

Upstream's static context has a dictionary from layer number to a pair of tensors, the keys and
values of attention. A recurrent layer keeps its own pair there: what it needs of the tokens seen so
far, to continue from them. Its forward calls :func:`check_context` first and :func:`kept_state`
once the batch is known, reads the pair as the state before its tokens, and writes the state after
them in place.

Importing this module imports torch and not Megatron.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import Tensor

from megatron_seams.errors import Unsupported
from megatron_seams.runtime.refusals import Refusals

if TYPE_CHECKING:
    from megatron.core.inference.contexts import StaticInferenceContext
    from megatron.core.packed_seq_params import PackedSeqParams


def check_context(
    context: Any,
    packed: "PackedSeqParams | None",
    *,
    refusals: Refusals,
    sequence_parallel: bool = False,
    context_parallel: bool = False,
) -> None:
    """Refuse what a kept state cannot be combined with.

    Args:
        context: Upstream's inference context.
        packed: Megatron's description of a packed row; None where nothing is packed.
        refusals: The seam's.
        sequence_parallel: Whether several ranks have pieces of the sequence between layers.
        context_parallel: Whether several ranks have pieces of it everywhere.

    Raises:
        Unsupported: A context of dynamic batching, packed sequences, or a divided sequence.
    """
    refused = {
        "dynamic batching": not context.is_static_batching(),
        "packed sequences": packed is not None,
        "sequence parallelism": sequence_parallel,
        "context parallelism": context_parallel,
    }
    for what, so in refused.items():
        if so:
            raise refusals.unsupported(
                f"inference with {what}", found=what, then="use a static context without it"
            )


def no_dynamic_batching(refusals: Refusals) -> Unsupported:
    """Make the refusal for a mixer's ``mamba_state_shapes_per_request``.

    Upstream's dynamic inference calls that method to ask for the shapes of the states.
    """
    what = "dynamic batching"
    return refusals.unsupported(f"inference with {what}", found=what, then="use a static context")


def kept_state(
    context: "StaticInferenceContext",
    layer_number: int,
    *,
    batch: int,
    begin: Callable[[int], tuple[Tensor, Tensor]],
) -> tuple[Tensor, Tensor]:
    """Find what a layer keeps in upstream's inference context, or begin it.

    It is in the same dictionary as upstream's own, as a pair with the batch in the second
    dimension, so that upstream's ``swap_key_value_dict`` reorders it too.

    Args:
        context: The context; at its ``sequence_len_offset`` 0 a sequence begins, and the pair is
            set to zero.
        layer_number: The 1-based global number of the layer.
        batch: The rows of this call.
        begin: Makes the pair for so many rows: tensors of zeros, [_, rows, ...] each.

    Returns:
        Both tensors of the call's rows, [batch, _, ...]: views, to be written in place.

    Raises:
        ValueError: The context continues a sequence that this layer has not seen, or the batch is
            larger than the context.
    """
    memory: dict[int, Any] = context.key_value_memory_dict
    begins = context.sequence_len_offset == 0
    if layer_number not in memory:
        if not begins:
            message = (
                f"the inference context is at token {context.sequence_len_offset}, of which layer "
                f"{layer_number} has seen none; start at token 0"
            )
            raise ValueError(message)
        memory[layer_number] = begin(context.max_batch_size)
    start = context.batch_size_offset
    first, second = (part[:, start : start + batch] for part in memory[layer_number])
    if first.shape[1] < batch:
        message = f"a batch of {batch} at {start} in a context of {context.max_batch_size}"
        raise ValueError(message)
    if begins:
        first.zero_()
        second.zero_()
    return first.transpose(0, 1), second.transpose(0, 1)
