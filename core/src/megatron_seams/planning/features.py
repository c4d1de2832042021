"""Features: where the recipe's ``[[features]]`` attach, given the pattern, seams and stages."""

from collections.abc import Sequence
from typing import Final

import attrs

from megatron_seams.errors import FeatureInvalid, SeamsError
from megatron_seams.planning.choices import Choices
from megatron_seams.planning.plan import PlannedFeature
from megatron_seams.planning.ranks import layers_at
from megatron_seams.planning.requests import Requests
from megatron_seams.recipes.pattern import Pattern
from megatron_seams.recipes.pipeline import Pipeline
from megatron_seams.recipes.recipe import FeatureEntry
from megatron_seams.seams.seam import Seam

#: Added to the word embedding, on the first stage.
EMBEDDING: Final = "embedding"
#: Added to the hidden states that enter named layers of the decoder.
RESIDUAL: Final = "residual"


@attrs.frozen(kw_only=True)
class Placements:
    """The features of a model, with the place of each.

    Attributes:
        features: Those that can be placed, in the recipe's order.
        faults: A fault for each of the others, those without a provider included.
    """

    features: tuple[PlannedFeature, ...] = ()
    faults: tuple[SeamsError, ...] = ()


def place_features(requests: Requests, choices: Choices, pipeline: Pipeline) -> Placements:
    """Give every feature of a recipe its place.

    Args:
        requests: The pattern and the recipe's features.
        choices: The provider of each feature.
        pipeline: The stage of each layer.
    """
    planned: dict[str, PlannedFeature] = {}
    faults: list[SeamsError] = []
    for entry in requests.features:
        choice = choices.features.get(entry.family)
        if entry.family in choices.blocks:
            advice = "spell it in the pattern"
            faults.append(_fault(entry.family, f"{entry.family} is a block", advice=advice))
        elif entry.family in planned:
            faults.append(_fault(entry.family, "the recipe has it twice", advice="keep one entry"))
        elif isinstance(choice, SeamsError):
            faults.append(choice)
        elif choice is not None and isinstance(choice.provider, Seam):
            placed = _placed(entry, choice.provider, requests, pipeline)
            if isinstance(placed, SeamsError):
                faults.append(placed)
            else:
                planned[entry.family] = attrs.evolve(placed, why=choice.why)
    return Placements(features=tuple(planned.values()), faults=tuple(faults))


def _placed(
    entry: FeatureEntry, seam: Seam, requests: Requests, pipeline: Pipeline
) -> PlannedFeature | FeatureInvalid:
    pattern = requests.pattern
    placement = seam.manifest.feature.placement if seam.manifest.feature else ""
    if entry.placement not in (None, placement):
        return _fault(
            f"{entry.family} at {entry.placement}",
            f"{seam.claim} attaches at {placement!r}",
            advice=f'write placement = "{placement}", or leave it out',
        )
    layers, problem, advice = _named_layers(entry, requests)
    if problem:
        return _fault(entry.family, problem, advice=advice)
    if placement == EMBEDDING and (layers or entry.of is not None):
        problem = f"{seam.claim} attaches at {placement!r}, which no layer is"
        advice = "leave out " + " and ".join(_naming_layers(entry))
    elif placement == EMBEDDING and pattern.mtp_depths and len(pipeline.sizes) > 1:
        problem = (
            "the pattern has an MTP suffix and several stages: MTP calls an embedding of its own "
            "on the last one, and the feature is on the first alone"
        )
        advice = "leave out the suffix or the feature, or have one stage"
    elif placement == RESIDUAL and not layers:
        problem = f"{seam.claim} attaches to named layers, and the entry names none"
        advice = f"name them: layers = [{_first(entry.of, requests)}]"
    elif len(set(layers)) < len(layers):
        problem, advice = f"layers has a number twice: {list(layers)}", "name each layer once"
    if problem:
        return _fault(entry.family, problem, advice=advice)
    beyond = tuple(at for at in layers if not 1 <= at <= pattern.depth)
    if beyond:
        return _fault(
            entry.family,
            f"the pattern has layers 1 to {pattern.depth}, and no {_listed(beyond)}",
            advice="name layers that there are",
        )
    stages = pipeline.stages
    without = _without_ids(layers, stages, pattern)
    if without:
        named = dict.fromkeys(stages[at - 1] for at in without)
        return _fault(
            f"{entry.family} at layers {_listed(without)}, on stage {_listed(tuple(named))}",
            f"upstream's data path gives that stage no token ids, of {max(stages) + 1} stages",
            advice="name layers of stage 0, which has them, or move the stages",
            positions=without,
        )
    at = tuple(sorted({stages[layer - 1] for layer in layers})) or (0,)
    return PlannedFeature(
        family=entry.family, placement=placement, seam=seam, why="", layers=layers, stages=at
    )


def _naming_layers(entry: FeatureEntry) -> list[str]:
    """The keys of an entry that name layers."""
    given = {"layers": entry.layers, "ranks": entry.ranks, "of": entry.of}
    return [key for key, value in given.items() if value]


def _first(of: str | None, requests: Requests) -> int:
    """The number of the first layer that an entry for layers of one family can name."""
    tokens = enumerate(requests.pattern.tokens, start=1)
    return next((at for at, token in tokens if of in (None, requests.spelled[token])), 1)


def _named_layers(entry: FeatureEntry, requests: Requests) -> tuple[tuple[int, ...], str, str]:
    """The entry's layers, ascending; or what is wrong with them, and what to do."""
    pattern, spelled = requests.pattern, requests.spelled
    if entry.ranks is not None and entry.of is not None:
        layers, problem = layers_at(entry.ranks, entry.of, pattern, spelled)
        return tuple(sorted(layers)), problem, "correct ranks and of"
    layers = tuple(sorted(entry.layers))
    inside = [at for at in layers if 1 <= at <= pattern.depth]
    other = [at for at in inside if entry.of not in (None, spelled[pattern.tokens[at - 1]])]
    if other:
        found = spelled[pattern.tokens[other[0] - 1]] or "no family"
        problem = f"the entry is for layers of {entry.of}; the pattern spells {found} at {other[0]}"
        return layers, problem, "correct layers or of"
    return layers, "", ""


def _without_ids(layers: Sequence[int], stages: Sequence[int], pattern: Pattern) -> tuple[int, ...]:
    """The layers on stages that get no token ids; the first stage does, and the one with MTP."""
    have = {0, max(stages)} if pattern.mtp_depths else {0}
    return tuple(layer for layer in layers if stages[layer - 1] not in have)


def _listed(numbers: tuple[int, ...]) -> str:
    return ", ".join(map(str, numbers))


def _fault(
    asked: str, found: str, *, advice: str, positions: tuple[int, ...] = ()
) -> FeatureInvalid:
    return FeatureInvalid(
        asked=f"feature {asked}",
        found=found,
        next=advice,
        subject=asked,
        key="features",
        positions=positions,
    )
