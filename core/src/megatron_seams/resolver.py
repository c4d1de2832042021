"""Resolution: from a recipe and an environment to a plan, or to every reason against one."""

import datetime
import itertools
from collections.abc import Iterable, Mapping

import attrs

from megatron_seams.choice import Choice, Chooser, unused_settings
from megatron_seams.demands import unmet_demands
from megatron_seams.environment import Environment
from megatron_seams.errors import Refusal, SeamInMtp, SeamsError
from megatron_seams.families import BUILT_IN
from megatron_seams.lowering import Carriers, choose_carriers
from megatron_seams.pattern import Pattern
from megatron_seams.placement import plan_features
from megatron_seams.plan import Custom, Layer, Native, Plan, PlannedFeature, Provider
from megatron_seams.recipe import Recipe
from megatron_seams.seam import Seam
from megatron_seams.specialise import Families, families_of, read_pattern
from megatron_seams.surface import NativeSymbol


@attrs.frozen(kw_only=True)
class _Resolution:
    """What each family of one recipe resolves to: a plan but for its layers.

    Attributes:
        pattern: The layers as they are spelled.
        families: And what each of them is.
        choices: Family -> who builds it, in the decoder.
        mtp: Family -> who builds it, in an MTP depth.
        providers: Family -> the same as ``choices``, with the slot that carries it.
        features: What attaches beside the layers.
        chosen: The seams by name.
        findings: What is wrong without stopping the plan.
    """

    pattern: Pattern
    families: Families
    choices: Mapping[str, Choice]
    mtp: Mapping[str, NativeSymbol]
    providers: Mapping[str, Provider]
    features: tuple[PlannedFeature, ...]
    chosen: Mapping[str, Seam]
    findings: tuple[SeamsError, ...]


def resolve(
    recipe: Recipe, environment: Environment, *, today: datetime.date | None = None
) -> Plan:
    """Resolve every layer and feature of a recipe.

    Args:
        recipe: The model.
        environment: The Megatron and the seams to build it from.
        today: The day on which overrides are judged; the system's by default.

    Returns:
        The plan.

    Raises:
        Refusal: With every reason at once.
    """
    found = _resolve(recipe, environment, today)
    return Plan(
        name=recipe.model.name,
        pattern=found.pattern,
        surface=environment.surface,
        layers=tuple(_layers(found)),
        mtp=tuple(_mtp_layers(found)),
        features=found.features,
        options={name: recipe.seams[name] for name in sorted(recipe.seams) if name in found.chosen},
        megatron=recipe.megatron,
        parallelism=recipe.parallelism,
        runtime=recipe.runtime,
        findings=found.findings,
    )


def providers(
    recipe: Recipe, environment: Environment, *, today: datetime.date | None = None
) -> tuple[Provider, ...]:
    """Who builds each decoder layer, the first layer first, and nothing more.

    The light half of :func:`resolve`, with its arguments and its refusals: each family is resolved
    once, and its layers share the answer.

    Raises:
        Refusal: As :func:`resolve` does.
    """
    found = _resolve(recipe, environment, today)
    # A plan stands, so that every layer has a family.
    return tuple(map(found.providers.__getitem__, filter(None, found.families.layers)))


def _resolve(recipe: Recipe, environment: Environment, today: datetime.date | None) -> _Resolution:
    try:
        pattern, dialect = read_pattern(recipe)
    except Refusal as refusal:
        raise Refusal((*environment.faults, *refusal.reasons), environment.findings) from refusal
    families = families_of(recipe, pattern, dialect)
    chooser = Chooser(environment, recipe, today)
    reasons: list[SeamsError] = [*environment.faults, *families.faults]
    choices = _choose(chooser, pattern, families, reasons)
    mtp = _choose_mtp(chooser, pattern, families, reasons)
    features = plan_features(recipe, pattern, environment, chooser, reasons)
    carriers = _carry(environment, choices, mtp, reasons)
    chosen = {seam.name: seam for seam in (*_seams(choices.values()), *(f.seam for f in features))}
    reasons += unmet_demands(recipe, pattern, environment, carriers, chosen.values())
    idle: tuple[SeamsError, ...] = ()
    if not reasons:
        # Only a plan that stands can say what it does not read.
        unused, idle = unused_settings(recipe, chooser, choices, chosen.keys())
        reasons += unused
    if reasons:
        ordered = sorted(reasons, key=_first_layer)
        raise Refusal(ordered, environment.findings, tokens=pattern.tokens)
    return _Resolution(
        pattern=pattern,
        families=families,
        choices=choices,
        mtp=mtp,
        providers={family: _provider(choice, carriers) for family, choice in choices.items()},
        features=tuple(features),
        chosen=chosen,
        findings=(*environment.findings, *idle),
    )


def _first_layer(reason: SeamsError) -> int:
    # Faults of the environment and the recipe's form come first; sorted() keeps their order.
    return min(reason.positions, default=0)


