"""Attaching features to a model: named children and hooks, before anything wraps it."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import attrs
import torch
from megatron.core import __version__ as megatron_version
from packaging.version import Version
from torch import Tensor, nn

from megatron_seams.errors import FeatureInvalid, HookMissing, Refusal
from megatron_seams.hookspecs import FeatureContext
from megatron_seams.planning.features import EMBEDDING
from megatron_seams.planning.plan import PlannedFeature
from megatron_seams.runtime.collectives import following
from megatron_seams.runtime.model.batch import Batch
from megatron_seams.runtime.model.fp8 import fp8_faults
from megatron_seams.runtime.model.prepare import PreparedPlan
from megatron_seams.runtime.plugins import LoadedSeams

if TYPE_CHECKING:
    from megatron.core.transformer.transformer_config import TransformerConfig
    from torch.distributed import ProcessGroup

    from megatron_seams.runtime.compat import HybridModel


@attrs.define(kw_only=True, eq=False)
class EmbeddingFeature:
    """A feature that adds to the word embedding.

    MTP calls the embedding again for each depth, with token ids that upstream rolls by one: a token
    stands one position earlier, and the last of each document is none. The feature's windows would
    lose the tokens that are rolled out of the row, so that its output for each token is rolled
    instead.

    Attributes:
        name: The feature's name.
        feature: Called as ``feature(input_ids, cu_seqlens=...)``, [b, s] -> what the word embedding
            returns: [b, s, h], or [s / tp, b, h] with ``reduce_scatter_embeddings``.
        pieces: The tensor-parallel ranks that have the pieces of a sequence; None where each has
            all of it.
        batch: The batch of the running forward.
    """

    name: str
    feature: nn.Module
    batch: Batch
    pieces: "ProcessGroup | None" = None

    def add(self, embedding: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        """Add the feature to the word embedding."""
        del embedding
        before = self.batch.enriched.get(self.name)
        if before is None:
            added: Tensor = self.feature(args[0], cu_seqlens=self.batch.cu_seqlens)
        else:
            added = self._one_earlier(before)
        if self.batch.input_ids is not None:  # in a forward of the model's
            self.batch.enriched[self.name] = added
        return output + added

    def _one_earlier(self, x: Tensor) -> Tensor:
        """Move ``x`` by a position, as upstream rolls ids; each document's last becomes zero."""
        if self.pieces is None:
            rolled = x.roll(-1, dims=1)
            return torch.where(self._last(x.shape[1], x.device)[:, None], 0, rolled)
        ranks, rank = self.pieces.size(), self.pieces.rank()
        rolled = torch.cat([x[1:], following(x, 1, self.pieces)])
        last = self._last(len(x) * ranks, x.device).chunk(ranks)[rank]
        return torch.where(last[:, None, None], 0, rolled)

    def _last(self, length: int, device: torch.device) -> Tensor:
        """Which positions of a row are a document's last, [s]."""
        last = torch.zeros(length, dtype=torch.bool, device=device)
        last[-1] = True
        if self.batch.cu_seqlens is not None:
            # -1, of an empty first document, is the last too.
            last[self.batch.cu_seqlens[1:] - 1] = True
        return last


