"""Run as a script against a Megatron before 0.19: train the seam's layer in that release's stack.

    python older_megatron.py FILE

Writes to FILE, for each slot and variant, the state dict after a few steps, an input and its
output. The variant is ``dsa`` where the configuration also holds native sparse attention, or None.
"""

import sys
from typing import Any

import torch
from megatron.core.models.backends import LocalSpecProvider
from megatron.core.package_info import __version__
from megatron.core.transformer.transformer_config import MLATransformerConfig
from packaging.version import Version

from megatron_seams.hookspecs import LayerContext
from megatron_seams.runtime.core_attention import LocalCoreAttention
from megatron_seams.runtime.cpu import cpu_world
from megatron_seams.runtime.norm import LocalNorm
from megatron_seams_mla.plugin import mla_layer

try:
    from megatron.core.models.hybrid.hybrid_block import HybridStack, HybridStackSubmodules
except ModuleNotFoundError:  # 0.17
    from megatron.core.ssm.mamba_block import MambaStack as HybridStack
    from megatron.core.ssm.mamba_block import MambaStackSubmodules as HybridStackSubmodules

SETTINGS: dict[str, Any] = {
    "num_layers": 1,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "q_lora_rank": 12,
    "kv_lora_rank": 8,
    "qk_head_dim": 8,
    "qk_pos_emb_head_dim": 4,
    "v_head_dim": 8,
    "rope_type": "rope",
    "normalization": "RMSNorm",
    "qk_layernorm": True,
    "add_bias_linear": False,
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
    "use_cpu_initialization": True,
    "gradient_accumulation_fusion": False,
    "masked_softmax_fusion": False,
    "bias_dropout_fusion": False,
    "apply_rope_fusion": False,
}
SYMBOLS = {"attention_layer": "*", "mamba_layer": "M"}


class Provider(LocalSpecProvider):  # type: ignore[misc]  # Megatron ships no types
    """The runtime's own cannot be imported below 0.18."""

    def layer_norm(self, **_: Any) -> type[LocalNorm]:
        return LocalNorm

    def core_attention(self) -> type[LocalCoreAttention]:
        return LocalCoreAttention


def train(slot: str, variant: str | None) -> dict[str, Any]:
    config = MLATransformerConfig(**SETTINGS)
    # Past the constructor, which would want the indexer's sizes too.
    config.experimental_attention_variant = variant
    with cpu_world() as pg_collection:
        spec = mla_layer(
            LayerContext(
                config=config,
                options=None,
                megatron_version=Version(__version__),
                backend=Provider(),
                pg_collection=pg_collection,
                slot=slot,
                layer_numbers=(1,),
            )
        )
        stack = HybridStack(
            config,
            HybridStackSubmodules(**{slot: spec}),
            layer_type_list=[SYMBOLS[slot]],
            post_layer_norm=False,
            pg_collection=pg_collection,
        )
        hidden = torch.randn(6, 2, config.hidden_size)
        optimizer = torch.optim.SGD(stack.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            stack(hidden, attention_mask=None).square().mean().backward()
            optimizer.step()
        with torch.no_grad():
            output = stack(hidden, attention_mask=None)
        return {"state": stack.state_dict(), "hidden": hidden, "output": output}


if __name__ == "__main__":
    runs = {(slot, variant): train(slot, variant) for slot in SYMBOLS for variant in (None, "dsa")}
    torch.save({"version": __version__, "settings": SETTINGS, "runs": runs}, sys.argv[1])
