"""A plan: every layer of a model with its provider, and why. Frozen values, no behaviour."""

import bisect
import itertools
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, overload

import attrs

from megatron_seams.errors import SeamsError
from megatron_seams.recipes.pattern import Pattern
from megatron_seams.recipes.recipe import Parallelism, RuntimeSettings
from megatron_seams.seams.seam import Seam
from megatron_seams.upstream.surface import Native, NativeSurface


@attrs.frozen(kw_only=True)
class Custom:
    """A seam builds the layer.

    Attributes:
        seam: The chosen seam.
        symbol: The letter of the native slot that carries it in the lowered pattern.
        slot: That slot.
    """

    seam: Seam
    symbol: str
    slot: str

    @property
    def label(self) -> str:
        """How tables name the provider."""
        mark = " (experiment)" if self.seam.manifest.experiment else ""
        return f"seam {self.seam.name}{mark}"


Provider = Native | Custom


@attrs.frozen(kw_only=True)
class LayerKind:
    """What the layers of one token have in common.

    Attributes:
        token: The character of the pattern.
        family: What it is, after the recipe's specialisations.
        provider: Who builds it.
        why: One sentence.
    """

    token: str
    family: str
    provider: Provider
    why: str


@attrs.frozen(kw_only=True)
class Layer:
    """One layer of the plan.

    Attributes:
        position: The 1-based global layer number; inside an MTP depth, the number in that depth.
        stage: The 0-based pipeline segment; 0 where the pattern has no ``|``.
        kind: What it is and who builds it.
    """

    position: int
    stage: int
    kind: LayerKind

    @property
    def token(self) -> str:
        """The character of the pattern."""
        return self.kind.token

    @property
    def family(self) -> str:
        """What it is, after the recipe's specialisations."""
        return self.kind.family

    @property
    def provider(self) -> Provider:
        """Who builds it."""
        return self.kind.provider

    @property
    def why(self) -> str:
        """One sentence."""
        return self.kind.why


@attrs.frozen(kw_only=True)
class Layers(Sequence[Layer]):
    """The decoder's layers, position 1 first, each made when it is asked for.

    A plan keeps the kinds of its layers, which are few. Over a million layers that were kept,
    Python's garbage collector would go for longer than it takes to make them.

    Attributes:
        pattern: Their tokens and stages.
        of_token: Token -> the kind of its layers.
        of_layer: 1-based number of each layer that is of another kind than its token -> that kind.
    """

    pattern: Pattern
    of_token: Mapping[str, LayerKind]
    of_layer: Mapping[int, LayerKind]

    def __len__(self) -> int:
        """The depth."""
        return self.pattern.depth

    @property
    def kinds(self) -> list[LayerKind]:
        """The kind of each layer."""
        return self.pattern.spread(self.of_token, self.of_layer)

    def __iter__(self) -> Iterator[Layer]:
        """Make every layer."""
        rows = zip(self.kinds, self.pattern.stage_numbers(), strict=True)
        for position, (kind, stage) in enumerate(rows, start=1):
            yield Layer(position=position, stage=stage, kind=kind)

    @overload
    def __getitem__(self, index: int) -> Layer: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Layer, ...]: ...
    def __getitem__(self, index: int | slice) -> Layer | tuple[Layer, ...]:
        """Make the layer of a 0-based index, or those of a slice."""
        if isinstance(index, slice):
            return tuple(self)[index]
        at = range(len(self))[index]
        position, token = at + 1, self.pattern.tokens[at]
        return Layer(
            position=position,
            stage=bisect.bisect(list(itertools.accumulate(self.pattern.stages)), at),
            kind=self.of_layer[position] if position in self.of_layer else self.of_token[token],
        )


@attrs.frozen(kw_only=True)
class PlannedFeature:
    """A feature that is attached beside the layers.

    Attributes:
        family: The feature family, ``ngram``.
        placement: Where it attaches, ``embedding`` or ``residual``.
        seam: Who builds it.
        why: One sentence.
        layers: At ``residual``, the 1-based global numbers of the layers, ascending.
        stages: The 0-based pipeline stages that it lives on.
    """

    family: str
    placement: str
    seam: Seam
    why: str
    layers: tuple[int, ...] = ()
    stages: tuple[int, ...] = (0,)

    @property
    def place(self) -> str:
        """Placement, layers and stages in words."""
        layers = f" of layers {', '.join(map(str, self.layers))}" if self.layers else ""
        return f"{self.placement}{layers}, stage {', '.join(map(str, self.stages))}"


@attrs.frozen(kw_only=True)
class Plan:
    """The whole model.

    Attributes:
        name: The recipe's name, or the pattern.
        pattern: What was asked for.
        surface: The native surface that it was planned against.
        layers: The decoder's layers, position 1 first.
        mtp: The layers of *one* MTP depth; empty without a suffix.
        features: What attaches beside them.
        options: Seam name -> the recipe's options for it, not yet validated by the seam's class.
        megatron: Native configuration keys of the recipe, as written.
        parallelism: How the model is spread over ranks.
        runtime: Packed sequences, inference.
        findings: What is wrong in the environment without stopping this plan.
    """

    name: str
    pattern: Pattern
    surface: NativeSurface
    layers: Layers
    mtp: tuple[Layer, ...] = ()
    features: tuple[PlannedFeature, ...] = ()
    options: Mapping[str, Mapping[str, Any]] = MappingProxyType({})
    megatron: Mapping[str, Any] = MappingProxyType({})
    parallelism: Parallelism = attrs.field(factory=Parallelism)
    runtime: RuntimeSettings = attrs.field(factory=RuntimeSettings)
    findings: tuple[SeamsError, ...] = ()

    @property
    def seams(self) -> tuple[Seam, ...]:
        """The seams that the plan uses, by name."""
        chosen = {
            kind.provider.seam.name: kind.provider.seam
            for kind in self.layers.kinds
            if isinstance(kind.provider, Custom)
        }
        chosen.update({feature.seam.name: feature.seam for feature in self.features})
        return tuple(chosen[name] for name in sorted(chosen))

    def custom_layers(self) -> Mapping[int, Custom]:
        """Layer number -> provider, for the layers that a seam builds."""
        return {
            position: kind.provider
            for position, kind in enumerate(self.layers.kinds, start=1)
            if isinstance(kind.provider, Custom)
        }
