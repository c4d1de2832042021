"""Where features attach: the recipe's ``[[features]]`` held against pattern, seams and stages."""

from collections.abc import Sequence
from itertools import accumulate
from typing import Final

import attrs

from megatron_seams.errors import FeatureInvalid, SeamsError
from megatron_seams.planning.choice import Chooser
from megatron_seams.planning.environment import Environment
from megatron_seams.planning.plan import PlannedFeature
from megatron_seams.recipes.pattern import Pattern
from megatron_seams.recipes.recipe import FeatureEntry, Recipe
from megatron_seams.seams.seam import Seam

#: Added to the word embedding, on the first stage.
EMBEDDING: Final = "embedding"
#: Added to the hidden states that enter named layers of the decoder.
RESIDUAL: Final = "residual"


def plan_features(
    recipe: Recipe,
    pattern: Pattern,
    environment: Environment,
    chooser: Chooser,
    reasons: list[SeamsError],
) -> list[PlannedFeature]:
    """Give every feature of a recipe its seam and its place.

    Args:
        recipe: Its ``[[features]]``, and how the model is spread over stages.
        pattern: Its layers.
        environment: The families.
        chooser: Finds the seam.
        reasons: Gets a reason for every feature that cannot be placed.

    Returns:
        Those that can.
    """
    planned: dict[str, PlannedFeature] = {}
    for entry in recipe.features:
        family = environment.families.get(entry.family)
        if family is not None and family.kind != "feature":
            reasons.append(
                _fault(entry.family, f"{entry.family} is a block", advice="spell it in the pattern")
            )
            continue
        if entry.family in planned:
            reasons.append(_fault(entry.family, "the recipe has it twice", advice="keep one entry"))
            continue
        choice = chooser.choose(entry.family, of_layer=False)
        if isinstance(choice, SeamsError):
            reasons.append(choice)
            continue
        seam = choice.provider
        if not isinstance(seam, Seam) or seam.manifest.feature is None:
            continue
        placed = _placed(entry, seam, pattern, recipe)
        if isinstance(placed, SeamsError):
            reasons.append(placed)
        else:
            planned[entry.family] = attrs.evolve(placed, why=choice.why)
    return list(planned.values())


def _placed(
    entry: FeatureEntry, seam: Seam, pattern: Pattern, recipe: Recipe
) -> PlannedFeature | FeatureInvalid:
    placement = seam.manifest.feature.placement if seam.manifest.feature else ""
    if entry.placement not in (None, placement):
        return _fault(
            f"{entry.family} at {entry.placement}",
            f"{seam.claim} attaches at {placement!r}",
            advice=f'write placement = "{placement}", or leave it out',
        )
    layers = tuple(sorted(entry.layers))
    problem = advice = ""
    if placement == EMBEDDING and layers:
        problem = f"{seam.claim} attaches at {placement!r}, which no layer is"
        advice = "leave out layers"
    elif placement == EMBEDDING and pattern.mtp_depths:
        problem = (
            "the pattern has an MTP suffix: MTP calls the same embedding with token ids that are "
            "rolled by one, which no feature takes yet"
        )
        advice = "leave out the suffix or the feature"
    elif placement == RESIDUAL and not layers:
        problem = f"{seam.claim} attaches to named layers, and the entry names none"
        advice = "name them: layers = [2, 15]"
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
    stages = stage_numbers(pattern, recipe)
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


def stage_numbers(pattern: Pattern, recipe: Recipe) -> list[int]:
    """The 0-based pipeline stage of each layer, also where the pattern leaves it to upstream.

    Without a ``|`` upstream cuts evenly, but for a first and a last stage whose sizes the
    configuration may give. What does not divide evenly is refused elsewhere.
    """
    ranks = recipe.parallelism.pipeline_parallel
    if len(pattern.stages) > 1 or ranks == 1:
        return pattern.stage_numbers()
    sizes = (
        recipe.megatron.get(f"num_layers_in_{end}_pipeline_stage") for end in ("first", "last")
    )
    first, last = ([] if size is None else [int(size)] for size in sizes)
    between = ranks - len(first) - len(last)
    each = (pattern.depth - sum(first) - sum(last)) // max(1, between)
    ends = list(accumulate([*first, *[each] * between, *last]))
    return [sum(at >= end for end in ends[:-1]) for at in range(pattern.depth)]


def _without_ids(layers: Sequence[int], stages: Sequence[int], pattern: Pattern) -> tuple[int, ...]:
    """The layers on stages that get no token ids: all but the first, and the one with MTP."""
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
