"""A linear layer that is whole on every tensor-parallel rank, for the TE-free backend."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

if TYPE_CHECKING:
    from megatron.core.transformer.transformer_config import TransformerConfig


class DuplicatedLinear(nn.Module):
    """A linear layer as Transformer Engine's ``TELinear(parallel_mode="duplicated")``.

    Upstream has no TE-free module of this kind, and its sparse attention's indexer builds nothing
    else. Without a bias, as the indexer wants it.

    Args:
        input_size: Width of the input.
        output_size: Width of the output, whole.
        config: The model's configuration.
        init_method: Fills the weight [output, input] in place.
        bias: False.
        parallel_mode: ``duplicated``.

    Raises:
        ValueError: Another mode, or a bias.
    """

    def __init__(
        self,
        input_size: int,
        output_size: int,
        *,
        config: "TransformerConfig",
        init_method: Callable[[Tensor], Any],
        bias: bool,
        parallel_mode: str,
        **_: Any,
    ) -> None:
        super().__init__()
        if parallel_mode != "duplicated" or bias:
            message = f"parallel_mode {parallel_mode!r} with bias {bias} is not a duplicated linear"
            raise ValueError(message)
        self.weight = nn.Parameter(torch.empty(output_size, input_size, dtype=config.params_dtype))
        if config.perform_initialization:
            init_method(self.weight)

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        """Map [..., input] to [..., output]; the second result is Megatron's place for a bias."""
        return functional.linear(x, self.weight), None
