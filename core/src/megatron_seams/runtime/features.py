"""Attaching features to a model: named children and hooks, before anything wraps it."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import attrs
from megatron.core import __version__ as megatron_version
from packaging.version import Version
from torch import Tensor, nn

from megatron_seams.errors import FeatureInvalid, HookMissing
from megatron_seams.hookspecs import Backend, FeatureContext
from megatron_seams.plan import Plan, PlannedFeature
from megatron_seams.plugins import LoadedSeams

if TYPE_CHECKING:
    from megatron_seams.runtime.compat import HybridModel


@attrs.define(kw_only=True, eq=False)
class EmbeddingFeature:
    """A feature that adds to the word embedding.

    Its hooks are bound methods of this object. A copy made by ``copy.deepcopy`` thus gets hooks
    that call the *copied* feature (hooks that are closures would go on calling the original).

    Attributes:
        feature: Called as ``feature(input_ids, cu_seqlens=...)``, [b, s] -> [b, s, h].
        cu_seqlens: The document boundaries of the forward that is under way, [documents + 1] int32;
            None outside of one, and in one without packed sequences.
    """

    feature: nn.Module
    cu_seqlens: Tensor | None = None

    def enter(self, model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Note the boundaries of this forward."""
        del model, args
        packed = kwargs.get("packed_seq_params")
        if packed is None:
            self.cu_seqlens = None
        elif packed.cu_seqlens_q_padded is not None:
            # The padded boundaries are where the documents lie in input_ids.
            self.cu_seqlens = packed.cu_seqlens_q_padded
        else:
            self.cu_seqlens = packed.cu_seqlens_q

    def add(self, embedding: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        """Add the feature to the word embedding [b, s, h]."""
        del embedding
        enriched: Tensor = output + self.feature(args[0], cu_seqlens=self.cu_seqlens)
        return enriched

    def leave(self, model: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Forget the boundaries, so that no later call can take them for its own."""
        del model, args, output
        self.cu_seqlens = None


def attach_features(
    model: "HybridModel", plan: Plan, loaded: LoadedSeams, backend: Backend, *, vocab_size: int
) -> None:
    """Build the plan's features and attach each at its placement.

    Args:
        model: Upstream's model, as one pipeline stage builds it; its embedding exists already.
        plan: The model's plan.
        loaded: Its plugins.
        backend: Where the seams take their linears and norms from.
        vocab_size: Rows of the word embedding.

    Raises:
        HookMissing: A hook returned something else than a torch ``Module``.
        FeatureInvalid: As :func:`attach_to_embedding`.
    """
    if not model.pre_process:
        return
    for feature in plan.features:
        context = FeatureContext(
            config=model.config,
            options=loaded.options[feature.seam.name],
            megatron_version=Version(megatron_version),
            backend=backend,
            pg_collection=model.pg_collection,
            placement=feature.placement,
            vocab_size=vocab_size,
            packed_sequences=plan.runtime.packed_sequences,
        )
        attach_to_embedding(model, feature.seam.name, _module(loaded, feature, context))


def _module(loaded: LoadedSeams, feature: PlannedFeature, context: FeatureContext) -> nn.Module:
    module = loaded.call(feature.seam, context)
    if not isinstance(module, nn.Module):
        raise HookMissing(
            asked=f"a torch Module from hook {feature.seam.manifest.hook!r} of "
            f"{feature.seam.claim}",
            found=f"it returned {type(module).__name__}",
            next=f"ask {feature.seam.owner}: the hook must return what docs/write-a-seam.md says",
            subject=feature.seam.name,
        )
    return module


def attach_to_embedding(model: "HybridModel", name: str, feature: nn.Module) -> bool:
    """Attach ``feature`` to the model's word embedding as ``model.embedding.<name>``.

    Native keys do not change. Call it before the model is wrapped (mixed precision, DDP), so that
    the feature's parameters are seen like all others.

    Args:
        model: Upstream's model, as one pipeline stage builds it.
        name: The child's name, which becomes part of its keys.
        feature: Called as ``feature(input_ids, cu_seqlens=...)``, [b, s] -> [b, s, h].

    Returns:
        Whether this stage has an embedding, and so the feature.

    Raises:
        FeatureInvalid: The name is taken; or the embedding is spread over the sequence
            (sequence parallelism), or shared with MTP, neither of which the hook can serve.
    """
    if not model.pre_process:
        return False
    embedding = model.embedding
    problem = advice = ""
    if embedding.reduce_scatter_embeddings or model.config.sequence_parallel:
        problem = "with sequence parallelism a rank holds the embedding of a part of the sequence"
        advice = "turn sequence-parallel off, or leave the feature out"
    elif model.mtp_process:
        problem = "MTP calls the same embedding with token ids that are rolled by one"
        advice = "leave out the MTP suffix or the feature"
    elif hasattr(embedding, name):
        problem = f"the model's embedding has a {name!r} already"
        advice = "name the seam otherwise"
    if problem:
        raise FeatureInvalid(
            asked=f"feature {name} at the embedding", found=problem, next=advice, subject=name
        )
    embedding.add_module(name, feature)
    attached = EmbeddingFeature(feature=feature)
    model.register_forward_pre_hook(attached.enter, with_kwargs=True)
    embedding.word_embeddings.register_forward_hook(attached.add)
    model.register_forward_hook(attached.leave, always_call=True)
    return True
