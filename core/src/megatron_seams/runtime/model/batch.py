"""The batch of the running forward, for features that upstream does not pass it to."""

import inspect
from collections.abc import Mapping
from typing import Any

import attrs
from torch import Tensor, nn

from megatron_seams.errors import FeatureInvalid
from megatron_seams.runtime.documents import packed_cu_seqlens


@attrs.define(kw_only=True, eq=False)
class Batch:
    """The arguments of the model's forward that features read.

    Its hooks are bound methods, so that a model copied by ``copy.deepcopy`` gets hooks of a copied
    batch; closures would go on filling the original.

    Attributes:
        features: The names of the features that read it, for messages.
        input_ids: [b, s] int64; None outside of a forward.
        cu_seqlens: The document boundaries, [documents + 1] int32; None outside of a forward, and
            in one without packed sequences.
        enriched: By a feature's name, what it last added to the word embedding in this forward.
    """

    features: tuple[str, ...]
    input_ids: Tensor | None = None
    cu_seqlens: Tensor | None = None
    enriched: dict[str, Tensor] = attrs.field(factory=dict)

    def watch(self, model: nn.Module) -> None:
        """Let every forward of ``model``, upstream's model or one stage of it, fill the batch."""
        model.register_forward_pre_hook(self.enter, with_kwargs=True)
        model.register_forward_hook(self.leave, always_call=True)

    def enter(self, model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Note the batch of this forward.

        Raises:
            FeatureInvalid: The forward is one of inference, with a part of the text's ids.
        """
        self.enriched.clear()
        given = inspect.signature(model.forward).bind_partial(*args, **kwargs).arguments
        if given.get("inference_context") is None and given.get("inference_params") is None:
            self.input_ids = given.get("input_ids")
            self.cu_seqlens = packed_cu_seqlens(given.get("packed_seq_params"))
            return
        names = ", ".join(self.features)
        raise FeatureInvalid(
            asked=f"a forward with an inference context, with {names}",
            found="no feature keeps the ids of earlier steps, so that its windows would be cut",
            next="give the whole text in one forward without an inference context",
            subject=names,
        )

    def leave(self, model: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Clear the batch, so that no later call reads it."""
        del model, args, output
        self.input_ids = self.cu_seqlens = None
        self.enriched.clear()
