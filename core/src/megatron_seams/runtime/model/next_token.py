"""A batch of rows whose every token is predicted from those before it."""

from typing import Any

import attrs
import torch
from torch import Tensor


@attrs.frozen(kw_only=True, eq=False)  # a tensor's own == compares elements
class NextTokenBatch:
    """The tokens that a model reads, and those that it must predict at each position.

    Attributes:
        inputs: [b, s] int64, all tokens but the last.
        labels: [b, s] int64, all tokens but the first.
        positions: [b, s] int64, each token's place in its row.
    """

    inputs: Tensor
    labels: Tensor
    positions: Tensor

    @classmethod
    def of(cls, tokens: Tensor) -> "NextTokenBatch":
        """Cut rows of tokens, [b, s + 1] int64."""
        inputs, labels = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
        return cls(inputs=inputs, labels=labels, positions=token_positions(inputs))

    def forward(self) -> dict[str, Any]:
        """The arguments of upstream's model for the logits, [b, s, v]."""
        return {
            "input_ids": self.inputs,
            "position_ids": self.positions,
            "attention_mask": None,  # causal by construction
        }

    def training(self) -> dict[str, Any]:
        """The arguments of upstream's model for the losses, [b, s]."""
        # Upstream reads the mask where there are depths of multi-token prediction.
        mask = torch.ones(self.labels.shape)
        return {**self.forward(), "labels": self.labels, "loss_mask": mask}


def token_positions(inputs: Tensor) -> Tensor:
    """The place of each token of ``inputs`` [b, s] in its row, [b, s] int64."""
    return torch.arange(inputs.shape[1]).expand_as(inputs)
