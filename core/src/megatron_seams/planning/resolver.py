"""Resolution: from a recipe and an environment to a plan, or to every reason against one."""

import datetime
from collections.abc import Iterable, Mapping

import attrs

from megatron_seams.errors import Refusal, SeamInMtp, SeamsError
from megatron_seams.families import BUILT_IN
from megatron_seams.planning.choice import Chooser, unused_settings
from megatron_seams.planning.constraints import unmet_demands
from megatron_seams.planning.environment import Choice, Environment
from megatron_seams.planning.features import plan_features
from megatron_seams.planning.lowering import Carriers, choose_carriers
from megatron_seams.planning.plan import (
    Custom,
    Layer,
    LayerKind,
    Layers,
    Plan,
    PlannedFeature,
    Provider,
)
from megatron_seams.planning.requests import Families, families_of, read_pattern
from megatron_seams.recipes.pattern import Pattern
from megatron_seams.recipes.recipe import Recipe
from megatron_seams.seams.seam import Seam
from megatron_seams.upstream.surface import NativeSymbol


@attrs.frozen(kw_only=True)
class _Resolution:
    """What each family of one recipe resolves to: a plan but for its layers.

    Attributes:
        pattern: The layers as they are spelled.
        families: And what each of them is.
        providers: Family -> who builds it, in the decoder.
        choices: Family -> the same, and why.
        mtp: Family -> who builds it, in an MTP depth.
        features: What attaches beside the layers.
        chosen: The seams by name.
        findings: What is wrong without stopping the plan.
    """

    pattern: Pattern
    families: Families
    providers: Mapping[str, Provider]
    choices: Mapping[str, Choice]
    mtp: Mapping[str, NativeSymbol]
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
        layers=_layers(found),
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
    by, families = found.providers, found.families
    # The token of an MTP depth alone is built by no one here.
    of_token = {token: by[name] for token, name in families.of_token.items() if name and name in by}
    of_layer = {position: by[name] for position, name in families.of_layer.items()}
    return tuple(found.pattern.spread(of_token, of_layer))


def _resolve(recipe: Recipe, environment: Environment, today: datetime.date | None) -> _Resolution:
    try:
        pattern, dialect = read_pattern(recipe)
    except Refusal as refusal:
        raise Refusal((*environment.faults, *refusal.reasons), environment.findings) from refusal
    families = families_of(recipe, pattern, dialect)
    chooser = Chooser(environment, recipe, today)
    reasons: list[SeamsError] = [*environment.faults, *families.faults]
    choices = _choose(chooser, pattern, families, reasons)
    mtp = _choose_mtp(chooser, pattern, families, reasons) if pattern.mtp else {}
    native: dict[str, NativeSymbol] = {}
    seams: dict[str, Seam] = {}
    for family, choice in choices.items():
        if isinstance(choice.provider, NativeSymbol):
            native[family] = choice.provider
        else:
            seams[choice.provider.name] = choice.provider
    features = plan_features(recipe, pattern, environment, chooser, reasons)
    carriers = Carriers()
    if environment.surface.version is not None:  # else there is nothing to ride on, which was said
        symbols = [*native.values(), *mtp.values()]
        carriers = choose_carriers(environment.surface, symbols, seams, environment.families)
        reasons += carriers.faults
    chosen = {**seams, **{feature.seam.name: feature.seam for feature in features}}
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
        providers={
            **{family: symbol.provider for family, symbol in native.items()},
            **{seam.family: _custom(seam, carriers) for seam in seams.values()},
        },
        choices=choices,
        mtp=mtp,
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
    for family in families.present:
        if family is None:
            continue
        choice = chooser.choose(family)
        if isinstance(choice, SeamsError):
            reasons.append(_at(choice, family, pattern, families))
        else:
            choices[family] = choice
    return choices


def _at(fault: SeamsError, family: str, pattern: Pattern, families: Families) -> SeamsError:
    """The fault with the layers that it stops, and what their tokens say by themselves."""
    layers = pattern.spread(families.of_token, families.of_layer)
    positions = [at for at, found in enumerate(layers, start=1) if found == family]
    tokens = dict.fromkeys(pattern.tokens[at - 1] for at in positions)
    count = f"{len(positions)} layer{'s' if len(positions) > 1 else ''}"
    found = fault.found
    if other := {families.spelled[token] for token in tokens} - {family}:
        spelled = " and ".join(sorted(_described(name) for name in other if name))
        said = (families.why(at, pattern.tokens[at - 1]) for at in positions)
        found += f"; {next(filter(None, said))}, and {spelled} is not taken in its place"
    return type(fault)(
        asked=f"{fault.asked} (token {', '.join(map(repr, tokens))}, {count})",
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
    for family in dict.fromkeys([family for family in families.mtp if family]):
        choice = chooser.choose(family)
        if isinstance(choice, SeamsError):
            if family not in families.present:  # else it has been said of the decoder's layers
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


def _custom(seam: Seam, carriers: Carriers) -> Custom:
    carrier = carriers.slots[seam.name]
    return Custom(seam=seam, symbol=carrier.symbol, slot=carrier.slot)


def _layers(found: _Resolution) -> Layers:
    families, tokens = found.families, found.pattern.tokens

    def kind(token: str, family: str, because: str) -> LayerKind:
        why = found.choices[family].why
        return LayerKind(
            token=token,
            family=family,
            provider=found.providers[family],
            why=f"{because}; {why}" if because else why,
        )

    return Layers(
        pattern=found.pattern,
        of_token={
            token: kind(token, family, families.because.get(token, ""))
            for token, family in families.of_token.items()
            if family is not None and family in found.choices
        },
        of_layer={
            at: kind(tokens[at - 1], family, families.why(at, tokens[at - 1]))
            for at, family in families.of_layer.items()
        },
    )


def _mtp_layers(found: _Resolution) -> Iterable[Layer]:
    last = len(found.pattern.stages) - 1
    rows = zip(found.pattern.mtp, found.families.mtp, strict=True)
    for number, (token, family) in enumerate(rows, start=1):
        if family is not None:
            kind = LayerKind(
                token=token,
                family=family,
                provider=found.mtp[family].provider,
                why="an MTP depth is built from native parts",
            )
            yield Layer(position=number, stage=last, kind=kind)
