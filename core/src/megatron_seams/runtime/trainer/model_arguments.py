"""The arguments that a trainer gave upstream's model, compared with a plan's.

A model keeps most of its constructor's arguments under their names; those of rotary embeddings are
read back from what they made.
"""

import inspect
from collections.abc import Iterator
from typing import Any, Final

import torch

from megatron_seams.planning.plan import Plan
from megatron_seams.runtime.compat import HybridModel

#: Arguments that a model keeps under their names.
_KEPT: Final = (
    "vocab_size",
    "max_sequence_length",
    "position_embedding_type",
    "share_embeddings_and_output_weights",
    "fp16_lm_cross_entropy",
    "parallel_output",
)


def argument_differences(model: Any, plan: Plan) -> Iterator[tuple[str, object, object]]:
    """The arguments that a model was not given as its plan has them.

    A setting that the recipe leaves out has the default of upstream's class, which ``build_model``
    takes. An argument without a default (the vocabulary, the longest sequence) is then the run's.

    Args:
        model: Upstream's model, once it has its decoder.
        plan: The plan.

    Yields:
        The argument, its value in the plan, its value in the model.
    """
    for name in _KEPT:
        wanted, found = _wanted(plan, name), getattr(model, name, inspect.Parameter.empty)
        if inspect.Parameter.empty not in (wanted, found) and wanted != found:
            yield name, wanted, found
    rotary = getattr(model, "rotary_pos_emb", None)
    if model.position_embedding_type == "rope" and rotary is not None:
        yield from _rotary_differences(model, rotary, plan)


def _wanted(plan: Plan, name: str) -> Any:
    parameter = inspect.signature(HybridModel.__init__).parameters.get(name)
    default = inspect.Parameter.empty if parameter is None else parameter.default
    return plan.megatron.get(name, default)


def _rotary_differences(
    model: Any, rotary: Any, plan: Plan
) -> Iterator[tuple[str, object, object]]:
    """The same of the arguments of rotary embeddings."""
    wanted = _wanted(plan, "seq_len_interpolation_factor")
    if wanted != rotary.seq_len_interpolation_factor:
        found = rotary.seq_len_interpolation_factor
        yield "seq_len_interpolation_factor", wanted, found
    channels, share = model.config.kv_channels, _wanted(plan, "rotary_percent")
    frequencies = rotary.inv_freq  # [rotated channels / 2]
    rotated = int(channels * share) if share < 1 else channels
    if frequencies.numel() != (rotated + 1) // 2:
        yield "rotary_percent", share, f"{2 * frequencies.numel()} of {channels} channels rotated"
        return
    # The second frequency is base ** (-2 / rotated). A subclass may be a shape without values.
    if frequencies.numel() > 1 and type(frequencies) is torch.Tensor:
        base = _wanted(plan, "rotary_base")
        found = float(frequencies[1].double()) ** (-rotated / 2)
        if abs(found - base) > 1e-3 * base:
            yield "rotary_base", base, round(found)
