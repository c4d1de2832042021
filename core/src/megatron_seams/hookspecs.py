"""The contract between core and a seam's plugin: pluggy hooks, and the context that each receives.

A plugin module implements exactly the hook that its manifest declares: ``<family>_layer`` for a
layer, ``<feature>_feature`` for a feature, and beside it ``<family>_options`` if it takes options.
The hooks below are those of the families that core knows; a family that a manifest introduces gets
hooks of the same shape (:func:`megatron_seams.runtime.plugins.load_plugins`).
"""

from typing import TYPE_CHECKING, Any, Protocol

import attrs
import pluggy

if TYPE_CHECKING:
    from megatron.core.process_groups_config import ProcessGroupCollection
    from megatron.core.transformer.spec_utils import ModuleSpec
    from megatron.core.transformer.transformer_config import TransformerConfig
    from packaging.version import Version
    from torch import nn

#: pluggy's project name, and the entry point group.
PROJECT = "megatron_seams"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


class Backend(Protocol):
    """The provider of the linears and norms that a seam builds with.

    Upstream's own ``BackendSpecProvider`` (``megatron.core.models.backends``) has this shape, so
    that a seam gets Transformer Engine's modules where it is installed and plain ones elsewhere.
    """

    def column_parallel_linear(self) -> type:
        """The linear whose output features are split over tensor-parallel ranks."""

    def row_parallel_linear(self) -> type:
        """The linear whose input features are split over tensor-parallel ranks."""

    def layer_norm(self, rms_norm: bool = False, for_qk: bool = False) -> Any:
        """The norm, called with ``config``, ``hidden_size`` and ``eps``."""

    def core_attention(self) -> Any:
        """The parameter-free attention of q, k and v."""


@attrs.frozen(kw_only=True)
class LayerContext:
    """The argument of a ``<family>_layer`` hook.

    Attributes:
        config: The model's configuration, complete.
        options: The recipe's ``[seams.NAME]``, as an instance of the class that the seam's
            ``<family>_options`` hook named; None for a seam without options.
        megatron_version: The version of the Megatron that builds the model.
        backend: Linears and norms.
        pg_collection: The process groups.
        slot: The native slot that carries the layers.
        layer_numbers: The 1-based global numbers of the layers that the seam builds on all stages.
    """

    config: "TransformerConfig"
    options: Any
    megatron_version: "Version"
    backend: Backend
    pg_collection: "ProcessGroupCollection"
    slot: str
    layer_numbers: tuple[int, ...]


@attrs.frozen(kw_only=True)
class FeatureContext:
    """The argument of a ``<feature>_feature`` hook.

    Attributes:
        config: The model's configuration, complete.
        options: As in :class:`LayerContext`.
        megatron_version: The version of the Megatron that builds the model.
        backend: Linears and norms.
        pg_collection: The process groups.
        placement: Where the module attaches, ``embedding`` or ``residual``.
        vocab_size: Rows of the model's word embedding; token ids are below it.
        packed_sequences: Whether several documents share one row of the batch. The feature then
            needs to know where each begins, and refuses where nothing tells it.
        reduce_scatter_embeddings: Whether the word embedding is [s / tp, b, h], each
            tensor-parallel rank's piece of the sequence, instead of [b, s, h] (upstream's name for
            it). At ``embedding``, the module's output has the same form.
        layer_number: At ``residual``, the 1-based global number of the layer; the hook is called
            for each. 0 at ``embedding``.
        layer_numbers: At ``residual``, the numbers of all layers that have the feature, on all
            stages.
    """

    config: "TransformerConfig"
    options: Any
    megatron_version: "Version"
    backend: Backend
    pg_collection: "ProcessGroupCollection"
    placement: str
    vocab_size: int
    packed_sequences: bool
    reduce_scatter_embeddings: bool = False
    layer_number: int = 0
    layer_numbers: tuple[int, ...] = ()


class Hooks:
    """The hooks of the families that core knows."""

    @hookspec
    def attention_layer(self, context: LayerContext) -> "ModuleSpec":
        """Build softmax self-attention."""

    @hookspec
    def mla_layer(self, context: LayerContext) -> "ModuleSpec":
        """Build multi-latent attention."""

    @hookspec
    def dsa_layer(self, context: LayerContext) -> "ModuleSpec":
        """Build DeepSeek sparse attention."""

    @hookspec
    def mamba_layer(self, context: LayerContext) -> "ModuleSpec":
        """Build a Mamba-2 layer."""

    @hookspec
    def gdn_layer(self, context: LayerContext) -> "ModuleSpec":
        """Build a gated delta net layer."""

    @hookspec
    def moe_layer(self, context: LayerContext) -> "ModuleSpec":
        """Build a mixture-of-experts layer."""

    @hookspec
    def mlp_layer(self, context: LayerContext) -> "ModuleSpec":
        """Build a dense feed-forward layer."""

    @hookspec
    def recurrent_layer(self, context: LayerContext) -> "ModuleSpec":
        """Build a non-linear recurrent mixer."""

    @hookspec
    def ngram_feature(self, context: FeatureContext) -> "nn.Module":  # type: ignore[empty-body] # a spec
        """Build a hashed n-gram enrichment of the input embedding.

        At ``embedding`` the module is called as ``module(input_ids, cu_seqlens=...)`` with
        ``input_ids`` [b, s] int64 and ``cu_seqlens`` [documents + 1] int32 or None, and returns
        [b, s, h] to be added to the word embedding; [s / tp, b, h] where the context says
        ``reduce_scatter_embeddings``.
        """

    @hookspec
    def engram_feature(self, context: FeatureContext) -> "nn.Module":  # type: ignore[empty-body] # a spec
        """Build a gated n-gram memory for one of the chosen layers.

        At ``residual`` the module is called as ``module(hidden_states, input_ids, cu_seqlens=...)``
        with the ``hidden_states`` that enter the layer, [s, b, h] or with sequence parallelism
        [s / tp, b, h], and ``input_ids`` and ``cu_seqlens`` of the whole row as at ``embedding``;
        it returns what is added to ``hidden_states``, of the same shape.
        """
