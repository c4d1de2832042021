"""A plan: every layer of a model with its provider, and why."""

from collections.abc import Iterable, Mapping
from typing import Any

import attrs

from megatron_seams.errors import SeamsError
from megatron_seams.recipes.pattern import Pattern
from megatron_seams.recipes.pipeline import Pipeline
from megatron_seams.recipes.policy import Justification
from megatron_seams.recipes.recipe import Parallelism, RuntimeSettings
from megatron_seams.seams.seam import Seam
from megatron_seams.upstream.surface import Native, NativeSurface


@attrs.frozen(kw_only=True)
class Custom:
    """A provider: a seam, and the native slot that carries it.

    Attributes:
        seam: The chosen seam.
        symbol: The letter of the native slot that carries it in the lowered pattern.
        slot: That slot.
    """

    seam: Seam
    symbol: str
    slot: str

    @property
    def name(self) -> str:
        """The provider without its slot, ``seam m2rnn``."""
        mark = " (experiment)" if self.seam.manifest.experiment else ""
        return f"seam {self.seam.name}{mark}"

    @property
    def label(self) -> str:
        """The provider's name in tables, ``seam m2rnn on M``."""
        return f"{self.name} on {self.symbol}"

    @property
    def owner(self) -> str:
        """The team that answers for the layer."""
        return self.seam.owner

    @property
    def state(self) -> str:
        """``seam`` or ``experiment``."""
        return self.seam.manifest.seam.status


Provider = Native | Custom


@attrs.frozen(kw_only=True)
class Layer:
    """One layer of the plan.

    Attributes:
        position: The 1-based global layer number; inside an MTP depth, the number in that depth.
        stage: The 0-based pipeline stage that it is on, also where the pattern has no ``|``.
        rank: The 0-based pipeline rank that has the stage.
        token: The character of the pattern.
        spelled: The family that its token spells, before the recipe's specialisations.
        family_rank: The layer's number among those whose tokens spell that family, from 0.
        family: Its family, after the recipe's specialisations.
        provider: Native Megatron or a seam.
        why: The reason for that provider, in one sentence.
    """

    position: int
    stage: int
    rank: int
    token: str
    spelled: str
    family_rank: int
    family: str
    provider: Provider
    why: str


def grouped(layers: Iterable[Layer]) -> tuple[tuple[Layer, ...], ...]:
    """Groups of layers that differ in number and stage alone, in order of their first layers."""
    groups: dict[tuple[str, str, str, str], list[Layer]] = {}
    for layer in layers:
        key = (layer.token, layer.family, layer.provider.label, layer.why)
        groups.setdefault(key, []).append(layer)
    return tuple(tuple(group) for group in groups.values())


@attrs.frozen(kw_only=True)
class PlannedFeature:
    """A feature that is attached beside the layers.

    Attributes:
        family: The feature family, ``ngram``.
        placement: Where it attaches, ``embedding`` or ``residual``.
        seam: The seam that builds it.
        why: The reason for that seam, in one sentence.
        layers: At ``residual``, the 1-based global numbers of the layers, ascending.
        stages: The 0-based pipeline stages that have it.
    """

    family: str
    placement: str
    seam: Seam
    why: str
    layers: tuple[int, ...] = ()
    stages: tuple[int, ...] = (0,)

    @property
    def place(self) -> str:
        """Placement, layers and stages as text."""
        layers = f" of layers {', '.join(map(str, self.layers))}" if self.layers else ""
        return f"{self.placement}{layers}, stage {', '.join(map(str, self.stages))}"


@attrs.frozen(kw_only=True)
class Plan:
    """A whole model: every layer and feature with its provider.

    Attributes:
        name: The recipe's name, or the pattern.
        pattern: The pattern, read and expanded.
        pipeline: The stages that its layers are cut into, and their ranks.
        surface: The native surface that it was planned against.
        layers: The decoder's layers, position 1 first.
        mtp: The layers of *one* MTP depth; empty without a suffix.
        features: The features that attach beside the layers.
        options: Seam name -> the recipe's options for it, not yet validated by the seam's class.
        megatron: Native configuration keys of the recipe, as written.
        parallelism: How the model is spread over ranks.
        runtime: Packed sequences, inference.
        justified: Seam name -> the recipe's reason for it, for the seams that have one.
        findings: Faults that do not stop this plan: of the environment, settings for a superseded
            seam, stages that one rank is to have.
    """

    name: str
    pattern: Pattern
    pipeline: Pipeline
    surface: NativeSurface
    layers: tuple[Layer, ...]
    mtp: tuple[Layer, ...] = ()
    features: tuple[PlannedFeature, ...] = ()
    options: Mapping[str, Mapping[str, Any]] = attrs.field(factory=dict)
    megatron: Mapping[str, Any] = attrs.field(factory=dict)
    parallelism: Parallelism = attrs.field(factory=Parallelism)
    runtime: RuntimeSettings = attrs.field(factory=RuntimeSettings)
    justified: Mapping[str, Justification] = attrs.field(factory=dict)
    findings: tuple[SeamsError, ...] = ()

    @property
    def families(self) -> frozenset[str]:
        """The families of all layers, those of MTP included."""
        return frozenset(layer.family for layer in (*self.layers, *self.mtp))

    @property
    def seams(self) -> tuple[Seam, ...]:
        """The seams that the plan uses, by name."""
        chosen = {custom.seam.name: custom.seam for custom in self.custom_layers().values()}
        chosen.update({feature.seam.name: feature.seam for feature in self.features})
        return tuple(chosen[name] for name in sorted(chosen))

    def custom_layers(self) -> Mapping[int, Custom]:
        """Layer number -> provider, for the layers that a seam builds."""
        return {
            layer.position: layer.provider
            for layer in self.layers
            if isinstance(layer.provider, Custom)
        }
