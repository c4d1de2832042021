"""The native settings of a plan's model at toy width, for the smoke run."""

import json
from collections.abc import Collection, Iterator, Mapping
from typing import Any, Final

import attrs

from megatron_seams.planning.plan import Plan
from megatron_seams.recipes.recipe import Smoke
from megatron_seams.runtime import compat

#: The tokens are bytes.
VOCABULARY: Final = 256

_WIDTH: Final = 128
_HEADS: Final = 4
_HEAD_WIDTH: Final = _WIDTH // _HEADS

#: Sizes of every toy model.
_SMALL: Final = {
    "hidden_size": _WIDTH,
    "ffn_hidden_size": 2 * _WIDTH,
    "num_attention_heads": _HEADS,
}

#: Sizes of one family's layers.
_OF_FAMILY: Final[Mapping[str, Mapping[str, Any]]] = {
    "moe": {"moe_ffn_hidden_size": _WIDTH},
    "mla": {
        "q_lora_rank": _WIDTH // 2,
        "kv_lora_rank": _WIDTH // 2,
        "qk_head_dim": _HEAD_WIDTH,
        "qk_pos_emb_head_dim": _HEAD_WIDTH // 2,
        "v_head_dim": _HEAD_WIDTH,
    },
    "dsa": {
        "dsa_indexer_n_heads": _HEADS,
        "dsa_indexer_head_dim": _HEAD_WIDTH,
        "dsa_indexer_topk": 32,
    },
    "mamba": {"mamba_head_dim": _HEAD_WIDTH, "mamba_state_dim": 32, "mamba_num_groups": 2},
    "gdn": {
        "linear_key_head_dim": _HEAD_WIDTH,
        "linear_value_head_dim": _HEAD_WIDTH,
        "linear_num_key_heads": _HEADS,
        "linear_num_value_heads": _HEADS,
    },
}

#: What a family's layers cannot be trained without where the recipe says nothing: Megatron has no
#: default, or one that upstream refuses (sparse attention) or cannot differentiate (experts).
_NEEDED: Final[Mapping[str, Mapping[str, Any]]] = {
    "moe": {"add_bias_linear": False},
    "dsa": {"add_bias_linear": False, "dsa_indexer_loss_coeff": 0.01},
    "gdn": {"linear_conv_kernel_dim": 4},
}

#: Sizes that many models do not have: taken only where the recipe sets them.
_IF_ASKED: Final = {
    "kv_channels": _HEAD_WIDTH,
    "mamba_num_heads": 2 * _HEADS,
    "moe_latent_size": _WIDTH // 2,
    "moe_shared_expert_intermediate_size": _WIDTH,
}

#: Types of weights and activations that the run replaces where the recipe sets one.
_IN_FP32: Final = {"bf16": False, "fp16": False, "params_dtype": "float32"}

#: Settings of the recipe that a toy is too small for.
_DROPPED: Final = ("moe_router_group_topk", "moe_router_num_groups")

#: Settings of the recipe that spread it over ranks.
_OF_RANKS: Final = (
    "num_layers_in_first_pipeline_stage",
    "num_layers_in_last_pipeline_stage",
)


def toy_settings(plan: Plan, smoke: Smoke) -> dict[str, Any]:
    """The plan's native settings, with every size reduced to a toy's.

    Norms, biases, activations, dropout, routing and position embeddings stay the recipe's, or
    Megatron's default where the recipe does not set them. A recipe that is no wider than the toy
    keeps its sizes.

    Args:
        plan: The model.
        smoke: The recipe's ``[smoke]``; its ``[smoke.megatron]`` has the last word.

    Returns:
        Upstream's field and argument names -> values.
    """
    # Sparse attention selects for a latent one.
    families = plan.families | ({"mla"} if "dsa" in plan.families else set())
    asked = {key: value for key, value in plan.megatron.items() if key not in _OF_RANKS}
    needed: dict[str, Any] = {}
    for family in sorted(families):
        needed |= _NEEDED.get(family, {})
    sizes = _sizes(asked, families)
    width = asked.get("hidden_size")
    if type(width) is int and width <= _WIDTH:
        toy = needed | sizes | asked
    else:
        kept = {key: value for key, value in asked.items() if key not in _DROPPED}
        toy = needed | kept | sizes
    toy |= {key: value for key, value in _IN_FP32.items() if key in asked}
    if "dsa" in families:
        # A Hadamard rotation of queries and keys alike leaves their products as they are; it is
        # there for the range of a low-precision kernel, which the toy does not use.
        toy |= compat.NO_ROTATION
    toy |= {"vocab_size": VOCABULARY, "max_sequence_length": smoke.sequence}
    return toy | smoke.megatron


def _sizes(asked: Mapping[str, Any], families: Collection[str]) -> dict[str, Any]:
    """The toy's sizes for layers of these families."""
    small: dict[str, Any] = dict(_SMALL)
    for family in sorted(families):
        small |= _OF_FAMILY.get(family, {})
    small |= {key: size for key, size in _IF_ASKED.items() if asked.get(key)}
    if asked.get("num_query_groups"):
        shared = asked["num_query_groups"] < asked.get("num_attention_heads", _HEADS)
        small["num_query_groups"] = _HEADS // 2 if shared else _HEADS
    if "moe" in families:
        small["num_moe_experts"] = min(4, asked.get("num_moe_experts") or 4)
        small["moe_router_topk"] = min(2, asked.get("moe_router_topk") or 2)
    return small


@attrs.frozen(kw_only=True)
class Replaced:
    """The differences between a recipe's settings and those that a model is built from.

    Attributes:
        changed: Setting -> the recipe's value and the model's; None for a setting left out.
        added: Setting -> the model's value, where the recipe has none.
    """

    changed: Mapping[str, tuple[Any, Any]]
    added: Mapping[str, Any]

    @classmethod
    def between(cls, asked: Mapping[str, Any], used: Mapping[str, Any]) -> "Replaced":
        """The differences between the settings asked for and those used."""
        return cls(
            changed={
                key: (value, used.get(key))
                for key, value in asked.items()
                if key not in used or used[key] != value
            },
            added={key: value for key, value in used.items() if key not in asked},
        )

    def lines(self, by: str) -> Iterator[str]:
        """One line for what ``by`` changes and one for what it adds; none for neither."""
        if self.changed:
            changes = (
                f"{key} {_plain(before)} -> {'none' if after is None else _plain(after)}"
                for key, (before, after) in self.changed.items()
            )
            yield f"{by} replaces {', '.join(changes)}"
        if self.added:
            additions = (f"{key} {_plain(value)}" for key, value in self.added.items())
            yield f"{by} sets what the recipe leaves open: {', '.join(additions)}"


def _plain(value: Any) -> str:
    return json.dumps(value) if isinstance(value, bool) else str(value)
