"""Hugging Face's hybrid architectures: what each block of theirs is among the families."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

import attrs

from megatron_seams.recipes.dialect import MEGATRON

#: Family -> its token in the megatron dialect.
NATIVE_TOKENS: Final = MappingProxyType(
    {family: token for token, family in MEGATRON.tokens.items()}
)


@attrs.frozen(kw_only=True)
class Block:
    """A block that Megatron's hybrid stack has no layer for.

    Attributes:
        family: The family that a seam for it would declare.
        letter: Its token in the pattern of a recipe made from a configuration.
        title: What it is, for messages.
    """

    family: str
    letter: str
    title: str


#: Family -> block, for those that Megatron's dialect does not spell. Lower case, because upstream
#: takes its symbols from the upper case; ``K`` is the one that its development line has for KDA.
FOREIGN: Final = MappingProxyType(
    {
        family: Block(family=family, letter=letter, title=title)
        for family, letter, title in (
            ("kda", "K", "Kimi delta attention"),
            ("mamba1", "s", "Mamba-1, with a decay for each channel and state; mamba is Mamba-2"),
            ("lightning_attention", "l", "linear attention with a fixed decay for each head"),
            (
                "parallel_attention_mamba",
                "p",
                "attention and Mamba-2 side by side in one layer, their outputs added",
            ),
            (
                "shared_transformer_mamba",
                "h",
                "a Mamba layer behind a transformer block whose weights several layers share",
            ),
            ("short_convolution", "c", "a gated short convolution"),
            ("rg_lru", "r", "a gated linear recurrent unit"),
            ("sliding_attention", "w", "attention over a window of positions"),
        )
    }
)

#: How configurations of different ages spell the two kinds of layer.
_FULL: Final = ("attention", "full_attention")
_OTHER: Final = ("mamba", "linear_attention")


def _blocks(attention: str | None, other: str | None, **more: str) -> Mapping[str, str]:
    found = dict.fromkeys(_FULL, attention) | dict.fromkeys(_OTHER, other) | more
    return MappingProxyType({name: family for name, family in found.items() if family})


@attrs.frozen(kw_only=True)
class Architecture:
    """How one ``model_type`` describes its layers, and what it fixes besides.

    Attributes:
        name: The ``model_type``.
        title: The models that have it.
        blocks: Name of a block in the configuration -> family.
        feed_forward: ``none`` where a block is a whole layer; ``dense`` or ``sparse`` where each
            is followed by a feed-forward layer in the same layer, which is a layer of its own in
            Megatron. ``sparse`` is of experts where the configuration has some.
        full: The name of the block that a list of indices or a period says where it is.
        rest: The name of the block in between.
        every: The name of every layer's block, where the configuration says nothing of them.
        mtp: The block of an MTP depth, followed by a feed-forward layer.
        gated: Whether the feed-forward layers are gated.
        experts_width: The key of an expert's width.
        fewest_experts: The number from which on a ``sparse`` layer is of experts.
        position: Megatron's ``position_embedding_type``, or the key that decides it.
        tied: Whether embeddings are tied where the configuration does not say.
        fixed: Megatron's settings that follow from the architecture.
        fixed_of: Family -> the same, where the model has such layers.
    """

    name: str
    title: str
    blocks: Mapping[str, str]
    feed_forward: str = "none"
    full: str = "attention"
    rest: str = "mamba"
    every: str | None = None
    mtp: str | None = None
    gated: bool = True
    experts_width: str = "moe_intermediate_size"
    fewest_experts: int = 1
    position: str = "rope"
    tied: bool = False
    fixed: Mapping[str, Any] = MappingProxyType({})
    fixed_of: Mapping[str, Mapping[str, Any]] = MappingProxyType({})


_SIGMOID_ROUTER: Final[Mapping[str, Any]] = MappingProxyType(
    {
        "moe_router_score_function": "sigmoid",
        "moe_router_enable_expert_bias": True,
        "moe_router_dtype": "fp32",
    }
)

NEMOTRON_H: Final = Architecture(
    name="nemotron_h",
    title="Nemotron-H, Nemotron Nano 2, Nemotron 3",
    blocks=_blocks("attention", "mamba", mlp="mlp", moe="moe"),
    gated=False,
    position="none",
    fixed_of={"moe": _SIGMOID_ROUTER},
)

_GATED_DELTA: Final = Architecture(
    name="qwen3_next",
    title="Qwen3-Next",
    blocks=_blocks("attention", "gdn"),
    feed_forward="sparse",
    full="full_attention",
    rest="linear_attention",
    mtp="full_attention",
    fixed={
        "layernorm_zero_centered_gamma": True,
        "qk_layernorm": True,
        "attention_output_gate": True,
        "rotary_percent": 0.25,
    },
    fixed_of={"moe": {"moe_shared_expert_gate": True}},
)

_TABLE: Final = (
    NEMOTRON_H,
    Architecture(
        name="granitemoehybrid",
        title="Granite 4",
        blocks=_blocks("attention", "mamba"),
        feed_forward="sparse",
        experts_width="intermediate_size",
        position="position_embedding_type",
    ),
    Architecture(
        name="bamba",
        title="Bamba",
        blocks=_blocks("attention", "mamba"),
        feed_forward="dense",
        fixed={"rotary_percent": 0.5},
    ),
    Architecture(
        name="jamba",
        title="Jamba",
        blocks=_blocks("attention", "mamba1"),
        feed_forward="sparse",
        experts_width="intermediate_size",
        fewest_experts=2,
        position="none",
    ),
    Architecture(
        name="zamba",
        title="Zamba",
        blocks=_blocks(None, "mamba1", hybrid="shared_transformer_mamba"),
        full="hybrid",
        position="none",
        tied=True,
    ),
    Architecture(
        name="zamba2",
        title="Zamba2",
        blocks=_blocks(None, "mamba", hybrid="shared_transformer_mamba"),
        full="hybrid",
        position="none",
        tied=True,
    ),
    Architecture(
        name="falcon_h1",
        title="Falcon-H1",
        blocks={"hybrid": "parallel_attention_mamba"},
        feed_forward="dense",
        every="hybrid",
    ),
    _GATED_DELTA,
    attrs.evolve(
        _GATED_DELTA, name="qwen3_5_text", title="Qwen3.5", feed_forward="dense", fixed_of={}
    ),
    attrs.evolve(_GATED_DELTA, name="qwen3_5_moe_text", title="Qwen3.5 with experts"),
    Architecture(
        name="kimi_linear",
        title="Kimi Linear",
        blocks=_blocks("mla", "kda", kda="kda"),
        feed_forward="sparse",
        full="full_attention",
        rest="kda",
        mtp="full_attention",
        fixed_of={"moe": _SIGMOID_ROUTER},
    ),
    Architecture(
        name="minimax",
        title="MiniMax-01, MiniMax-M1",
        blocks=_blocks("attention", "lightning_attention"),
        feed_forward="sparse",
        full="full_attention",
        rest="linear_attention",
        experts_width="intermediate_size",
    ),
    Architecture(
        name="minimax_m2",
        title="MiniMax-M2",
        blocks=_blocks("attention", "lightning_attention"),
        feed_forward="sparse",
        full="full_attention",
        rest="linear_attention",
        every="full_attention",
        mtp="full_attention",
        experts_width="intermediate_size",
        fixed_of={"moe": _SIGMOID_ROUTER},
    ),
    Architecture(
        name="mamba2",
        title="Mamba-2",
        blocks=_blocks(None, "mamba"),
        every="mamba",
        position="none",
    ),
    Architecture(
        name="mamba",
        title="Mamba",
        blocks=_blocks(None, "mamba1"),
        every="mamba",
        position="none",
        tied=True,
    ),
    Architecture(
        name="lfm2",
        title="LFM2",
        blocks=_blocks("attention", None, conv="short_convolution"),
        feed_forward="dense",
        full="full_attention",
        rest="conv",
        tied=True,
    ),
    Architecture(
        name="recurrent_gemma",
        title="RecurrentGemma",
        blocks={
            **dict.fromkeys(("recurrent", "linear_attention"), "rg_lru"),
            **dict.fromkeys(("attention", "sliding_attention"), "sliding_attention"),
        },
        feed_forward="dense",
        tied=True,
    ),
)

#: ``model_type`` -> architecture.
ARCHITECTURES: Final = MappingProxyType({it.name: it for it in _TABLE})

#: Other ``model_type``s of the same layers.
_ALSO: Final = MappingProxyType(
    {
        "nemotron_h_v2": "nemotron_h",
        "minimax_text_01": "minimax",
        "minimax_m1": "minimax",
        "qwen3_5": "qwen3_5_text",
        "qwen3_5_moe": "qwen3_5_moe_text",
        "granite_moe_hybrid": "granitemoehybrid",
    }
)


def architecture_of(config: Mapping[str, Any]) -> Architecture | None:
    """The architecture that a configuration names, by its type or by its model's class."""
    names = [str(config.get("model_type") or "")]
    classes = config.get("architectures")
    names += [str(name) for name in classes] if isinstance(classes, list) else []
    spelled = {_plain(name): it for name, it in ARCHITECTURES.items()}
    spelled |= {_plain(other): ARCHITECTURES[name] for other, name in _ALSO.items()}
    return next((spelled[plain] for name in names if (plain := _plain(name)) in spelled), None)


def _plain(name: str) -> str:
    """``NemotronHForCausalLM`` and ``nemotron_h`` alike."""
    short = name.partition("For")[0]
    return "".join(part for part in short.lower() if part.isalnum())
