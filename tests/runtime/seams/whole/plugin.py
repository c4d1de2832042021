"""The whole layer's plugin."""

from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_layer import TransformerLayer, TransformerLayerSubmodules

from megatron_seams.hookspecs import hookimpl


class WholeLayer(TransformerLayer):
    """Upstream's layer with nothing but an MLP in it, under a name of its own."""


@hookimpl
def kda_layer(context):
    """Give the layer."""
    mlp = ModuleSpec(
        module=MLP,
        submodules=MLPSubmodules(
            linear_fc1=context.backend.column_parallel_linear(),
            linear_fc2=context.backend.row_parallel_linear(),
        ),
    )
    return ModuleSpec(
        module=WholeLayer,
        submodules=TransformerLayerSubmodules(
            pre_mlp_layernorm=context.backend.layer_norm(), mlp=mlp, mlp_bda=get_bias_dropout_add
        ),
    )
