"""The state of a recurrent layer in upstream's inference context, and the refusals beside it."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from megatron_seams.errors import Unsupported
from megatron_seams.runtime.decoding import check_context, kept_state, no_dynamic_batching
from megatron_seams.runtime.refusals import Refusals

REFUSALS = Refusals(seam="decay", owner="@lab/recurrent")


def context(offset: int = 0, *, first: int = 0, rows: int = 3, static: bool = True) -> Any:
    """As much of upstream's context as is read."""
    return SimpleNamespace(
        key_value_memory_dict={},
        sequence_len_offset=offset,
        batch_size_offset=first,
        max_batch_size=rows,
        is_static_batching=lambda: static,
    )


def begin(rows: int) -> tuple[Tensor, Tensor]:
    return torch.zeros(2, rows), torch.zeros(4, rows, 5)


def test_a_layer_continues_what_it_wrote_for_the_rows_of_the_call() -> None:
    of = context(first=1)
    a, b = kept_state(of, 7, batch=2, begin=begin)
    assert (a.shape, b.shape) == ((2, 2), (2, 4, 5))
    a.fill_(1.0)
    b.fill_(2.0)
    # In upstream's own form: the batch in the second dimension, and the row before untouched.
    assert of.key_value_memory_dict[7][0].tolist() == [[0, 1, 1], [0, 1, 1]]
    of.sequence_len_offset, of.batch_size_offset = 5, 2
    a, b = kept_state(of, 7, batch=1, begin=begin)
    assert a.tolist() == [[1, 1]]
    assert (b == 2).all()
    of.sequence_len_offset = 0
    a, b = kept_state(of, 7, batch=1, begin=begin)
    assert not a.any()
    assert not b.any()
    assert of.key_value_memory_dict[7][0][:, 1].tolist() == [1, 1]


def test_a_sequence_that_the_layer_has_not_seen_and_too_many_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="token 3, of which layer 7 has seen none; start at"):
        kept_state(context(3), 7, batch=1, begin=begin)
    with pytest.raises(ValueError, match="a batch of 3 at 1 in a context of 3"):
        kept_state(context(first=1), 7, batch=3, begin=begin)


@pytest.mark.parametrize(
    ("of", "others", "what"),
    [
        (context(static=False), {}, "dynamic batching"),
        (context(), {"packed": object()}, "packed sequences"),
        (context(), {"sequence_parallel": True}, "sequence parallelism"),
        (context(), {"context_parallel": True}, "context parallelism"),
    ],
)
def test_what_a_kept_state_cannot_be_combined_with_is_refused(
    of: Any, others: dict[str, Any], what: str
) -> None:
    check_context(context(), None, refusals=REFUSALS)
    packed = others.pop("packed", None)
    asked = f"inference with {what} with seam 'decay', whose manifest does not say that it "
    asked += "supports it"
    then = f"use a static context without it, or ask @lab/recurrent for inference with {what}"
    with pytest.raises(Unsupported) as refused:
        check_context(of, packed, refusals=REFUSALS, **others)
    error = refused.value
    assert (error.code, error.asked, error.found, error.next) == ("SEAM-R06", asked, what, then)


def test_upstreams_dynamic_inference_is_refused_in_the_same_words() -> None:
    error = no_dynamic_batching(REFUSALS)
    assert error.next == (
        "use a static context, or ask @lab/recurrent for inference with dynamic batching"
    )
    assert error.subject == "decay"
