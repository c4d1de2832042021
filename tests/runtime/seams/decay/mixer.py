"""A sum over the past that decays at a learned rate, each channel by itself."""

import torch
from megatron.core.transformer.module import MegatronModule

from megatron_seams.runtime.mixers import Projections, split_parameter
from megatron_seams.runtime.sharding import ShardedModule


class DecayMixer(ShardedModule, MegatronModule):
    def __init__(
        self,
        config,
        d_model,
        layer_number,
        pg_collection,
        start,
        backend,
        pp_layer_offset=0,
        name=None,
    ):
        super().__init__(config)
        del pp_layer_offset, name
        self.layer_number = layer_number
        self.tp_group = pg_collection.tp
        linears = Projections.of(backend)
        around = {"width": d_model, "config": config, "tp_group": self.tp_group}
        self.in_proj = linears.into({"x": d_model}, **around)
        self.rate = split_parameter(torch.full((d_model,), start), self.tp_group)
        self.out_proj = linears.out_of(d_model, **around)

    def forward(self, hidden_states, inference_context=None, packed_seq_params=None):
        x, _ = self.in_proj(hidden_states)
        starts = [] if packed_seq_params is None else packed_seq_params.cu_seqlens_q.tolist()
        state = torch.zeros_like(x[0])
        if inference_context is not None and inference_context.sequence_len_offset > 0:
            state = inference_context.key_value_memory_dict[self.layer_number]
        states = []
        for at, token in enumerate(x):
            state = token if at in starts else self.rate.sigmoid() * state + token
            states.append(state)
        if inference_context is not None:
            inference_context.key_value_memory_dict[self.layer_number] = state
        return self.out_proj(torch.stack(states))

    def divided(self):
        return {"rate": 0}
