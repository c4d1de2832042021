"""Families: the kinds of layer and feature. A token of a pattern is only a spelling of one."""

import re
from types import MappingProxyType
from typing import Final, Literal

import attrs

Kind = Literal["block", "feature"]

#: Family names become hook names (``<family>_layer``) and table keys.
NAME = re.compile(r"[a-z][a-z0-9_]*\Z")


@attrs.frozen(kw_only=True)
class Family:
    """A kind of layer, or of feature.

    Attributes:
        name: The key by which everything else names it; matches ``[a-z][a-z0-9_]*``.
        summary: One sentence.
        kind: ``block`` for a layer of the pattern, ``feature`` for a module attached beside them.
        constant: The name that upstream's ``Symbols`` class gives this family, where it has one.
            The *letter* behind the constant is read from each Megatron's source.
    """

    name: str
    summary: str
    kind: Kind = "block"
    constant: str | None = None


_BUILT_IN: Final = (
    Family(
        name="attention",
        summary="Softmax self-attention with separate heads.",
        constant="ATTENTION",
    ),
    Family(name="mla", summary="Multi-latent attention.", constant="MLA"),
    Family(name="dsa", summary="DeepSeek sparse attention.", constant="DS_ATTENTION"),
    Family(name="mamba", summary="Mamba-2, upstream's own mixer.", constant="MAMBA"),
    Family(name="gdn", summary="Gated delta net.", constant="GDN"),
    Family(name="moe", summary="Mixture of experts.", constant="MOE"),
    Family(name="mlp", summary="Dense feed-forward layer.", constant="MLP"),
    Family(name="recurrent", summary="Non-linear recurrent mixer."),
    Family(name="ngram", summary="Hashed n-gram input embedding.", kind="feature"),
    Family(name="engram", summary="Gated n-gram memory at chosen layers.", kind="feature"),
)

#: The families that core knows without any seam; a manifest may introduce more.
BUILT_IN: Final = MappingProxyType({family.name: family for family in _BUILT_IN})

#: Upstream constant -> family.
BY_CONSTANT: Final = MappingProxyType(
    {family.constant: family.name for family in _BUILT_IN if family.constant}
)

#: The families that need Megatron's configuration for latent attention.
LATENT: Final = frozenset({"mla", "dsa"})