@attrs.define(kw_only=True, eq=False)
class ResidualFeature:
    """A feature that adds to the hidden states that enter a layer.

    Attributes:
        name: The feature's name, for messages.
        feature: Called as ``feature(hidden_states, input_ids, cu_seqlens=...)``.
        batch: The batch of the running forward.
    """

    name: str
    feature: nn.Module
    batch: Batch

    def add(
        self, layer: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Give the layer its hidden states with the feature added.

        Raises:
            FeatureInvalid: This stage was given no token ids.
        """
        ids = self.batch.input_ids
        if ids is None:
            raise FeatureInvalid(
                asked=f"feature {self.name} at layer {layer.layer_number}",
                found="the model's forward was given no token ids on this stage",
                next="pass input_ids to every stage that has the feature",
                subject=self.name,
            )
        hidden, *rest = args or (kwargs["hidden_states"],)
        added = hidden + self.feature(hidden, ids, cu_seqlens=self.batch.cu_seqlens)
        if args:
            return (added, *rest), dict(kwargs)
        return (), {**kwargs, "hidden_states": added}


def attach_features(
    model: "HybridModel",
    prepared: PreparedPlan,
    *,
    vocab_size: int,
    decoder: nn.Module | None = None,
) -> None:
    """Build the plan's features and attach each at its placement, where this stage has it.

    Args:
        model: Upstream's model, as one pipeline stage builds it; its embedding exists already.
        prepared: The model's plan.
        vocab_size: Rows of the word embedding.
        decoder: The stack of layers, where ``model`` does not have it yet.

    Raises:
        HookMissing: A hook returned something else than a torch ``Module``.
        FeatureInvalid: As :func:`attach_to_embedding` and :func:`attach_to_layer`.
        Refusal: A linear of a feature has widths that fp8 does not take.
    """
    plan, loaded = prepared.plan, prepared.loaded
    layers: Any = (model.decoder if decoder is None else decoder).layers
    batch = Batch(features=tuple(feature.seam.name for feature in plan.features))
    attached = False
    for feature in plan.features:
        name = feature.seam.name
        context = FeatureContext(
            config=model.config,
            options=loaded.options[name],
            megatron_version=Version(megatron_version),
            backend=prepared.backend.provider,
            pg_collection=model.pg_collection,
            placement=feature.placement,
            vocab_size=vocab_size,
            packed_sequences=plan.runtime.packed_sequences,
            layer_numbers=feature.layers,
        )
        if feature.placement == EMBEDDING and model.pre_process:
            scattered = model.embedding.reduce_scatter_embeddings
            context = attrs.evolve(context, reduce_scatter_embeddings=scattered)
            attach_to_embedding(model, name, _module(loaded, feature, context), batch)
            attached = True
        for layer in layers:
            if layer.layer_number in feature.layers:
                at = attrs.evolve(context, layer_number=layer.layer_number)
                attach_to_layer(layer, name, _module(loaded, feature, at), batch, model.config)
                attached = True
    if attached:
        batch.watch(model)


def _module(loaded: LoadedSeams, feature: PlannedFeature, context: FeatureContext) -> nn.Module:
    module = loaded.call(feature.seam, context)
    if not isinstance(module, nn.Module):
        raise HookMissing(
            asked=f"a torch Module from hook {feature.seam.manifest.hook!r} of "
            f"{feature.seam.claim}",
            found=f"it returned {type(module).__name__}",
            next=f"ask {feature.seam.owner}: the hook returns a torch module",
            subject=feature.seam.name,
        )
    if unfit := tuple(fp8_faults(context.config, dict.fromkeys(context.layer_numbers, module))):
        raise Refusal(unfit)
    return module


def attach_to_embedding(model: "HybridModel", name: str, feature: nn.Module, batch: Batch) -> None:
    """Attach ``feature`` to the model's word embedding as ``model.embedding.<name>``.

    Native keys do not change. Call it before the model is wrapped (mixed precision, DDP), so that
    the feature's parameters are seen like all others.

    Args:
        model: Upstream's model, as a pipeline stage with the input embedding builds it.
        name: The child's name, which becomes part of its keys.
        feature: As :class:`EmbeddingFeature` has it.
        batch: The record that the model's forward passes fill.

    Raises:
        FeatureInvalid: The name is taken; or the model has MTP depths and several stages, where MTP
            calls another embedding.
    """
    embedding = model.embedding
    if model.config.mtp_num_layers and not model.post_process:
        raise _cannot(
            name,
            "at the embedding",
            "of several stages, MTP calls an embedding of its own on the last",
            "leave out the MTP suffix or the feature, or have one stage",
        )
    if hasattr(embedding, name):
        raise _cannot(
            name,
            "at the embedding",
            f"the model's embedding has a {name!r} already",
            "name the seam otherwise",
        )
    embedding.add_module(name, feature)
    pieces = model.pg_collection.tp if embedding.reduce_scatter_embeddings else None
    embedding.word_embeddings.register_forward_hook(
        EmbeddingFeature(name=name, feature=feature, batch=batch, pieces=pieces).add
    )


def attach_to_layer(
    layer: nn.Module, name: str, feature: nn.Module, batch: Batch, config: "TransformerConfig"
) -> None:
    """Attach ``feature`` to what enters a layer of the decoder, as ``<the layer>.<name>``.

    Native keys do not change, and the feature's own carry the layer's global number. Call it before
    the model is wrapped, as :func:`attach_to_embedding`.

    Args:
        layer: A layer of the decoder, whoever built it.
        name: The child's name, which becomes part of its keys.
        feature: As :class:`ResidualFeature` has it.
        batch: The record that the model's forward passes fill.
        config: The model's configuration.

    Raises:
        FeatureInvalid: The name is taken; or layers run again outside of the model's forward (full
            recomputation, CUDA graphs), when the token ids are gone.
    """
    where = f"at layer {layer.layer_number}"
    if hasattr(layer, name):
        found = f"that layer has a {name!r} already"
        raise _cannot(name, where, found, "name the seam otherwise")
    if config.recompute_granularity == "full":
        raise _cannot(
            name,
            where,
            "full recomputation runs the layer again in the backward pass, without token ids",
            "recompute selectively, or not at all",
        )
    if config.cuda_graph_impl != "none":
        raise _cannot(
            name,
            where,
            f"with cuda_graph_impl = {config.cuda_graph_impl!r} the layer is replayed, and no hook "
            "runs",
            'leave cuda_graph_impl at "none"',
        )
    layer.add_module(name, feature)
    layer.register_forward_pre_hook(
        ResidualFeature(name=name, feature=feature, batch=batch).add, with_kwargs=True
    )


def _cannot(name: str, where: str, found: str, advice: str) -> FeatureInvalid:
    return FeatureInvalid(asked=f"feature {name} {where}", found=found, next=advice, subject=name)
