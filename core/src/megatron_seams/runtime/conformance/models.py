"""The kit's small models: built, given weights, and run on tokens."""

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

import attrs
import torch
from megatron.core.packed_seq_params import PackedSeqParams
from torch import Tensor, nn

from megatron_seams.families import LATENT
from megatron_seams.planning.plan import Custom, Plan
from megatron_seams.recipes.recipe import Smoke
from megatron_seams.runtime.backends.local import LocalBackend
from megatron_seams.runtime.conformance.rules import BUILDS
from megatron_seams.runtime.model.build import build_model
from megatron_seams.runtime.model.next_token import NextTokenBatch, token_positions
from megatron_seams.runtime.smoke.toy import VOCABULARY, toy_settings

if TYPE_CHECKING:
    from megatron.core.process_groups_config import ProcessGroupCollection

    from megatron_seams.runtime.compat import HybridModel

#: Tokens in a row, and rows; the length divides by two ranks' two pieces each.
LENGTH: Final = 16
ROWS: Final = 2
#: Settings of every model, as published ones have them; untied, so that no two stages share a key.
_USUAL: Final = {
    "normalization": "RMSNorm",
    "add_bias_linear": False,
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
    "share_embeddings_and_output_weights": False,
}
#: Where the documents of a packed row begin and end.
DOCUMENTS: Final = (0, 5, 9, 16)
#: The size of the one step that is taken; large, so that a wrong gradient shows.
STEP: Final = 0.5


def build(plan: Plan, groups: "ProcessGroupCollection", **stage: bool) -> "HybridModel":
    """Build a plan's model on the local backend, or one stage of it.

    Every parameter is moved off its initial value, the same on every rank: what starts at zero
    would hide what is behind it. Weights that are cut over ranks are loaded afterwards.

    Args:
        plan: The model; its own native settings have the last word over the kit's small ones.
        groups: The process groups.
        **stage: ``pre_process`` and ``post_process``.

    Raises:
        RuleBroken: Whatever kept it from being built.
    """
    latent = {"rope_type": "rope"} if plan.families & LATENT else {}
    smoke = Smoke(sequence=LENGTH, megatron=_USUAL | latent | dict(plan.megatron))
    try:
        model = build_model(
            plan,
            settings=toy_settings(plan, smoke),
            backend=LocalBackend(),
            pg_collection=groups,
            **stage,
        )
    except Exception as error:  # noqa: BLE001 - whatever a seam's constructor raises breaks the rule
        BUILDS.broken(f"{type(error).__name__}: {error}")
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point():
                noise = torch.randn(parameter.shape, generator=generator)
                parameter += 0.1 * noise.to(parameter.dtype)
    return model


def tokens(*, rows: int = ROWS) -> Tensor:
    """Token ids, [rows, s + 1] int64, always the same ones."""
    generator = torch.Generator().manual_seed(7)
    return torch.randint(0, VOCABULARY, (rows, LENGTH + 1), generator=generator)


def losses_of(model: nn.Module, row: Tensor) -> Tensor:
    """The loss of each token of ``row`` [b, s + 1] but the first, [b, s]."""
    losses: Tensor = model(**NextTokenBatch.of(row).training())
    return losses


def logits_of(model: nn.Module, inputs: Tensor, *, begin: int = 0, **keywords: Any) -> Tensor:
    """The logits after each token of ``inputs`` [b, s], as [b, s, v].

    Args:
        model: On one rank.
        inputs: Token ids.
        begin: The position of the first of them.
        **keywords: As upstream's model takes them.
    """
    logits: Tensor = model(inputs, token_positions(inputs) + begin, None, **keywords)
    return logits


def packed(*bounds: int) -> PackedSeqParams:
    """The boundaries of a packed row, as upstream's data loaders give them."""
    ends = torch.tensor(bounds, dtype=torch.int32)
    longest = max(end - start for start, end in itertools.pairwise(bounds))
    return PackedSeqParams(
        qkv_format="thd",
        cu_seqlens_q=ends,
        cu_seqlens_kv=ends,
        max_seqlen_q=longest,
        max_seqlen_kv=longest,
    )


@attrs.frozen(kw_only=True, eq=False)
class Part:
    """One module that the seam built, in a model.

    Attributes:
        key: Its name in the model, ``decoder.layers.0.mixer``.
        module: The module.
        kind: ``mixer``, ``layer`` or the placement of a feature.
        number: The global layer number; 0 at the embedding.
    """

    key: str
    module: nn.Module
    kind: str
    number: int = 0


def parts(model: "HybridModel", plan: Plan) -> list[Part]:
    """The modules that the seam built of the model, or of this stage, in the order of layers."""
    return [*_layers(model, plan), *_features(model, plan)]


def _layers(model: "HybridModel", plan: Plan) -> Iterator[Part]:
    custom = plan.custom_layers()
    for index, layer in enumerate(model.decoder.layers):
        provider = custom.get(layer.layer_number)
        if provider is not None:
            key = f"decoder.layers.{index}"
            if kind_of(provider) == "mixer":
                yield Part(
                    key=f"{key}.mixer",
                    module=layer.mixer,
                    kind="mixer",
                    number=layer.layer_number,
                )
            else:
                yield Part(key=key, module=layer, kind="layer", number=layer.layer_number)


def kind_of(provider: Custom) -> str:
    """Whether the seam builds the mixer of upstream's layer, or the whole layer."""
    carrier = provider.seam.manifest.carrier
    return carrier.part_in(provider.slot) if carrier else "layer"


def _features(model: "HybridModel", plan: Plan) -> Iterator[Part]:
    for feature in plan.features:
        for key, module in model.named_modules():
            if key.rpartition(".")[2] == feature.seam.name:
                yield Part(key=key, module=module, kind=feature.placement)
