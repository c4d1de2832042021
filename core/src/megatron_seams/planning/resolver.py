"""Resolution: from a recipe and an environment to a plan, or to every reason against one.

Each step makes one value from those before it, with its faults inside, and none goes back:
:class:`Pattern`, :class:`Requests`, :class:`Choices`, :class:`Carriers`, :class:`Plan`. The faults
of all steps are reported together (docs/architecture.md).
"""

import datetime
from collections.abc import Iterator, Sequence

import attrs

from megatron_seams.errors import NoProvider, Refusal, SeamsError
from megatron_seams.families import BUILT_IN
from megatron_seams.planning.carriers import Carriers, choose_carriers
from megatron_seams.planning.choice import Chooser
from megatron_seams.planning.choices import Choices, choose
from megatron_seams.planning.constraints import unused_settings, violations
from megatron_seams.planning.environment import Environment
from megatron_seams.planning.features import place_features
from megatron_seams.planning.plan import Custom, Layer, Plan, Provider
from megatron_seams.planning.ranks import ranks_of
from megatron_seams.planning.refusals import explicit_refusals
from megatron_seams.planning.requests import Requests, read_pattern, read_requests
from megatron_seams.recipes.pipeline import Pipeline, one_rank, pipeline_of
from megatron_seams.recipes.recipe import Recipe
from megatron_seams.seams.seam import Seam
from megatron_seams.upstream.surface import NativeSymbol


def resolve(
    recipe: Recipe, environment: Environment, *, today: datetime.date | None = None
) -> Plan:
    """Resolve every layer and feature of a recipe.

    Args:
        recipe: The model.
        environment: The Megatron and the seams to build it from.
        today: The day that decides whether an override has expired; the system's by default.

    Returns:
        The plan.

    Raises:
        Refusal: No plan can be made; with every reason.
    """
    try:
        pattern, dialect = read_pattern(recipe)
    except Refusal as refusal:
        raise Refusal((*environment.faults, *refusal.reasons), environment.findings) from refusal
    requests = read_requests(recipe, pattern, dialect)
    chooser = Chooser(
        environment=environment,
        preferences=recipe.preferences,
        today=today or datetime.date.today(),
    )
    choices = choose(requests, chooser)
    pipeline = pipeline_of(recipe, pattern)
    placed = place_features(requests, choices, pipeline)
    carriers = _carriers(environment, choices)
    features = {feature.seam.name: feature.seam for feature in placed.features}
    chosen = {**choices.seams, **features}
    missing, others = _without_megatron(environment, choices.faults)
    reasons: list[SeamsError] = [
        *missing,
        *requests.faults,
        *others,
        *placed.faults,
        *carriers.faults,
        *violations(recipe, pattern, environment, carriers, chosen.values()),
    ]
    findings = environment.findings
    if not reasons:
        # Without a complete plan, a setting may seem unused that the missing part would read.
        families = {*choices.layers, *(feature.family for feature in placed.features)}
        unused = unused_settings(recipe, families, choices, chosen.keys())
        reasons += unused.reasons
        findings += unused.findings
        findings += tuple(filter(None, [one_rank(recipe.parallelism, pattern)]))
    if reasons:
        # The environment's own come first whatever layers they concern.
        ordered = [*missing, *sorted(reasons[len(missing) :], key=_first_layer)]
        beside = [it for it in environment.findings if it not in environment.faults]
        raise Refusal(ordered, beside, tokens=pattern.tokens)
    plan = Plan(
        name=recipe.model.name,
        pattern=pattern,
        pipeline=pipeline,
        surface=environment.surface,
        layers=tuple(_decoder(requests, choices, carriers, pipeline)),
        mtp=tuple(_mtp(requests, choices, pipeline)),
        features=placed.features,
        options={name: recipe.seams[name] for name in sorted(recipe.seams) if name in chosen},
        megatron=recipe.megatron,
        parallelism=recipe.parallelism,
        runtime=recipe.runtime,
        justified={entry.seam: entry for entry in recipe.justify or ()},
        findings=findings,
    )
    if recipe.megatron:
        refused = explicit_refusals(plan, environment.settings())
        if refused:
            raise Refusal(refused, environment.findings, tokens=pattern.tokens)
    return plan


def _without_megatron(
    environment: Environment, faults: Sequence[SeamsError]
) -> tuple[tuple[SeamsError, ...], list[SeamsError]]:
    """The environment's faults with the layers that only lack a Megatron, and the other faults.

    A family that Megatron builds has one cause then, and no plugin to install.
    """
    if not environment.faults:
        return (), [*faults]
    native = {name for name, family in BUILT_IN.items() if family.constant}
    lacking = [
        fault
        for fault in faults
        if isinstance(fault, NoProvider) and fault.subject in native and fault.key is None
    ]
    first, *rest = environment.faults
    positions = tuple(sorted({at for fault in lacking for at in fault.positions}))
    others = [fault for fault in faults if fault not in lacking]
    return (attrs.evolve(first, positions=positions), *rest), others


def _carriers(environment: Environment, choices: Choices) -> Carriers:
    if environment.surface.version is None:
        return Carriers()  # nothing carries anything, and the environment's fault says so
    return choose_carriers(
        environment.surface,
        choices.native,
        choices.seams,
        environment.families,
        mtp=choices.mtp.values(),
    )


def _first_layer(reason: SeamsError) -> int:
    # Faults of the environment and the recipe's form come first; sorted() keeps their order.
    return min(reason.positions, default=0)


def _decoder(
    requests: Requests, choices: Choices, carriers: Carriers, pipeline: Pipeline
) -> Iterator[Layer]:
    """The decoder's layers, position 1 first."""
    tokens, stages = requests.pattern.tokens, pipeline.stages
    spelled = [requests.spelled[token] or "" for token in tokens]
    ranks = ranks_of(spelled)
    family_of = {
        position: family
        for family, request in requests.layers.items()
        for position in request.positions
    }
    providers = {
        family: _provider(choice.provider, carriers) for family, choice in choices.layers.items()
    }
    for position, token in enumerate(tokens, start=1):
        family = family_of[position]
        because, why = requests.because(position), choices.layers[family].why
        yield Layer(
            position=position,
            stage=stages[position - 1],
            rank=pipeline.rank_of(stages[position - 1]),
            token=token,
            spelled=spelled[position - 1],
            family_rank=ranks[position - 1],
            family=family,
            provider=providers[family],
            why=f"{because}; {why}" if because else why,
        )


def _provider(chosen: NativeSymbol | Seam, carriers: Carriers) -> Provider:
    if isinstance(chosen, NativeSymbol):
        return chosen.provider
    carrier = carriers.slots[chosen.name]
    return Custom(seam=chosen, symbol=carrier.symbol, slot=carrier.slot)


def _mtp(requests: Requests, choices: Choices, pipeline: Pipeline) -> Iterator[Layer]:
    """The layers of one MTP depth; all MTP depths are on the last stage."""
    last = len(pipeline.sizes) - 1
    family_of = {
        position: family for family, request in requests.layers.items() for position in request.mtp
    }
    spelled = [requests.spelled[token] or "" for token in requests.pattern.mtp]
    ranks = ranks_of(spelled)
    for position, token in enumerate(requests.pattern.mtp, start=1):
        because, why = requests.because_of(token), "an MTP depth is built from native parts"
        yield Layer(
            position=position,
            stage=last,
            rank=pipeline.rank_of(last),
            token=token,
            spelled=spelled[position - 1],
            family_rank=ranks[position - 1],
            family=family_of[position],
            provider=choices.mtp[family_of[position]].provider,
            why=f"{because}; {why}" if because else why,
        )
