"""The differences between Megatron-Core releases; no other module of the runtime depends on them.

Every name here answers to one fact of upstream. Its comment gives the fact, and the release with
which the name can go. The rest of the runtime imports from here whatever moved or will move.
"""

import dataclasses
import functools
import inspect
from collections.abc import Mapping
from typing import Any, Final

from megatron.core.transformer.experimental_attention_variant.absorbed_mla import (
    AbsorbedMLASelfAttention,
    AbsorbedMLASelfAttentionSubmodules,
)
from megatron.core.transformer.experimental_attention_variant.dsa import (
    DSAIndexerLossLoggingHelper,
)
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.multi_latent_attention import (
    MLASelfAttention,
    MLASelfAttentionSubmodules,
)
from megatron.core.transformer.multi_token_prediction import MTPLossLoggingHelper
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_config import TransformerConfig

# Fact: the hybrid classes live in `models/hybrid` under these names since 0.18; before, they are
# called `Mamba...` and live in `ssm` and `models/mamba`. Goes: with 0.17.
try:
    from megatron.core.models.hybrid.hybrid_block import HybridStack, HybridStackSubmodules
    from megatron.core.models.hybrid.hybrid_layer_specs import hybrid_stack_spec
    from megatron.core.models.hybrid.hybrid_model import HybridModel
except ModuleNotFoundError:
    from megatron.core.models.mamba.mamba_layer_specs import mamba_stack_spec as hybrid_stack_spec
    from megatron.core.models.mamba.mamba_model import MambaModel as HybridModel
    from megatron.core.ssm.mamba_block import MambaStack as HybridStack
    from megatron.core.ssm.mamba_block import MambaStackSubmodules as HybridStackSubmodules

# Fact: the losses of experts' routers are recorded by an object of `moe.moe_logging` since 0.18;
# before, in a dictionary that is never replaced. Goes: with 0.17.
try:
    from megatron.core.transformer.moe.moe_logging import (
        destroy_moe_metrics_tracker as _forget_router_losses,
    )
except ModuleNotFoundError:
    from megatron.core.transformer.moe.moe_utils import get_moe_layer_wise_logging_tracker

    _forget_router_losses = get_moe_layer_wise_logging_tracker().clear

# Fact: the hybrid stack's sparse attention selects for `AbsorbedMLASelfAttention` since 0.19;
# before, for `MLASelfAttention`, whose submodules have the same names. The class exists before it
# is used there, with other projections. Goes: with 0.18.
if "linear_kv_up_proj" in AbsorbedMLASelfAttentionSubmodules.__dataclass_fields__:
    SparseSelfAttention = AbsorbedMLASelfAttention
    SparseSelfAttentionSubmodules = AbsorbedMLASelfAttentionSubmodules
else:
    SparseSelfAttention = MLASelfAttention
    SparseSelfAttentionSubmodules = MLASelfAttentionSubmodules

#: Fact: sparse attention's indexer rotates its inputs by a Hadamard transform, whose kernel is a
#: package of its own and takes bfloat16 on CUDA alone; since 0.19 this setting turns it off. Empty
#: where it cannot be turned off. Goes: with 0.18.
NO_ROTATION: Final[Mapping[str, Any]] = (
    {"dsa_indexer_rotate_activation": False}
    if "dsa_indexer_rotate_activation" in TransformerConfig.__dataclass_fields__
    else {}
)

_MODEL_ARGUMENTS: Final = frozenset(inspect.signature(HybridModel.__init__).parameters)

#: Fact: the model's argument for its stack has this name since 0.18; before, it is
#: `mamba_stack_spec`. Goes: with 0.17.
STACK_ARGUMENT: Final = (
    "hybrid_stack_spec" if "hybrid_stack_spec" in _MODEL_ARGUMENTS else "mamba_stack_spec"
)

__all__ = [
    "ALWAYS_PASSED",
    "GLOBAL_NUMBERS",
    "NO_ROTATION",
    "STACK_ARGUMENT",
    "HybridModel",
    "HybridStack",
    "HybridStackSubmodules",
    "SparseSelfAttention",
    "SparseSelfAttentionSubmodules",
    "build_hybrid_model",
    "dense_mlp",
    "forget_logged_losses",
    "hybrid_stack_spec",
    "native_submodules",
]

#: Fact: since 0.17 every slot is built with these keywords; what else is passed differs from slot
#: to slot and from release to release (`name` and `pp_layer_offset` come and go, `mla_layer` has no
#: `name` in 0.19). Goes: when upstream passes the same keywords to every slot.
ALWAYS_PASSED: Final = frozenset({"config", "layer_number", "pg_collection", "submodules"})

#: Fact: `TransformerLayer` adds its stage's offset to `layer_number` unless it is told not to, and
#: the `mamba_layer` slot does not tell it, because a `MambaLayer` never adds one; the stack's own
#: numbers are global. Goes: when no layer of upstream's takes the keyword.
GLOBAL_NUMBERS: Final = "add_layer_offset"


def native_submodules(**slots: Any) -> HybridStackSubmodules:
    """Upstream's submodules with the given slots, less those that this release does not have.

    Fact: `mla_layer` exists since 0.19, `dsa_layer` since 0.18. Goes: when 0.19 is the oldest
    release supported.
    """
    known = {field.name for field in dataclasses.fields(HybridStackSubmodules)}
    return HybridStackSubmodules(**{slot: spec for slot, spec in slots.items() if slot in known})


def dense_mlp(submodules: MLPSubmodules) -> Any:
    """Upstream's dense MLP in the form that a layer takes as its ``mlp``.

    Fact: since 0.18 a layer calls its ``mlp`` with further keywords, which `MLP.as_mlp_submodule`
    takes; before, it builds a spec. Goes: with 0.17.
    """
    if hasattr(MLP, "as_mlp_submodule"):
        return functools.partial(MLP.as_mlp_submodule, submodules=submodules)
    return ModuleSpec(module=MLP, submodules=submodules)


def forget_logged_losses() -> None:
    """Empty upstream's records of the losses of MTP depths, routers and indexers.

    Fact: each record is the process's, and has as many places as the first model that trained has
    depths or layers, so that a later one with more of them raises an IndexError; it also keeps the
    process groups of that model. Goes: when `destroy_model_parallel` empties them.
    """
    MTPLossLoggingHelper.tracker.clear()
    DSAIndexerLossLoggingHelper.tracker.clear()
    _forget_router_losses()


def build_hybrid_model(config: Any, stack_spec: ModuleSpec, **arguments: Any) -> HybridModel:
    """Upstream's hybrid model around ``stack_spec``, by whatever name it takes it."""
    return HybridModel(config=config, **{STACK_ARGUMENT: stack_spec}, **arguments)