def _choose(
    chooser: Chooser, pattern: Pattern, families: Families, reasons: list[SeamsError]
) -> dict[str, Choice]:
    """Family -> choice, for the decoder's layers; one reason for each family without one."""
    choices: dict[str, Choice] = {}
    for family in dict.fromkeys(families.layers):
        if family is None:
            continue
        choice = chooser.choose(family)
        if isinstance(choice, SeamsError):
            where = [at for at, found in enumerate(families.layers, start=1) if found == family]
            reasons.append(_at(choice, pattern, families, where))
        else:
            choices[family] = choice
    return choices


def _at(
    fault: SeamsError, pattern: Pattern, families: Families, positions: list[int]
) -> SeamsError:
    """The fault with the layers that it stops, and what their tokens say by themselves."""
    tokens = ", ".join(dict.fromkeys(repr(pattern.tokens[at - 1]) for at in positions))
    count = f"{len(positions)} layer{'s' if len(positions) > 1 else ''}"
    found = fault.found
    other = {families.spelled[at - 1] for at in positions} - {families.layers[positions[0] - 1]}
    if other:
        spelled = " and ".join(sorted(_described(family) for family in other if family))
        because = families.because[positions[0] - 1]
        found += f"; {because}, and {spelled} is not taken in its place"
    return type(fault)(
        asked=f"{fault.asked} (token {tokens}, {count})",
        found=found,
        next=fault.next,
        subject=fault.subject,
        file=fault.file,
        key=fault.key,
        positions=tuple(positions),
    )


def _described(family: str) -> str:
    known = BUILT_IN.get(family)
    return f"{family} ({known.summary.rstrip('.')})" if known else family


def _choose_mtp(
    chooser: Chooser, pattern: Pattern, families: Families, reasons: list[SeamsError]
) -> dict[str, NativeSymbol]:
    """Family -> native symbol, for the MTP suffix, where nothing else is supported."""
    found: dict[str, NativeSymbol] = {}
    for family in dict.fromkeys(family for family in families.mtp if family):
        choice = chooser.choose(family)
        if isinstance(choice, SeamsError):
            if family not in families.layers:  # else it has been said of the decoder's layers
                reasons.append(choice)
        elif isinstance(choice.provider, Seam):
            tokens = [t for t, f in zip(pattern.mtp, families.mtp, strict=True) if f == family]
            reasons.append(
                SeamInMtp(
                    asked=f"{choice.provider.claim} for token {tokens[0]!r} of MTP part "
                    f"{pattern.mtp!r}",
                    found="an MTP depth builds its layers from native parts only, with numbers of "
                    "its own",
                    next="spell the MTP part with native families",
                    subject=family,
                )
            )
        else:
            found[family] = choice.provider
    return found


def _seams(choices: Iterable[Choice]) -> list[Seam]:
    return [choice.provider for choice in choices if isinstance(choice.provider, Seam)]


def _carry(
    environment: Environment,
    choices: dict[str, Choice],
    mtp: dict[str, NativeSymbol],
    reasons: list[SeamsError],
) -> Carriers:
    native = [c.provider for c in choices.values() if isinstance(c.provider, NativeSymbol)]
    seams = _seams(choices.values())
    if environment.surface.version is None:
        return Carriers()  # nothing to ride on, which has been said already
    carriers = choose_carriers(
        environment.surface, [*native, *mtp.values()], seams, environment.families
    )
    reasons.extend(carriers.faults)
    return carriers


def _provider(choice: Choice, carriers: Carriers) -> Provider:
    if isinstance(choice.provider, NativeSymbol):
        return Native(symbol=choice.provider.symbol, slot=choice.provider.slot)
    carrier = carriers.slots[choice.provider.name]
    return Custom(seam=choice.provider, symbol=carrier.symbol, slot=carrier.slot)


def _layers(found: _Resolution) -> Iterable[Layer]:
    because = found.families.because
    why = {family: choice.why for family, choice in found.choices.items()}
    rows = zip(
        itertools.count(1),
        found.pattern.tokens,
        found.families.layers,
        found.pattern.stage_numbers(),
        strict=False,  # the count has no end
    )
    for position, token, family, stage in rows:
        if family is None:  # such a pattern was refused
            continue
        said = because.get(position - 1)
        yield Layer(
            position=position,
            token=token,
            family=family,
            stage=stage,
            provider=found.providers[family],
            why=f"{said}; {why[family]}" if said else why[family],
        )


def _mtp_layers(found: _Resolution) -> Iterable[Layer]:
    last = len(found.pattern.stages) - 1
    rows = zip(found.pattern.mtp, found.families.mtp, strict=True)
    for number, (token, family) in enumerate(rows, start=1):
        if family is not None:
            symbol = found.mtp[family]
            yield Layer(
                position=number,
                token=token,
                family=family,
                stage=last,
                provider=Native(symbol=symbol.symbol, slot=symbol.slot),
                why="an MTP depth is built from native parts",
            )
