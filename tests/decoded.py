"""Recurrent decoding: steps through a layer's kept state are the whole sequence at once.

A plugin's tests derive a class from :class:`Decoded` and give it a model.
"""

import contextlib
import importlib
from types import SimpleNamespace
from typing import Any, Final

import pytest
import torch
from torch import Tensor

from megatron_seams.errors import Unsupported

LENGTH: Final = 12
VOCABULARY: Final = 64
IDS: Final = torch.randint(0, VOCABULARY, (2, LENGTH), generator=torch.Generator().manual_seed(3))
#: The sizes of the model; its seams and its pattern are the plugin's.
SETTINGS: Final = {
    "vocab_size": VOCABULARY,
    "max_sequence_length": 32,
    "hidden_size": 32,
    "ffn_hidden_size": 64,
    "num_attention_heads": 4,
    "hidden_dropout": 0.0,
}


def moved(model: Any) -> Any:
    """The model for inference, its weights moved away from their beginning."""
    for parameter in model.parameters():
        parameter += 0.1 * torch.randn_like(parameter)
    return model.eval()


def static_context(batch: int = 2) -> Any:
    """Upstream's context for so many rows."""
    from megatron.core.inference.contexts import StaticInferenceContext

    context = StaticInferenceContext(max_batch_size=batch, max_sequence_length=LENGTH)
    context.config.materialize_only_last_token_logits = False
    return context


def logits(model: Any, ids: Tensor, context: Any = None, begin: int = 0) -> Tensor:
    """Run the model; with a context, as an engine of upstream's does."""
    utils = importlib.import_module("megatron.core.inference.utils")
    # Since 0.18 an engine says that it is at work; before, the context alone did.
    mode = getattr(utils, "InferenceMode", None) if context is not None else None
    positions = torch.arange(begin, begin + ids.shape[1]).expand_as(ids)
    with mode.active() if mode else contextlib.nullcontext():
        out: Tensor = model(
            ids, positions, None, inference_context=context, runtime_gather_output=True
        )
    return out


def steps(model: Any, ids: Tensor, sizes: list[int], context: Any) -> Tensor:
    """Feed ``ids`` in pieces, as upstream's generation does."""
    outs = []
    for piece in ids.split(sizes, dim=1):
        outs.append(logits(model, piece, context, context.sequence_len_offset))
        context.increment_sequence_len_offset(piece.shape[1])
    return torch.cat(outs, dim=1)


class Decoded:
    """Tests of a model whose first layer is the plugin's, from a fixture ``model``."""

    @pytest.mark.parametrize(
        "sizes",
        [[1] * LENGTH, [7] + [1] * (LENGTH - 7), [5, 2, 5]],
        ids=["ones", "prompt", "chunks"],
    )
    def test_steps_through_the_state_are_the_whole_forward(
        self, model: Any, sizes: list[int]
    ) -> None:
        found = steps(model, IDS, sizes, static_context())
        torch.testing.assert_close(found, logits(model, IDS), atol=1e-5, rtol=0)
        # The whole sequence matters, so that a state that was lost would be seen.
        assert not torch.allclose(found[:, -1:], logits(model, IDS[:, -1:]), atol=1e-3)

    def test_a_context_that_is_reset_begins_a_new_sequence(self, model: Any) -> None:
        context = static_context()
        first = steps(model, IDS, [4, 1, 1, 1, 5], context)
        context.reset()
        assert torch.equal(steps(model, IDS, [4, 1, 1, 1, 5], context), first)

    def test_upstreams_swap_of_the_batch_takes_the_state_along(self, model: Any) -> None:
        context = static_context()
        steps(model, IDS[:, :8], [8], context)
        context.swap_key_value_dict([1, 0])
        found = steps(model, IDS[[1, 0], 8:], [1] * 4, context)
        expected = logits(model, IDS[[1, 0]])[:, 8:]
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)

    def test_a_part_of_the_batch_keeps_a_part_of_the_state(self, model: Any) -> None:
        context = static_context()
        for begin, size in ((0, 6), (6, 1), (7, 5)):
            context.sequence_len_offset = begin
            for one in range(2):
                context.batch_size_offset = one
                found = logits(model, IDS[one : one + 1, begin : begin + size], context, begin)
                expected = logits(model, IDS[one : one + 1])[:, begin : begin + size]
                torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)

    def test_what_a_state_cannot_be_combined_with_is_refused(self, model: Any) -> None:
        from megatron.core.packed_seq_params import PackedSeqParams

        mixer = model.decoder.layers[0].mixer
        hidden = torch.randn(4, 1, 32)
        dynamic = SimpleNamespace(is_static_batching=lambda: False)
        with pytest.raises(Unsupported, match=r"SEAM-R06.*dynamic batching"):
            mixer(hidden, inference_context=dynamic)
        with pytest.raises(Unsupported, match="dynamic batching"):
            model.decoder.layers[0].mamba_state_shapes_per_request()
        context = static_context(batch=1)
        packed = PackedSeqParams(qkv_format="thd", cu_seqlens_q=torch.tensor([0, 2, 4]))
        with pytest.raises(Unsupported, match="packed sequences"):
            mixer(hidden, inference_context=context, packed_seq_params=packed)
        with pytest.raises(Unsupported, match="without cu_seqlens_q"):
            mixer(hidden, packed_seq_params=PackedSeqParams(qkv_format="thd"))
        with pytest.raises(Unsupported, match="packed rows in a batch of 2"):
            mixer(torch.randn(4, 2, 32), packed_seq_params=packed)

    def test_a_context_that_continues_the_unseen_is_refused(self, model: Any) -> None:
        context = static_context(batch=1)
        context.increment_sequence_len_offset(3)
        mixer = model.decoder.layers[0].mixer
        with pytest.raises(ValueError, match="layer 1 has seen none"):
            mixer(torch.randn(1, 1, 32), inference_context=context)
        context.reset()
        with pytest.raises(ValueError, match="batch of 2"):
            mixer(torch.randn(1, 2, 32), inference_context=context)
