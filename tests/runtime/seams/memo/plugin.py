"""The residual feature's plugin."""

import torch

from megatron_seams.hookspecs import hookimpl


class TokenBias(torch.nn.Module):
    """A vector for each token; keeps what it was called with, for the tests."""

    def __init__(self, context):
        super().__init__()
        self.table = torch.nn.Embedding(context.vocab_size, context.config.hidden_size)
        self.layer_number, self.layer_numbers = context.layer_number, context.layer_numbers
        self.seen = []

    def forward(self, hidden_states, input_ids, cu_seqlens=None):
        self.seen.append((hidden_states, cu_seqlens))
        return self.table(input_ids).transpose(0, 1)


@hookimpl
def engram_feature(context):
    """Give the module of one layer."""
    return TokenBias(context)
