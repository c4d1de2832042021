"""The mixer's plugin."""

import torch
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.spec_utils import ModuleSpec

from megatron_seams.hookspecs import hookimpl


class RunningMean(MegatronModule):
    """The mean of what came before, mapped linearly."""

    def __init__(self, config, d_model, layer_number, pg_collection, pp_layer_offset=0, name=None):
        super().__init__(config)
        del pg_collection, name
        self.layer_number = layer_number
        self.pp_layer_offset = pp_layer_offset
        self.out = torch.nn.Linear(d_model, d_model, bias=False)

    def forward(self, hidden_states, inference_context=None, packed_seq_params=None):
        del inference_context, packed_seq_params
        count = torch.arange(1, hidden_states.size(0) + 1).view(-1, 1, 1)
        return self.out(hidden_states.cumsum(0) / count), None


@hookimpl
def recurrent_layer(context):
    """Give the mixer; core wraps it in upstream's MambaLayer."""
    assert context.slot == "mamba_layer"
    return ModuleSpec(module=RunningMean)
